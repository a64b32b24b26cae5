"""Sentences with a place for the name of a class, and where the configs lie that hold those of ssl_zoo."""

from collections.abc import Sequence
from pathlib import Path

from ssl_zoo.errors import UserError, one_line
from ssl_zoo.word_lists import text_lines

PLACE = "{}"


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


def spoken(names: Sequence[str]) -> list[str]:
    """What classes are called in a sentence: spaces for underscores."""
    return [" ".join(name.replace("_", " ").split()) for name in names]


def only_numbers(names: Sequence[str]) -> bool:
    """Whether classes have nothing but numbers for names, so that sentences of them mean little."""
    return all(name.strip().lstrip("-").replace(".", "", 1).isdigit() for name in names)


def templates(given: str | Sequence[str], key: str = "data.prompts") -> list[str]:
    """Sentences that hold {} once, where the name of a class goes: a list of ssl_zoo by its name ("photo"), a list, a single sentence, or a
    text file with one a line. UserError, which names the config's `key`, for anything else.
    """
    if not isinstance(given, str):
        found = [*given]
    elif PLACE in given or not given:
        found = [given]
    else:
        known = shipped()
        file = str(conf_dir() / "templates" / f"{given}.txt") if given in known else given
        absent = f"is neither {', '.join(known)} nor a file, and has no {{}} for the name of a class: give one of these."
        found = text_lines(file, key, "sentence", absent)
    for sentence in found:
        if not isinstance(sentence, str) or sentence.count(PLACE) != 1:
            said = one_line(sentence)[:80]
            raise UserError(f"{key}: '{said}' must hold {{}} once, where the name of a class goes, as in 'a photo of a {{}}.'")
    if not found:
        raise UserError(f"{key}={given or '[]'} holds no sentence: write some such as 'a photo of a {{}}.', or use photo.")
    return list(dict.fromkeys(found))
