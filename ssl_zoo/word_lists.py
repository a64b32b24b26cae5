"""Words and sentences that a person gives: a list, or a text file with one a line. Needs no torch."""

import os
from collections.abc import Sequence
from pathlib import Path

from ssl_zoo.errors import UserError, one_line

LARGEST = 1 << 22  # bytes of a file of words


def word_list(given: str | Sequence[str], key: str) -> list[str]:
    """The words of a list, or of a text file with one a line, without the white space around them. UserError, which names the config's
    `key`, where there are none or a line of several is empty.
    """
    absent = f"is no file: give a list such as {key}=[cat,dog], or a text file with one word a line."
    words = [str(w).strip() for w in (text_lines(given, key, "word", absent) if isinstance(given, str) else given)]
    if not any(words):
        raise UserError(f"{key} holds no word: give some, as in {key}=[cat,dog], or a text file with one a line.")
    if not all(words):
        raise UserError(f"{key} holds an empty word (number {words.index('') + 1}): leave it out.")
    return words


def text_lines(place: str, key: str, what: str, absent: str) -> list[str]:
    """The lines of a text file that hold something. UserError, which names the config's `key`, for a file that cannot be read so.

    what: is on each line ("word"). absent: the end of the sentence where `place` is no file.
    """
    file, said = Path(os.path.expanduser(place)), one_line(place)[:160]
    if not os.path.isfile(file):
        raise UserError(f"{key}={said} {absent}")
    try:
        if file.stat().st_size > LARGEST:
            raise UserError(f"{key}={said} is larger than 4 MB: it should be a text file with one {what} a line.")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        why = "it is not UTF-8" if isinstance(e, UnicodeDecodeError) else e.strerror
        raise UserError(f"{key}={said} cannot be read ({why}): it should be a text file with one {what} a line.") from e
    if "\0" in text:
        raise UserError(f"{key}={said} is no text: it should be a file with one {what} a line.")
    return [line.strip() for line in text.splitlines() if line.strip()]
