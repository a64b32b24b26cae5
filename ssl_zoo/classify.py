"""`ssl-zoo classify`: which pictures, which labels and which run are meant; needs no torch."""

import os
import re
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from ssl_zoo.config import compose, plain
from ssl_zoo.errors import UserError, one_line
from ssl_zoo.judging import knows_words
from ssl_zoo.overrides import parse
from ssl_zoo.prompts import PLACE, templates
from ssl_zoo.saved import load_run
from ssl_zoo.word_lists import word_list

USAGE = 'ssl-zoo classify image=photo.jpg labels="cat,dog" run=runs/<name>/<time>'


def classify_config(words: list[str], config_dirs: list[str]) -> DictConfig:
    """conf/classify.yaml under the words of the command, with `image`, `labels` and `templates` as lists. What a person writes is no
    grammar: image=a.jpg,b.jpg and labels=cat,dog need no quotes and may hold any character; a list in brackets is Hydra's.
    """
    free = {key: given(words, key) for key in ("image", "labels", "templates")}
    config = compose("classify", [w for w in words if w.partition("=")[0] not in free], config_dirs)
    for key in ("image", "labels"):
        if not free[key] or (isinstance(free[key], str) and not free[key].replace(",", "").strip()):  # type: ignore[union-attr]
            raise UserError(f"classify needs {key}: {USAGE}.")
    found = {"image": separated(free["image"] or []), "labels": word_list(_labels(free["labels"] or []), "labels")}
    if free["templates"] is not None and free["templates"] != "null":
        found["templates"] = templates(free["templates"], "templates")
    for key, values in found.items():
        config[key] = literal(values)
    return config


def literal(values: list[str]) -> ListConfig:
    """Texts as they stand: ${ in a config would be read as the name of another key."""
    return OmegaConf.create([re.sub(r"(\\*)\$\{", r"\1\1\\${", v) for v in values])


def given(words: list[str], key: str) -> str | list[str] | None:
    """What follows key=, as it stands, or a list in brackets; None where no word says so."""
    found = [w for w in words if w.startswith(f"{key}=")]
    if len(found) > 1:
        raise UserError(f"{key}=... is given {len(found)} times: put all into one, separated by commas.")
    text = found[0].partition("=")[2].strip() if found else None
    if text is None or not text.startswith("["):
        return text
    values = parse(found)[0].value()
    if not isinstance(values, list) or any(isinstance(v, (list, dict)) for v in values):
        raise UserError(f"{key}={one_line(text)[:160]} is no plain list: write {key}=[one,two], with quotes round special characters.")
    return [str(v) for v in values]


def separated(text: str | list[str]) -> list[str]:
    """A list; the parts between commas, unless a file has that very name."""
    if isinstance(text, list):
        return text
    return [text] if os.path.exists(os.path.expanduser(text)) else [part.strip() for part in text.split(",") if part.strip()]


def check_pictures(key: str, files: list[str]) -> None:
    """Each must be there, and no folder. Raises UserError."""
    for file in files:
        path = Path(os.path.expanduser(file))
        if path.is_dir():
            raise UserError(f"{key}={one_line(file)[:160]} is a folder: name the pictures in it, separated by commas.")
        if not path.exists():
            raise UserError(f"{key}={one_line(file)[:160]} does not exist: check the path.")


def _labels(given: str | list[str]) -> str | list[str]:
    """A file of labels where it is one, or is called like one; else the labels between commas."""
    if isinstance(given, list):
        return given
    alone = "," not in given
    if os.path.isfile(os.path.expanduser(given)) or (
        alone and (given.endswith((".txt", ".csv")) or given.startswith(("./", "../", "/", "~/")))
    ):
        return given
    return [part.strip() for part in given.split(",")]


def check_classify(config: DictConfig) -> DictConfig:
    """The config of the run that is asked. Raises UserError where something is missing, twice there, or cannot be."""
    labels = plain(config)["labels"]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserError(f"labels holds '{one_line(twice[0])[:80]}' {labels.count(twice[0])} times: name each label once.")
    check_pictures("image", plain(config)["image"])
    if config.run is None:
        raise UserError(f"classify needs a run of clip or siglip: {USAGE}.")
    config.run = str(Path(config.run).expanduser())
    trained = load_run(config.run, trust=config.trust)
    knows_words(Path(config.run), trained, "classify")
    return trained


def sentences_for(label: str, prompts: list[str] | None) -> list[str]:
    """What is read of a label: itself, or the sentences with it in its place."""
    return [p.replace(PLACE, label) for p in prompts] if prompts else [label]
