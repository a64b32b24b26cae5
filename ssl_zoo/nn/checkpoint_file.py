"""Files of weights as plain containers and tensors; nothing that a file holds is ever run."""

import pickle
import tarfile
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import _utils

from ssl_zoo.errors import UserError


def read_checkpoint(file: Path) -> Any:
    """The content of a safetensors or torch file, its tensors on the CPU.

    Objects of other classes than tensors, containers and plain values (settings, optimizers' helpers, numpy scalars) become `Inert`.
    Raises UserError for a file that is missing, damaged or of another kind.
    """
    kind = _kind(file)
    try:
        return load_file(file, device="cpu") if kind == "safetensors" else _torch(file, kind)
    except UserError:
        raise
    except Exception as e:  # what a damaged file raises is whatever its bytes happen to ask for
        why = " ".join(str(e).split())[:160] or type(e).__name__
        raise UserError(f"The weights {file} cannot be read ({why}): the file is damaged or not of torch, get it again.") from e


def _kind(file: Path) -> str:
    """safetensors | zip | pickle (torch before 1.6), told by the first bytes: a name tells nothing."""
    if not file.is_file():
        raise UserError(f"There is no file of weights {file}: check the path.")
    with file.open("rb") as f:
        head = f.read(512)
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{file} is a web page, not weights: the download gave a page in their place, get the file itself.")
    if text.startswith(b"version https://git-lfs"):
        raise UserError(f"{file} only points to weights that git-lfs keeps: fetch them with `git lfs pull`.")
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(pickle.PROTO):
        return "pickle"
    raise UserError(f"{file} is neither a safetensors nor a torch file, or it is damaged: get it again.")


def _torch(file: Path, kind: str) -> Any:
    if kind == "zip":
        with zipfile.ZipFile(file) as z:
            if any(name.endswith("/constants.pkl") for name in z.namelist()):  # torch would hand it to its interpreter
                raise UserError(f"{file} is a TorchScript program, which is not run here: save the state_dict() of its model.")
    elif tarfile.is_tarfile(file):  # torch would unpack it
        raise UserError(f"{file} is a tar, as torch wrote them before 2017: load it with that torch and save it again.")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # refused for objects that it does not know, or damaged: the second reading tells
        return torch.load(file, map_location="cpu", weights_only=False, pickle_module=_inert_pickle())


class Inert:
    """What stands in place of an object of the file whose class is not rebuilt: it takes anything and does nothing."""

    origin = "?"

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def add(self, _: Any) -> None: ...

    def __repr__(self) -> str:
        return f"<{self.origin}, not rebuilt>"


class _Call:
    """A function of torch without attributes: a pickle can set those of what it names."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, *_: Any) -> None:
        raise pickle.UnpicklingError("a function cannot be changed")

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


REBUILT: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    **{("torch._utils", name): _Call(getattr(_utils, name)) for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")},
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    **{(module, t.__name__): t for module in ("builtins", "__builtin__") for t in (dict, list, set, tuple, int, float, bool, str)},
}


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return REBUILT.get((module, name)) or type("Inert", (Inert,), {"origin": f"{module}.{name}"})


def _inert_pickle() -> types.ModuleType:
    """What torch.load takes in place of the module pickle."""
    module: Any = types.ModuleType("inert_pickle")
    module.Unpickler = _InertUnpickler
    module.UnpicklingError = pickle.UnpicklingError
    module.load = lambda f, **options: _InertUnpickler(f, **options).load()
    return module
