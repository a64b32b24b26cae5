"""What can be wrong with a config, said in one sentence each; needs neither Hydra's composition nor torch."""

import ast
import difflib
import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hydra

from ssl_zoo.augment.spec import resolve_all
from ssl_zoo.errors import UserError

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


# ---------------------------------------------------------------------------------------------- types and ranges
def _number(low: float, high: float = float("inf"), whole: bool = False) -> Callable[[Any], bool]:
    kinds = int if whole else (int, float)
    return lambda v: isinstance(v, kinds) and not isinstance(v, bool) and low <= v <= high and v != float("inf")


def _one_of(*options: Any) -> Callable[[Any], bool]:
    return lambda v: any(v == o and type(v) is type(o) for o in options)


def _or(*tests: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: any(t(v) for t in tests)


def _devices(v: Any) -> bool:
    return v in ("auto", -1) or (_number(1, whole=True)(v)) or (isinstance(v, list) and bool(v) and all(map(_number(0, whole=True), v)))


POSITIVE = (_number(1, whole=True), "a whole number of at least 1")
SHARE = (_number(0, 1), "a number from 0 to 1")
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": POSITIVE,
    "batch_size": (_number(2, whole=True), "a whole number of at least 2"),
    "images": POSITIVE,
    "draws": POSITIVE,
    "format": (_one_of("tar", "litdata"), "tar or litdata"),
    "shard_mb": (_number(1, 2048, whole=True), "a whole number of megabytes from 1 to 2048"),
    "size": (_or(_one_of(None), _number(8, whole=True)), "null or a whole number of at least 8"),
    "seed": (_number(0, 2**32 - 1, whole=True), "a whole number from 0 to 4294967295"),
    "data.subset": (_or(_one_of(None), POSITIVE[0]), "null or a whole number of at least 1"),
    "data.resident": (_one_of("auto", True, False), "auto, true or false"),
    "data.decoded": (_one_of("auto", True, False), "auto, true or false"),
    "data.workers": (_or(_one_of("auto"), _number(0, 512, whole=True)), "auto or a whole number from 0 to 512"),
    "data.worker_kind": (_one_of("auto", "thread", "process"), "auto, thread or process"),
    "dataset.decoded": (_one_of("auto", True, False), "auto, true or false"),
    "dataset.labels": (_one_of("auto", True, False), "auto, true or false"),
    "dataset.image_size": (_or(_one_of(None), _number(8, whole=True)), "null or a whole number of at least 8"),
    "dataset.test_share": (_number(0.001, 0.9), "a share from 0.001 to 0.9"),
    "trainer.devices": (_devices, "a whole number of at least 1, auto, or a list of device indices"),
    "trainer.num_nodes": POSITIVE,
    "trainer.accumulate_grad_batches": POSITIVE,
    "trainer.log_every_n_steps": POSITIVE,
    "trainer.max_epochs": POSITIVE,
    "trainer.max_steps": (_number(-1, whole=True), "-1 or a number of optimizer steps"),
    "trainer.gradient_clip_val": (_or(_one_of(None), _number(0)), "null or a number of at least 0"),
    "trainer.precision": (lambda v: isinstance(v, str) or v in (16, 32, 64), "auto or one of Lightning's precisions"),
    "optimizer.name": (_one_of("sgd", "lars", "lars_timm", "adamw", "auto"), "sgd, lars, lars_timm, adamw or auto"),
    "optimizer.milestones": (
        lambda v: v is None or (isinstance(v, list) and all(map(_number(0, 1), v))),
        "null or a list of shares of training from 0 to 1",
    ),
    "optimizer.bias_base_lr": (_or(_one_of(None), _number(0)), "null or a number of at least 0"),
    "optimizer.final_weight_decay": (_or(_one_of(None), _number(0)), "null or a number of at least 0"),
    "optimizer.base_lr": (_number(0), "a number of at least 0"),
    "optimizer.momentum": (_or(_one_of(None), _number(0, 0.9999999)), "null or a number from 0 to below 1"),
    "optimizer.trust_coefficient": (_or(_one_of(None), _number(0)), "null or a number of at least 0"),
    "optimizer.betas": (
        lambda v: v is None or (isinstance(v, list) and len(v) == 2 and all(map(_number(0, 0.9999999), v))),
        "null or two numbers from 0 to below 1",
    ),
    "logger.name": (_one_of("csv", "tensorboard", "wandb"), "csv, tensorboard or wandb"),
    "optimizer.weight_decay": (_number(0), "a number of at least 0"),
    "optimizer.final_lr": (_number(0, 1), "a share of the peak from 0 to 1"),
    "optimizer.warmup_epochs": (_or(_one_of("auto"), _number(0)), "auto or a number of epochs"),
    "method.temperature": (_number(1e-6), "a number above 0"),
    "method.student_temp": (_number(1e-6), "a number above 0"),
    "method.teacher_temp": (_number(1e-6), "a number above 0"),
    "method.teacher_temp_start": (_number(1e-6), "a number above 0"),
    "method.teacher_temp_warmup": SHARE,
    "method.momentum": SHARE,
    "method.momentum_end": SHARE,
    "method.center_momentum": SHARE,
    "method.queue_size": POSITIVE,
    "method.bn_groups": POSITIVE,
    "method.num_layers": POSITIVE,
    "method.hidden_dim": POSITIVE,
    "method.proj_dim": POSITIVE,
    "method.pred_dim": POSITIVE,
    "method.bottleneck_dim": POSITIVE,
    "method.lambd": (_number(0), "a number of at least 0"),
    "method.loss_scale": (_number(1e-9), "a number above 0"),
    "method.sim_coeff": (_number(0), "a number of at least 0"),
    "method.std_coeff": (_number(0), "a number of at least 0"),
    "method.cov_coeff": (_number(0), "a number of at least 0"),
    "method.out_dim": (_number(2, whole=True), "a whole number of at least 2"),
    "method.assignment": (_one_of("centering", "sinkhorn"), "centering or sinkhorn"),
    "method.clip_grad": (_or(_one_of(None), _number(0)), "null or a number of at least 0"),
    "method.freeze_last_layer": (_number(0, whole=True), "a whole number of epochs of at least 0"),
    "method.vit": (_one_of("auto", True, False), "auto, true or false"),
    "evaluation.every_n_epochs": (_or(_one_of("auto"), POSITIVE[0]), "auto or a whole number of at least 1"),
    "evaluation.batch_size": POSITIVE,
    "evaluation.health_every_n_steps": POSITIVE,
    "evaluation.bank": POSITIVE,
    "evaluation.knn.k": POSITIVE,
    "evaluation.knn.temperature": (_number(0.002), "a number of at least 0.002"),
    "evaluation.linear.max_iter": POSITIVE,
    "evaluation.linear.l2": (
        lambda v: isinstance(v, list) and bool(v) and all(map(_number(0), v)),
        "a list of at least one number of at least 0",
    ),
    "logger.offline": (_one_of("auto", True, False), "auto, true or false"),
    "trainer.deterministic": (_one_of("warn", True, False), "true, false or warn"),
    "augment.local_crops": (_number(0, 64, whole=True), "a whole number from 0 to 64"),
    "augment.engine": (_one_of("fused", "kornia"), "fused or kornia"),
    "augment.compile": (_one_of("auto", True, False), "auto, true or false"),
    "protocol": (_one_of("knn", "linear"), "knn or linear"),
    "backbone.stem": (_one_of("auto", "small", "model"), "auto, small or model"),
    "backbone.patch_size": (_or(_one_of("auto", None), POSITIVE[0]), "auto or a whole number of at least 1"),
}


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


ROOMS = {"method": "ssl_zoo.methods", "backbone": "ssl_zoo.nn", "dataset": "ssl_zoo.data", "augment": "ssl_zoo.augment"}


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
        if any(home.startswith(f"{p}.") for p in (ROOMS[slot], *trust)):
            continue
        if not (isinstance(found, type) and issubclass(found, nn.Module) and any(home.startswith(f"{p}.") for p in TRUSTED)):
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
    """A path that a dataset requires must exist, and every view must be possible."""
    dataset = config.get("dataset") or {}
    path = dataset.get("path")
    if (reference.get("dataset") or {}).get("path") == "???" and path != "???" and not Path(str(path)).expanduser().exists():
        raise UserError(f"dataset.path={path} does not exist.")
    if "augment" in config:
        resolve_all(config["augment"], dataset.get("image_size") or 224)
