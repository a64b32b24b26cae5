"""Compose a configuration with Hydra and refuse what cannot work, in one sentence, before torch is imported."""

import ast
import difflib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssl_zoo.augment.spec import resolve_all
from ssl_zoo.errors import UserError

TRUSTED = ("ssl_zoo", "torch", "torchvision", "timm", "kornia.augmentation", "lightning.pytorch")
NAMES_A_RECIPE = ("method", "backbone", "dataset", "recipe", "experiment")
ADAMW_FAMILIES = ("vit", "deit", "beit", "eva", "swin", "cait", "xcit", "convnext", "mixer", "pit", "pvt", "coat")
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a table"}


def conf_dir() -> Path:
    """The folder of configs: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"The configs are missing from {here}: install ssl-zoo again.")


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
    return lambda v: isinstance(v, kinds) and not isinstance(v, bool) and low <= v <= high


def _one_of(*options: Any) -> Callable[[Any], bool]:
    return lambda v: any(v == o and type(v) is type(o) for o in options)


def _or(*tests: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: any(t(v) for t in tests)


def _devices(v: Any) -> bool:
    return v in ("auto", -1) or (_number(1, whole=True)(v)) or (isinstance(v, list) and bool(v) and all(map(_number(0, whole=True), v)))


POSITIVE = (_number(1, whole=True), "a whole number of at least 1")
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": POSITIVE,
    "batch_size": POSITIVE,
    "images": POSITIVE,
    "draws": POSITIVE,
    "seed": (_number(0, 2**32 - 1, whole=True), "a whole number from 0 to 4294967295"),
    "data.subset": (_or(_one_of(None), POSITIVE[0]), "null or a whole number of at least 1"),
    "data.resident": (_one_of("auto", True, False), "auto, true or false"),
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
    "optimizer.name": (_one_of("sgd", "lars", "adamw", "auto"), "sgd, lars, adamw or auto"),
    "optimizer.base_lr": (_number(0), "a number of at least 0"),
    "optimizer.weight_decay": (_number(0), "a number of at least 0"),
    "optimizer.final_lr": (_number(0, 1), "a share of the peak from 0 to 1"),
    "optimizer.warmup_epochs": (_or(_one_of("auto"), _number(0)), "auto or a number of epochs"),
    "method.temperature": (_number(1e-6), "a number above 0"),
    "evaluation.every_n_epochs": (_or(_one_of("auto"), POSITIVE[0]), "auto or a whole number of at least 1"),
    "evaluation.batch_size": POSITIVE,
    "evaluation.bank": POSITIVE,
    "evaluation.knn.k": POSITIVE,
    "evaluation.knn.temperature": (_number(1e-6), "a number above 0"),
    "evaluation.linear.max_iter": POSITIVE,
    "augment.engine": (_one_of("kornia"), "kornia"),
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
            if value != "???" and not test(value):
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


def check_located(config: dict, trust: Iterable[str]) -> None:
    """Import every `_target_` and refuse what a trusted name merely leads to, such as torch.os.system or torch.hub.load."""
    for key, target in targets(config):
        check_target(key, target, trust)
        try:
            found = hydra.utils.get_object(target)
        except (ImportError, AttributeError, ValueError) as e:
            raise UserError(f"{key}={target} names nothing that exists; check its spelling.") from e
        home = getattr(found, "__module__", None) or ""
        ours = any(f"{home}.".startswith(f"{p}.") for p in ("ssl_zoo", *trust))
        if not ours and not (isinstance(found, type) and any(f"{home}.".startswith(f"{p}.") for p in TRUSTED)):
            raise UserError(f"{key}={target} is not a class of a trusted package, so it is not called.")


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


# ---------------------------------------------------------------------------------------------- compose
@contextmanager
def _hydra(config_dirs: Iterable[str]) -> Iterator[ConfigLoader]:
    """Hydra's loader over our configs and the user's folders."""
    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise UserError(f"--config-dir {folder} is not a folder.")
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader: Any = GlobalHydra.instance().config_loader()
        for folder in config_dirs:
            loader.config_search_path.prepend("user", f"file://{Path(folder).resolve()}", anchor="main")
        loader.repository = ConfigRepository(loader.config_search_path)
        yield loader


def parse(overrides: list[str]) -> list[Override]:
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise UserError(f"'{text}' is neither a verb nor an override of the form key=value; see ssl-zoo --help.")
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as e:
        raise UserError(f"Cannot read '{e.override}': write key=value, with quotes round special characters.") from e


def plain(config: DictConfig) -> dict:
    """The config as resolved dicts and lists."""
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def _split(overrides: list[Override], loader: ConfigLoader, multirun: bool) -> tuple[list[Override], list[Override]]:
    """Group choices and value overrides; group options are checked here."""
    groups, values = [], []
    for o in overrides:
        if o.is_sweep_override() and not multirun:
            raise UserError(f"'{o.input_line}' lists several values; add -m to run one job for each.")
        options = loader.get_group_options(o.key_or_group)
        if not options or o.is_delete():
            values.append(o)
            continue
        groups.append(o)
        off = o.value() is None or (o.key_or_group == "recipe" and o.value() == "none")
        if not o.is_sweep_override() and not off and str(o.value()) not in options:
            raise unknown(o.key_or_group, str(o.value()), options)
    return groups, values


def compose(name: str, overrides: list[str], config_dirs: Iterable[str] = ()) -> DictConfig:
    """The checked, resolved config `name` (train, eval, preview) under `overrides`.

    Raises UserError with one sentence for anything unknown, of the wrong kind, out of range, missing or untrusted.
    """
    with _hydra(config_dirs) as loader:
        try:
            config = _compose(name, parse(overrides), loader)
            resolved = OmegaConf.create(plain(config))
        except (HydraException, OmegaConfBaseException) as e:
            raise UserError(" ".join(str(e).split("\n")[0].split())) from e
    check_complete(resolved)
    return resolved


def _compose(name: str, overrides: list[Override], loader: ConfigLoader) -> DictConfig:
    groups, values = _split(overrides, loader, multirun=False)
    lines = [str(o.input_line) for o in groups]
    first = hydra.compose(name, lines, return_hydra_config=True)
    choices = {g: c for g, c in first.hydra.runtime.choices.items() if not g.startswith("hydra/")}
    chosen = {o.key_or_group for o in groups}
    if choices.get("optimizer") == "auto":
        choices["optimizer"] = _optimizer_for(first, values)
        lines.append(f"optimizer={choices['optimizer']}")
    untuned = [f"~{g}" for g in ("recipe", "experiment") if choices.pop(g, None)]
    reference = hydra.compose(name, [*untuned, *(f"{g}={c}" for g, c in choices.items() if c and "@" not in g)])
    known = plain(reference)

    final = []
    for o in values:
        key, is_new = o.key_or_group, o.is_add() or o.is_force_add()
        if not is_new and not o.is_delete() and not _known(known, key):
            raise unknown("key", key, [*_keys(known), *choices], listed=False)
        free = not is_new and not o.is_delete() and OmegaConf.select(reference, key) is None
        final.append(f"++{o.input_line}" if free and _parent_is_free(known, key) else str(o.input_line))
    config = hydra.compose(name, [*lines, *final])
    kept = [g for g in chosen - set(NAMES_A_RECIPE) if g in config]
    if kept and "~recipe" in untuned:  # a group named on the command line is not retuned by the recipe
        untuned_config = hydra.compose(name, [*(t for t in lines if not t.startswith("recipe=")), *final, "~recipe"])
        for group in kept:
            config[group] = untuned_config[group]
    added = {o.key_or_group.split(".")[0] for o in values if o.is_add() or o.is_force_add()}
    whole = plain(config)
    check_values({k: v for k, v in whole.items() if k not in added}, known)
    _check_paths_and_views(whole, known)
    return config


def _check_paths_and_views(config: dict, reference: dict) -> None:
    """A path that a dataset requires must exist, and every view must be possible."""
    dataset = config.get("dataset") or {}
    path = dataset.get("path")
    if (reference.get("dataset") or {}).get("path") == "???" and path != "???" and not Path(str(path)).expanduser().exists():
        raise UserError(f"dataset.path={path} does not exist.")
    if "augment" in config:
        resolve_all(config["augment"], dataset.get("image_size") or 224)


def _known(config: dict, key: str) -> bool:
    """Whether a dotted key exists, or lies inside an open table (`kwargs: {}`)."""
    node: Any = config
    for part in key.split("."):
        if node == {}:
            return True
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _parent_is_free(config: dict, key: str) -> bool:
    node: Any = config
    for part in key.split("."):
        if node == {}:
            return True
        node = node[part]
    return False


def _optimizer_for(config: DictConfig, values: list[Override]) -> str:
    """AdamW for transformers and ConvNeXt, SGD for other convolutional networks."""
    name = next((str(o.value()) for o in values if o.key_or_group == "backbone.name"), str(config.backbone.get("name", "")))
    return "adamw" if any(family in name for family in ADAMW_FAMILIES) else "sgd"


def check_complete(config: DictConfig) -> None:
    """Nothing required may be missing, every target must be allowed, and a required path must exist."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{missing[0]} is needed: add {missing[0]}=... to the command.")
    whole = plain(config)
    for key, target in targets(whole):
        check_target(key, target, whole.get("trust") or ())


def run_name(overrides: list[str], config_dirs: Iterable[str] = ()) -> str:
    """<method>_<backbone>_<dataset> of a command that composes."""
    with _hydra(config_dirs) as loader:
        groups, values = _split(parse(overrides), loader, multirun=False)
        choices = hydra.compose("train", [str(o.input_line) for o in groups], return_hydra_config=True).hydra.runtime.choices
    parts = [str(choices[g]) for g in ("method", "backbone", "dataset")]
    if parts[1] == "timm":
        parts[1] = next((str(o.value()) for o in values if o.key_or_group == "backbone.name"), "timm")
    return "_".join(parts)


def expand(overrides: list[str], config_dirs: Iterable[str] = ()) -> list[list[str]]:
    """The jobs of a multirun: one list of overrides for each combination of the swept values, in Hydra's syntax."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    with _hydra(config_dirs) as loader:
        _split(parse(overrides), loader, multirun=True)
        return BasicSweeper.split_arguments(parse(overrides), None)[0]


def load_run(run: str, overrides: list[str] = ()) -> DictConfig:  # type: ignore[assignment]
    """The config that a run folder was trained with, under `overrides` of its values."""
    file = Path(run) / "config.yaml"
    if not file.is_file():
        found = sorted(str(p.parent) for p in Path(run).rglob("config.yaml"))[:1] if Path(run).is_dir() else []
        hint = f"did you mean run={found[0]}?" if found else "give the folder that holds config.yaml."
        raise UserError(f"run={run} is not a run folder; {hint}")
    config = OmegaConf.load(file)
    if not isinstance(config, DictConfig):
        raise UserError(f"{file} is not a config of ssl_zoo.")
    known = plain(config)
    for o in parse(list(overrides)):
        if not _known(known, o.key_or_group):
            raise unknown("key", o.key_or_group, _keys(known), listed=False)
        OmegaConf.update(config, o.key_or_group, o.value())
        if o.key_or_group == "epochs":
            config.trainer.max_epochs = o.value()
    check_values(plain(config), known)
    check_complete(config)
    return config


def choice_names(group: str) -> dict[str, str]:
    """The options of a group and the first comment line of each file."""
    files = sorted((conf_dir() / group).glob("*.yaml"))
    return {f.stem: f.read_text(encoding="utf-8").split("\n")[0].lstrip("# ") for f in files}
