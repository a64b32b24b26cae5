"""What a command of `ssl-zoo eval` asks for, checked before torch is imported."""

import hashlib
import json
import re
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from ssl_zoo.config import compose, plain
from ssl_zoo.errors import UserError
from ssl_zoo.prompts import templates
from ssl_zoo.saved import load_run
from ssl_zoo.shard import words_for
from ssl_zoo.word_lists import word_list

PROTOCOLS = ("knn", "linear", "few_shot", "finetune", "retrieval", "zero_shot", "health")
NAMED = ("timm/", "torchvision/")


def plan(words: list[str], config_dirs: list[str]) -> tuple[DictConfig, DictConfig | None, dict[str, tuple[DictConfig, str]]]:
    """The config of the command, that of the run it judges (None for weights from elsewhere), and for each data set by name ("" is the
    run's own) the config and the letters of `variant`.
    """
    config = compose("eval", words, config_dirs)
    for key in ("run", "weights"):
        if config[key] is not None and not str(config[key]).startswith(NAMED):
            config[key] = str(Path(config[key]).expanduser())
    _check_protocol(config)
    if (config.run is None) == (config.weights is None):
        raise UserError("eval judges a run or weights from elsewhere: give run=runs/... or weights=... (a file, timm/<model>, ...).")
    if "dataset" in config and config.transfer:
        raise UserError("dataset=... and transfer=[...] exclude each other: put all data sets into transfer.")
    trained = _trained(config) if config.run is not None else None
    if trained is not None and "backbone" in config:
        raise UserError("backbone=... goes with weights=...; a run says what its backbone is.")
    if config.protocol.name == "zero_shot" or config.protocol.get("between") == "words":
        _check_words(config, trained)
    if config.weights is not None:
        if not config.weights.startswith(NAMED) and not Path(config.weights).is_file():
            raise UserError(f"weights={config.weights} is neither a file nor a name like timm/resnet50 or torchvision/resnet50.")
        if "dataset" not in config and not config.transfer:
            raise UserError("weights from elsewhere need a data set to be judged on: add dataset=... or transfer=[...].")
    place = judged_folder(config) / "eval"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"The folder {place} cannot be made ({e.strerror}): choose another with out=...") from e
    if config.transfer:
        others = [w for w in words if not w.startswith("transfer=")]
        wanted: dict[str, tuple[DictConfig, str]] = {}
        for data in config.transfer:
            these = [*others, *words_for(data, config_dirs)]
            asked = compose("eval", these, config_dirs)
            name = dataset_name(asked)
            wanted[name if name not in wanted else f"{name}-{len(wanted) + 1}"] = asked, variant(asked, these, config_dirs)
        return config, trained, wanted
    return config, trained, {dataset_name(config): (config, variant(config, words, config_dirs))}


def _check_protocol(config: DictConfig) -> None:
    """What no single value shows: fields that do not go together."""
    p = config.protocol
    if p.name not in PROTOCOLS and not p.name.startswith("linear_"):
        raise UserError(f"protocol.name={p.name} is none that there is: {', '.join(PROTOCOLS)} or a name that starts with linear_.")
    f = config.features
    if (p.name == "finetune" or p.get("features")) and (f.layer or f.blocks > 1 or f.pool != "auto"):
        raise UserError(f"protocol={p.name} takes features of its own: leave features.layer, features.blocks and features.pool alone.")
    if p.get("nesterov") and not p.momentum:
        raise UserError("protocol.nesterov=true needs a momentum: set protocol.momentum above 0, or protocol.nesterov=false.")
    several = isinstance(p.get("labels"), ListConfig)
    if (p.name == "few_shot" and p.labels is None) or (p.name == "finetune" and several):
        wanted = "one amount of labels, or null for all" if several else "an amount of labels, or a list of them"
        raise UserError(f"protocol.labels={p.labels} does not work: {p.name} takes {wanted}.")
    lr = p.get("base_lr")
    if (lr == "auto" and p.name != "linear_mocov3") or (p.name == "finetune" and isinstance(lr, ListConfig)):
        raise UserError(f"protocol.base_lr={lr} does not work: {p.name} takes {'a number' if p.name == 'finetune' else 'numbers'}.")


def _check_words(config: DictConfig, trained: DictConfig | None) -> None:
    """Whoever judges by words needs a run that knows some, and takes its features where images and words meet."""
    p = config.protocol
    doing = "protocol=zero_shot" if p.name == "zero_shot" else "protocol.between=words"
    if trained is None:
        raise UserError(f"{doing} needs run=... of a method with words (clip, siglip): weights from elsewhere have none.")
    knows_words(Path(config.run), trained, doing)
    if of_its_own(config):
        raise UserError(
            f"{doing} compares images and words where they meet: leave net, features.layer, features.blocks and features.pool alone."
        )
    if p.get("gallery") == "train":
        raise UserError("protocol.gallery=train is for retrieval between images: leave protocol.gallery or protocol.between alone.")
    if p.get("templates") is not None:
        templates(plain(p)["templates"], "protocol.templates")
    if p.get("classes") is not None:
        word_list(plain(p)["classes"], "protocol.classes")


def of_its_own(config: DictConfig) -> bool:
    """Whether a command asks for other features than the usual ones of its subject."""
    f = config.features
    return bool(f.layer) or f.blocks > 1 or f.pool != "auto" or config.net != "auto"


def knows_words(run: Path, trained: DictConfig, doing: str) -> None:
    """Raises UserError for a run without a tower for words, or one that is not finished. doing: what needs it."""
    if "text" not in trained.method:
        method = str(trained.method.get("_target_")).rpartition(".")[2]
        raise UserError(f"{doing} needs a method with words, but run={run} was trained with {method}: give a run of clip or siglip.")
    if not (run / "towers.safetensors").is_file():
        raise UserError(f"{run} has no towers.safetensors yet: let the run finish, or continue it with ssl-zoo resume run={run}.")


def variant(config: DictConfig, words: list[str], config_dirs: list[str]) -> str:
    """A few letters for everything that is not as the files of protocol and data set have it; none where all is. Where the data lies does
    not count.
    """
    chosen = [w for w in words if w.startswith(("protocol=", "dataset=", "dataset.path="))]
    usual = compose("eval", chosen, config_dirs)
    keys = ("protocol", "seed", "image_size")
    mine, own = ({k: plain(c)[k] for k in keys} | {"subset": c.data.subset, "dataset": _which(c)} for c in (config, usual))
    return "" if mine == own else hashlib.blake2b(json.dumps(mine, sort_keys=True).encode(), digest_size=3).hexdigest()


def _which(config: DictConfig) -> dict:
    """What of a data set's config decides its images, but for their place."""
    found = plain(config).get("dataset") or {}
    return {k: v for k, v in found.items() if k not in ("path", "cache", "decoded")}


def _trained(config: DictConfig) -> DictConfig:
    trained, run = load_run(config.run, trust=config.trust), Path(config.run)
    if not (run / "backbone.safetensors").is_file():
        raise UserError(
            f"{run} has no backbone.safetensors yet: let the run finish, continue it with ssl-zoo resume run={run}, or judge "
            f"weights={run}/checkpoints/backbone.safetensors in place of run."
        )
    if config.net != "auto" and not (run / "checkpoints" / "last.ckpt").is_file():
        raise UserError(f"net={config.net} is read from {run}/checkpoints/last.ckpt, which is missing: use net=auto.")
    return trained


def dataset_name(config: DictConfig) -> str:
    """What a data set is called: its path's last part, else its own name; "" where the config has none."""
    if "dataset" not in config:
        return ""
    path = config.dataset.get("path")
    return (Path(path).name or "data") if path and "name" not in config.dataset else str(config.dataset.get("name", "shapes")).lower()


def judged_folder(config: DictConfig) -> Path:
    """Where eval/ and report.html are written."""
    if config.out:
        return Path(config.out).expanduser()
    return Path(config.run) if config.run else Path("judged") / re.sub(r"[^\w.-]+", "_", config.weights)
