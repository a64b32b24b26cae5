"""What can be wrong with a config, said in one sentence each; needs neither Hydra's composition nor torch."""

import ast
import difflib
import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import hydra

from ssl_zoo.augment.spec import resolve_all, resolve_early
from ssl_zoo.errors import UserError
from ssl_zoo.metrics import BETTER
from ssl_zoo.prompts import templates
from ssl_zoo.rules import ATTRIBUTES, RULES

TRUSTED = ("ssl_zoo", "torch", "torchvision", "timm", "kornia.augmentation", "lightning.pytorch")
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a table"}


# ---------------------------------------------------------------------------------------------- spelling
def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that `word` was most likely meant to be, or None. Also finds `dataset.subset` -> `data.subset`."""
    known = list(dict.fromkeys(known))
    same_leaf = [k for k in known if k.rsplit(".")[-1] == word.rsplit(".")[-1]]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close and (not same_leaf or difflib.SequenceMatcher(None, word, close[0]).ratio() > 0.85):
        return close[0]
    if same_leaf:
        return max(same_leaf, key=lambda k: difflib.SequenceMatcher(None, word, k).ratio())
    leaves = {k.rsplit(".")[-1]: k for k in reversed(known)}
    leaf = difflib.get_close_matches(word.rsplit(".")[-1], leaves, n=1, cutoff=0.75)
    return leaves[leaf[0]] if leaf else None


def unknown(kind: str, word: str, known: Iterable[str], listed: bool = True) -> UserError:
    known = sorted(known)
    hint = nearest(word, known)
    if hint:
        return UserError(f"There is no {kind} '{word}'; did you mean '{hint}'?")
    return UserError(f"There is no {kind} '{word}'; " + (f"choose one of: {', '.join(known)}." if listed else
                     "`ssl-zoo --cfg job` shows every key."))  # fmt: skip


# ---------------------------------------------------------------------------------------------- folders
def check_new_folder(out: Path) -> None:
    """Raises UserError where a folder that appears when it is whole cannot take the place of `out`, or would take something's place."""
    if out.is_symlink() or os.path.ismount(out) or out.resolve() == Path.cwd():
        raise UserError(f"out={out} cannot be replaced by a finished folder (a link, a mount or this folder): name a new folder in it.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"out={out} is {'not empty' if out.is_dir() else 'a file'}: choose a new folder.")


# ---------------------------------------------------------------------------------------------- types and ranges
def _kind(value: Any) -> str:
    return next((KINDS[t] for t in (bool, int, float, str, list, dict) if isinstance(value, t)), "null")


def _fits(value: Any, example: Any) -> bool:
    """Whether a value is of the kind of the default it replaces; null and ??? say nothing about the kind."""
    if example is None or example == "???" or type(value) is type(example):
        return True
    if isinstance(example, bool):
        return False
    if isinstance(example, (int, float)):
        return isinstance(value, (dict, float if isinstance(example, float) else int, int)) and not isinstance(value, bool)
    if isinstance(example, str):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(example, dict) and isinstance(value, (int, float, str)) and all(isinstance(k, int) for k in example)


def check_values(config: dict, reference: dict, prefix: str = "") -> None:
    """Every key of `config` must be known to `reference`, of its kind, and within the ranges of RULES."""
    for key, value in config.items():
        path = f"{prefix}{key}"
        if key not in reference:
            raise unknown("key", path, (f"{prefix}{k}" for k in reference), listed=False)
        example = reference[key]
        if path in RULES:
            test, wanted = RULES[path]
            if value != "???" and not (value is None and example is None) and not test(value):
                raise UserError(f"{path}={value} does not work: {path} takes {wanted}.")
        elif value is None and example not in (None, "???", {}) and not path.startswith("augment."):  # whose parts say it themselves
            raise UserError(f"{path}=null does not work: {path} takes {_kind(example)}.")
        elif value is not None and not _fits(value, example):
            raise UserError(f"{path}={value} is {_kind(value)}, but {path} takes {_kind(example)}.")
        if isinstance(value, dict) and isinstance(example, dict) and example and all(isinstance(k, str) for k in example):
            check_values(value, example, f"{path}.")


# ---------------------------------------------------------------------------------------------- targets
def targets(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every (key, value) of a `_target_` in a config."""
    if isinstance(node, dict):
        for key, value in node.items():
            where = f"{path}.{key}" if path else str(key)
            if key == "_target_":
                yield where, str(value)
            else:
                yield from targets(value, where)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from targets(value, f"{path}.{i}")


def check_target(key: str, target: str, trust: Iterable[str]) -> None:
    """Refuse a `_target_` outside the trusted packages, or one that ssl_zoo does not have; nothing is imported."""
    if not any(target.startswith(f"{prefix}.") for prefix in (*TRUSTED, *trust)):
        raise UserError(
            f"{key}={target} is not from a trusted package ({', '.join(TRUSTED)}): if it is your own, add trust=[{target.split('.')[0]}]."
        )
    if importlib.util.find_spec(target.split(".")[0]) is None:
        raise UserError(f"{key}={target} needs the package '{target.split('.')[0]}', which is not installed.")
    if not target.startswith("ssl_zoo."):
        return
    known = _names_of_ssl_zoo()
    if target not in known:
        hint = nearest(target, known) or nearest(target.rpartition(".")[2], known)
        raise UserError(f"{key}={target} names nothing that exists" + (f"; did you mean '{hint}'?" if hint else "."))


ROOMS = {"backbone": "ssl_zoo.nn.backbones", "dataset": "ssl_zoo.data"}  # of what makes a part of a run and is no module of torch


def check_located(config: dict, slot: str, trust: Iterable[str]) -> None:
    """Import every `_target_` of the group `slot` and refuse what a trusted name merely leads to, such as torch.os.system, torch.hub.load
    or a function of ssl_zoo that is no part of a run.
    """
    from torch import nn

    for key, target in targets(config, slot):
        check_target(key, target, trust)
        logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # what fails is said below, once
        try:
            found = hydra.utils.get_object(target)
        except (ImportError, AttributeError, ValueError) as e:
            raise UserError(f"{key}={target} names nothing that exists; check its spelling.") from e
        home = f"{getattr(found, '__module__', None) or ''}."
        own = isinstance(found, (type, FunctionType)) and home.startswith(f"{ROOMS.get(slot)}.")
        module = isinstance(found, type) and issubclass(found, nn.Module) and any(home.startswith(f"{p}.") for p in TRUSTED)
        if not (any(home.startswith(f"{p}.") for p in trust) or module or (own and (slot != "dataset" or hasattr(found, "load")))):
            raise UserError(f"{key}={target} cannot be a {slot} or a part of one, so it is not called.")


@cache
def _names_of_ssl_zoo() -> set[str]:
    """Public classes and functions of every module, read from the source."""
    root = Path(__file__).resolve().parent
    names = set()
    for file in root.rglob("*.py"):
        module = ".".join(("ssl_zoo", *file.relative_to(root).with_suffix("").parts))
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                names.add(f"{module}.{node.name}")
    return names


def check_paths_and_views(config: dict, reference: dict) -> None:
    """A path that a dataset requires must exist, prompts must have a place for a name, and every view must be possible."""
    dataset = config.get("dataset") or {}
    path = dataset.get("path")
    if (reference.get("dataset") or {}).get("path") == "???" and path != "???" and not Path(str(path)).expanduser().exists():
        raise UserError(f"dataset.path={path} does not exist.")
    if (prompts := (config.get("data") or {}).get("prompts")) is not None:
        templates(prompts)
    for key in ("image_weights", "text_weights"):
        place = (config.get("method") or {}).get(key)
        if place is not None and config.get("resume") != "auto":  # which may go on with a run that needs them no more
            weights_place(key, place)
    if "checkpoint" in config and config.get("out") is None:
        raise UserError("out=null does not work: runs go into a folder there, out=runs if nothing is said.")
    own = "held_out" in dataset  # which shapes alone have
    if "labels" in dataset and (dataset["labels"] in ATTRIBUTES) != own:
        takes = ", ".join(ATTRIBUTES) if own else "auto, true or false"
        raise UserError(f"dataset.labels={dataset['labels']} does not work: dataset.labels of this data set takes {takes}.")
    if "augment" in config:
        size = dataset.get("image_size") or 224
        resolve_all(config["augment"], size)
        if dataset.get("image_size"):  # else once the images are known
            resolve_early(config["augment"], size)
        method, two = config.get("method") or {}, "view2" in config["augment"]
        if "text" in method and two:
            raise UserError("A method with words takes one view of an image: use augment=clip.")
        if method and "text" not in method and not two:
            raise UserError("This augment makes one view of an image, but the method compares two: leave it out, or use augment=simclr.")


def weights_place(key: str, place: str | int | float) -> Path:
    """The file of weights that method.image_weights or method.text_weights names: itself, or that of a finished run."""
    path = Path(str(place)).expanduser()
    file = path / ("backbone.safetensors" if key == "image_weights" else "towers.safetensors") if path.is_dir() else path
    if not file.is_file():
        kind = "finished run" if key == "image_weights" else "finished run of a method with words"
        raise UserError(f"method.{key}={place} is neither a {kind} nor a file of weights: check the path.")
    return file


def check_metric(config: dict) -> None:
    best = (config.get("checkpoint") or {}).get("best")
    if best is not None and best not in BETTER:
        raise unknown("metric", str(best), BETTER)


def check_packages(config: dict) -> None:
    """What only the end of a run would need must be there at its start."""
    method = (config.get("evaluation") or {}).get("map")
    package = {"tsne": "sklearn", "umap": "umap"}.get(str(method))
    if package and importlib.util.find_spec(package) is None:
        raise UserError(f"evaluation.map={method} needs a package that is not installed: pip install 'ssl-zoo[plots]', or use pca.")
