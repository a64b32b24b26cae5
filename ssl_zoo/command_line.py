"""The words of a command line: options apart from key=value, and a command as it was given. Needs no Hydra."""

import shlex
from pathlib import Path

from ssl_zoo.errors import UserError


def split_options(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options ({name: value}) and the other words."""
    options: dict[str, str] = {}
    words: list[str] = []
    short = {"-h": "--help", "-m": "--multirun", "-c": "--cfg"}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            words.append(word)
            continue
        name, _, value = short.get(word, word).partition("=")
        if name in ("--help", "--version", "--multirun"):
            options[name[2:]] = ""
        elif name in ("--cfg", "--config-dir"):
            if not value and (not rest or "=" in rest[0] or rest[0].startswith("-")):
                raise UserError(f"{name} needs a value: {'--cfg job' if name == '--cfg' else '--config-dir FOLDER'}.")
            options[name[2:]] = value or rest.pop(0)
        else:
            from ssl_zoo.checks import unknown  # not for every --help

            raise unknown("option", word, ["--help", "--version", "--multirun", "--cfg", "--config-dir", "-m", "-h"])
    if options.get("cfg", "job") != "job":
        raise UserError("--cfg takes the word job: ssl-zoo ... --cfg job prints the composed config.")
    return options, words


def command_line(words: list[str], options: dict[str, str], verb: str = "") -> str:
    folder = ["--config-dir", options["config-dir"]] if "config-dir" in options else []
    return shlex.join(["ssl-zoo", *([verb] if verb else []), *folder, *words])


def config_dirs(options: dict[str, str]) -> list[str]:
    return [options["config-dir"]] if "config-dir" in options else []


def take_run(words: list[str], verb: str) -> tuple[Path, list[str]]:
    """The folder of run=... and the other words."""
    runs = [w.partition("=")[2] for w in words if w.startswith("run=")]
    if len(runs) != 1 or not runs[0]:
        raise UserError(f"{verb} needs one run folder: ssl-zoo {verb} run=runs/<name>/<time>.")
    if not Path(runs[0]).is_dir():
        raise UserError(f"run={runs[0]} is not a folder.")
    return Path(runs[0]), [w for w in words if not w.startswith("run=")]
