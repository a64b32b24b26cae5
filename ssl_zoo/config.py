"""Compose a configuration with Hydra and refuse what cannot work, in one sentence, before torch is imported."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ssl_zoo.checks import check_metric, check_packages, check_paths_and_views, check_target, check_values, targets, unknown
from ssl_zoo.errors import UserError
from ssl_zoo.origins import Folders, composed, own_plugins, refuse_resolvers
from ssl_zoo.overrides import parse
from ssl_zoo.prompts import conf_dir, shipped

NAMES_A_RECIPE = ("method", "backbone", "dataset", "recipe", "experiment")
# parts of timm's names that tell a transformer, MLP or ConvNeXt
ADAMW_FAMILIES = (
    "vit deit beit eva swin cait xcit convnext mixer mlp pit pvt coat twins volo nest_ tnt poolformer metaformer caformer convformer "
    "efficientformer edgenext visformer hiera focalnet sequencer inception_next swiftformer mambaout aimv2"
).split()


# ---------------------------------------------------------------------------------------------- compose
@contextmanager
def _hydra(config_dirs: Iterable[str]) -> Iterator[ConfigLoader]:
    """Hydra's loader over our configs and the user's folders."""
    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise UserError(f"--config-dir {folder} is not a folder.")
    GlobalHydra.instance().clear()
    with own_plugins(), hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader: Any = GlobalHydra.instance().config_loader()
        for folder in config_dirs:
            loader.config_search_path.prepend("user", f"file://{Path(folder).resolve()}", anchor="main")
        loader.repository = Folders(loader.config_search_path)
        yield loader


def plain(config: DictConfig) -> dict:
    """The config as resolved dicts and lists."""
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def all_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a config."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from all_keys(value, f"{prefix}{key}.")


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
        if o.value() is None and o.key_or_group not in ("experiment", "recipe"):
            raise UserError(f"{o.key_or_group}=null does not work: choose one of: {', '.join(sorted(options))}.")
        groups.append(o)
        off = o.value() is None or (o.key_or_group == "recipe" and o.value() == "none")
        if not o.is_sweep_override() and not off and str(o.value()) not in options:
            raise unknown(o.key_or_group, str(o.value()), options)
    return groups, values


def _lines(groups: list[Override], loader: ConfigLoader) -> list[str]:
    """Group choices as Hydra takes them: null switches off, and a method that brings no views of its own gets SimCLR's."""
    chosen = {o.key_or_group: o.value() for o in groups}
    off = {"recipe": ["recipe=none"], "experiment": []}
    lines = [line for o in groups for line in ([str(o.input_line)] if o.value() is not None else off[o.key_or_group])]
    lacks = "method" in chosen and str(chosen["method"]) not in loader.get_group_options("augment")
    return [*lines, "augment=simclr"] if lacks and "augment" not in chosen else lines


def compose(name: str, overrides: list[str], config_dirs: Iterable[str] = ()) -> DictConfig:
    """The checked, resolved config `name` (train, eval, preview) under `overrides`.

    Raises UserError with one sentence for anything unknown, of the wrong kind, out of range, missing or untrusted.
    """
    with _hydra(config_dirs) as loader:
        try:
            words = parse(overrides)
            config = _compose(name, words, loader)
            resolved = OmegaConf.create(plain(config))
        except (HydraException, OmegaConfBaseException) as e:
            raise UserError(" ".join(str(e).split("\n")[0].split())) from e
    if resolved.get("trust") and not any(o.key_or_group == "trust" for o in words):
        raise UserError("trust=[...] stands in a file, which cannot vouch for itself: add it to the command, if the packages are yours.")
    check_complete(resolved)
    check_packages(plain(resolved))
    for key in ("run", "out", "weights", "file"):  # a name of digits alone is a name too
        if isinstance(resolved.get(key), (int, float)):
            resolved[key] = str(resolved[key])
    for group in ("dataset", "data"):  # so that the saved config means the same in another folder
        for key in ("path", "cache", "captions", "prompts"):
            place = resolved[group].get(key) if group in resolved else None
            named = key in ("captions", "prompts") and (place in ("auto", *shipped()) or not os.path.isfile(os.path.expanduser(str(place))))
            if place is not None and not named:
                place = str(Path(str(place)).expanduser().resolve())
                refuse_resolvers(place.replace("${", "\\${"), f"{group}.{key}")  # of the folder that this is run in
                resolved[group][key] = place
    return resolved


def _compose(name: str, overrides: list[Override], loader: ConfigLoader) -> DictConfig:
    groups, values = _split(overrides, loader, multirun=False)
    lines = _lines(groups, loader)
    first = _read(name, lines, loader, return_hydra_config=True)
    choices = {g: c for g, c in first.hydra.runtime.choices.items() if not g.startswith("hydra/")}
    chosen = {o.key_or_group for o in groups}
    if choices.get("optimizer") == "auto":
        choices["optimizer"] = _optimizer_for(first, values, str(choices.get("method")))
        lines.append(f"optimizer={choices['optimizer']}")
    untuned = [f"~{g}" for g in ("recipe", "experiment") if choices.pop(g, None)]
    reference = _read(name, [*untuned, *(f"{g}={c}" for g, c in choices.items() if c and "@" not in g)], loader)
    known = plain(reference)

    final = []
    for o in values:
        if o.is_delete() and is_known(known, o.key_or_group):
            raise UserError(f"'{o.input_line}' does not work: {o.key_or_group} is needed; set it to null or another value instead.")
        key, is_new = o.key_or_group, o.is_add() or o.is_force_add()
        if not is_new and not o.is_delete() and not is_known(known, key):
            raise unknown("key", key, [*all_keys(known), *choices], listed=False)
        now = None if is_new or o.is_delete() else OmegaConf.select(reference, key)
        into = not is_new and not o.is_delete() and (now == {} or (now is None and _parent_is_free(known, key)))
        final.append(f"++{o.input_line}" if into else str(o.input_line))
    config = composed(name, [*lines, *final])
    kept = [g for g in chosen - set(NAMES_A_RECIPE) if g in config]
    if kept and "~recipe" in untuned:  # a group named on the command line is not retuned by the recipe
        untuned_config = composed(name, [*(t for t in lines if not t.startswith("recipe=")), *final, "~recipe"])
        for group in kept:
            config[group] = untuned_config[group]
    added = {o.key_or_group.split(".")[0] for o in values if o.is_add() or o.is_force_add()}
    whole = plain(config)
    check_values({k: v for k, v in whole.items() if k not in added}, known)
    check_paths_and_views(whole, known)
    return config


def _read(name: str, lines: list[str], loader: ConfigLoader, **options: Any) -> DictConfig:
    """What group choices compose to, only to be read: kept where it is made of our own files, which stay as they are."""
    own = all(place.provider != "user" for place in loader.get_search_path().get_path())
    return (_kept if own else composed)(name, tuple(lines), **options)


_kept = lru_cache(maxsize=256)(composed)


def is_known(config: dict, key: str) -> bool:
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


def _optimizer_for(config: DictConfig, values: list[Override], method: str) -> str:
    """That of a method with words; else AdamW for transformers and ConvNeXt, SGD for other convolutional networks."""
    if "text" in config.method:
        return method if method in ("clip", "siglip") else "adamw"
    name = next((str(o.value()) for o in values if o.key_or_group == "backbone.name"), str(config.backbone.get("name", "")))
    return "adamw" if any(family in name for family in ADAMW_FAMILIES) else "sgd"


def check_complete(config: DictConfig) -> None:
    """Nothing required may be missing, every target must be allowed, and a required path must exist."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{missing[0]} is needed: add {missing[0]}=... to the command.")
    whole = plain(config)
    check_metric(whole)
    for key, target in targets(whole):
        check_target(key, target, whole.get("trust") or ())


def run_name(overrides: list[str], config_dirs: Iterable[str] = ()) -> str:
    """<method>_<backbone>_<dataset> of a command that composes."""
    with _hydra(config_dirs) as loader:
        groups, values = _split(parse(overrides), loader, multirun=False)
        choices = _read("train", _lines(groups, loader), loader, return_hydra_config=True).hydra.runtime.choices
    parts = [str(choices[g]) for g in ("method", "backbone", "dataset")]
    if parts[1] == "timm":
        parts[1] = next((str(o.value()) for o in values if o.key_or_group == "backbone.name"), "timm")
    return re.sub(r"[^\w.+-]+|^\.+", "-", "_".join(parts))  # one folder's name, whatever a model is called


def expand(overrides: list[str], config_dirs: Iterable[str] = ()) -> list[list[str]]:
    """The jobs of a multirun: one list of overrides for each combination of the swept values, in Hydra's syntax."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    with _hydra(config_dirs) as loader:
        _split(parse(overrides), loader, multirun=True)
        try:
            return BasicSweeper.split_arguments(parse(overrides), None)[0]
        except (HydraException, OmegaConfBaseException) as e:  # of a choice inside a list, among others
            reason = str(e).split("\n")[0]
            raise UserError(f"-m cannot tell the values apart ({reason}): write key=a,b or key=choice(a,b).") from e


def choice_names(group: str, config_dirs: Iterable[str] = ()) -> dict[str, str]:
    """The options of a group and the first line of each file that says something."""
    files = sorted(f for folder in (conf_dir(), *map(Path, config_dirs)) for f in (folder / group).glob("*.yaml"))
    about = {}
    for file in files:
        lines = [line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        about[file.stem] = next((line for line in lines if not line.startswith("@package")), "")
    return about
