"""A device that is not the host, as a GPU is to code: its tensors hold their numbers in memory, but mix with tensors of the host no more
than those of a GPU do, and cannot be read by NumPy. What runs on it alone runs on one device alone, and gives the numbers of the host.
"""

import sys
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves, tree_map

NAME = "second"
USED = "this ran on the second device"  # said once a convolution did
aten = torch.ops.aten
BETWEEN = (aten._to_copy.default, aten.copy_.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)  # by indices of the host too, as on a GPU
WITH_NUMBERS = (aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.fill_.Tensor, aten._foreach_mul_.Tensor)  # beside what is pointwise
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
MAKERS = (torch.tensor, torch.as_tensor, torch.arange, torch.linspace, torch.eye, torch.randperm)


def there(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


class On(torch.Tensor):
    """A tensor of the device; `held` lies on the host."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "On":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype, "layout": held.layout}
        made = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=torch.device(NAME, 0), **layout)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, *args, **(kwargs or {}))

    def __reduce_ex__(self, protocol):  # as it is loaded: to the host
        return self.held.__reduce_ex__(protocol)

    def __repr__(self, **_):
        return f"On({self.held})"

    def tolist(self):
        return self.held.tolist()

    def numpy(self, *_, **__):
        raise TypeError("a tensor of the second device is not in the host's memory: use .cpu() first")


def strangers(func, args, kwargs):
    """The tensors of the host that `func` may not take beside those of the device: a single number may go into what is pointwise."""
    named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    written = {a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    if func in INDEXED:
        named.pop("indices")
    numbers = func in INDEXED or func in WITH_NUMBERS or torch.Tag.pointwise in func.tags
    for name, value in named.items():
        for x in tree_leaves(value):
            if isinstance(x, torch.Tensor) and not isinstance(x, On) and (x.ndim or not numbers or name in written):
                yield x


def run(func, *args, **kwargs):
    """`func` on what is held, if all of it is on one device."""
    on = [t for t in tree_leaves((args, kwargs)) if isinstance(t, On)]
    device = kwargs.get("device")
    wrap = there(device) if device is not None else bool(on)
    if on and func not in BETWEEN and (other := list(strangers(func, args, kwargs))):
        raise RuntimeError(f"{func} of tensors on two devices: {[tuple(t.shape) for t in on]} and {[tuple(t.shape) for t in other]}")
    if func is aten.convolution.default and on and not run.told:
        run.told = True
        print(USED, file=sys.stderr)
    known = {id(t.held): t for t in on}
    held_args, held = tree_map(lambda x: x.held if isinstance(x, On) else x, (args, kwargs))
    if device is not None:
        held |= {"device": torch.device("cpu")} | ({"pin_memory": False} if "pin_memory" in held else {})
    out = func(*held_args, **held)
    if func._schema.is_mutable and isinstance(args[0], torch.Tensor) and out is held_args[0]:
        if torch.Tag.inplace_view in func.tags:
            with no_dispatch():
                func(*args, **kwargs)  # of the outside too
        assert args[0].shape == out.shape, f"{func} changed the shape of what is held alone"
        return args[0]
    return tree_map(lambda x: known.get(id(x), On(x)) if wrap and isinstance(x, torch.Tensor) else x, out)


run.told = False


class Made(TorchFunctionMode):
    """Tensors whose making on the device PyTorch leaves no way to hold are made on the host and moved. Random numbers may come from a
    generator of their own device alone.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if isinstance(source := kwargs.get("generator"), Generator):
            place = kwargs.get("device") or next((x.device for x in args if isinstance(x, torch.Tensor)), "cpu")
            if source.there != there(place):
                raise RuntimeError(f"{func} on {place} with a generator of the other of two devices")
        if func in MAKERS and there(kwargs.get("device")):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.new_tensor and isinstance(args[0], On):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(args[0].device)
        return func(*args, **kwargs)


class Generator(torch._C.Generator):
    """Random numbers are those of the host."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu" if there(device) else device)

    def __init__(self, device="cpu"):
        self.there = there(device)


class Module(getattr(backend_registration, "_DummyBackendModule", object)):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]


class Second(Accelerator):
    def setup_device(self, device):
        pass

    def get_device_stats(self, device):
        return {}

    def teardown(self):
        pass

    parse_devices = staticmethod(lambda devices: devices)
    get_parallel_devices = staticmethod(lambda devices: [torch.device(NAME, 0)])
    auto_device_count = staticmethod(lambda: 1)
    is_available = staticmethod(lambda: True)
    name = staticmethod(lambda: NAME)


def trainer(accelerator=None, devices=None, num_nodes=None, strategy=None, **options):
    return L.Trainer(strategy=SingleDeviceStrategy(torch.device(NAME, 0), accelerator=Second()), **options)


def install() -> None:
    """Have this process train and judge on the device, whatever it is asked for."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(run, dispatch_key="PrivateUse1")
    install.kept = library  # which unregisters when it goes
    torch.__future__.set_swap_module_params_on_conversion(True)  # a moved parameter stays the same object, as it does on a GPU
    torch.Generator = Generator
    Made().__enter__()

    import ssl_zoo.build
    import ssl_zoo.evaluate
    import ssl_zoo.methods.base
    import ssl_zoo.nn.device
    import ssl_zoo.verbs

    class Lightning:
        def __getattr__(self, name):
            return trainer if name == "Trainer" else getattr(L, name)

    ssl_zoo.build.L = Lightning()
    ssl_zoo.methods.base.FUSED += (NAME,)
    for room in (ssl_zoo.nn.device, ssl_zoo.evaluate, ssl_zoo.verbs):
        room.pick_device = lambda name: torch.device(NAME, 0)
