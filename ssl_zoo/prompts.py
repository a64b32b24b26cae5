"""Sentences with a place for the name of a class, and where the configs lie that hold those of ssl_zoo."""

import os
from collections.abc import Sequence
from pathlib import Path

from ssl_zoo.errors import UserError, one_line

PLACE = "{}"
LARGEST = 1 << 20  # bytes of a file of sentences


def conf_dir() -> Path:
    """The folder of configs: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(f"The configs are missing from {here}: install ssl-zoo again.")


def shipped() -> list[str]:
    """Names of the lists of sentences that come with ssl_zoo."""
    return sorted(f.stem for f in (conf_dir() / "templates").glob("*.txt"))


def templates(given: str | Sequence[str], key: str = "data.prompts") -> list[str]:
    """Sentences that hold {} once, where the name of a class goes: a list of ssl_zoo by its name ("photo"), a list, a single sentence, or a
    text file with one a line. UserError, which names the config's `key`, for anything else.
    """
    if not isinstance(given, str):
        found = [*given]
    elif given in shipped():
        found = _lines(conf_dir() / "templates" / f"{given}.txt", key)
    else:
        found = [given] if PLACE in given or not given else _lines(Path(os.path.expanduser(given)), key)
    for sentence in found:
        if not isinstance(sentence, str) or sentence.count(PLACE) != 1:
            said = one_line(sentence)[:80]
            raise UserError(f"{key}: '{said}' must hold {{}} once, where the name of a class goes, as in 'a photo of a {{}}.'")
    if not found:
        raise UserError(f"{key}={given or '[]'} holds no sentence: write some such as 'a photo of a {{}}.', or use photo.")
    return list(dict.fromkeys(found))


def _lines(file: Path, key: str) -> list[str]:
    if not os.path.isfile(file):
        known, said = ", ".join(shipped()), one_line(file)[:160]
        raise UserError(f"{key}={said} is neither {known} nor a file, and has no {{}} for the name of a class: give one of these.")
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"{key}={file} is larger than 1 MB: it should be a text file with one sentence a line.")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        why = "it is not UTF-8" if isinstance(e, UnicodeDecodeError) else e.strerror
        raise UserError(f"{key}={file} cannot be read ({why}): it should be a text file with one sentence a line.") from e
    return [line.strip() for line in text.splitlines() if line.strip()]
