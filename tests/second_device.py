"""A device that is not the host, as a GPU is to code: its tensors hold their numbers in memory, but mix with tensors of the host no more
than those of a GPU do, and cannot be read by NumPy. What runs on it alone runs on one device alone, and gives the numbers of the host.
"""

from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "second"
aten = torch.ops.aten
BETWEEN = (aten._to_copy.default, aten.copy_.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)  # by indices of the host too, as on a GPU
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


def run(func, *args, **kwargs):
    """`func` on what is held, if all of it is on one device."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    on = [t for t in tensors if isinstance(t, On)]
    indexed = func in INDEXED and isinstance(args[0], On)
    if on and func not in BETWEEN and not indexed and any(t.ndim for t in tensors if not isinstance(t, On)):
        raise RuntimeError(f"{func} of tensors on two devices: {[(tuple(t.shape), t.device.type) for t in tensors]}")
    device = kwargs.get("device")
    wrap = there(device) if device is not None else bool(on)
    known = {id(t.held): t for t in on}
    held_args, held = tree_map(lambda x: x.held if isinstance(x, On) else x, (args, kwargs))
    if device is not None:
        held |= {"device": torch.device("cpu"), "pin_memory": False} if "pin_memory" in held else {"device": torch.device("cpu")}
    out = func(*held_args, **held)
    if func._schema.is_mutable and isinstance(args[0], torch.Tensor) and out is held_args[0]:
        return args[0]
    return tree_map(lambda x: known.get(id(x), On(x)) if wrap and isinstance(x, torch.Tensor) else x, out)


class Made(TorchFunctionMode):
    """Tensors whose making on the device PyTorch leaves no way to hold are made on the host and moved."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
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
        pass


class Module(_DummyBackendModule):
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
    _setup_privateuseone_for_python_backend(NAME, Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(run, dispatch_key="PrivateUse1")
    install.kept = library  # which unregisters when it goes
    torch.__future__.set_swap_module_params_on_conversion(True)  # a moved parameter stays the same object, as it does on a GPU
    torch.Generator = Generator
    Made().__enter__()

    import ssl_zoo.build
    import ssl_zoo.evaluate
    import ssl_zoo.nn.device
    import ssl_zoo.verbs

    class Lightning:
        def __getattr__(self, name):
            return trainer if name == "Trainer" else getattr(L, name)

    ssl_zoo.build.L = Lightning()
    for room in (ssl_zoo.nn.device, ssl_zoo.evaluate, ssl_zoo.verbs):
        room.pick_device = lambda name: torch.device(NAME, 0)
