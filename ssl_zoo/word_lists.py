"""Words that a person gives: a list, or a file with one a line. Needs no torch."""

import os
from collections.abc import Sequence
from pathlib import Path

from ssl_zoo.errors import UserError, one_line

LARGEST = 1 << 22  # bytes of a file of words


def word_list(given: str | Sequence[str], key: str) -> list[str]:
    """The words of a list, or of a text file with one a line, without the white space around them. UserError, which names the config's
    `key`, where there are none or a line of several is empty.
    """
    words = [str(w).strip() for w in (_lines(given, key) if isinstance(given, str) else given)]
    if not any(words):
        raise UserError(f"{key} holds no word: give some, as in {key}=[cat,dog], or a text file with one a line.")
    if not all(words):
        raise UserError(f"{key} holds an empty word (number {words.index('') + 1}): leave it out.")
    return words


def _lines(place: str, key: str) -> list[str]:
    file, said = Path(os.path.expanduser(place)), one_line(place)[:160]
    if not os.path.isfile(file):
        raise UserError(f"{key}={said} is no file: give a list such as {key}=[cat,dog], or a text file with one word a line.")
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"{key}={said} is larger than 4 MB: it should be a text file with one word a line.")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        why = "it is not UTF-8" if isinstance(e, UnicodeDecodeError) else e.strerror
        raise UserError(f"{key}={said} cannot be read ({why}): it should be a text file with one word a line.") from e
    if "\0" in text:
        raise UserError(f"{key}={said} is no text: it should be a file with one word a line.")
    return [line for line in text.splitlines() if line.strip()]
