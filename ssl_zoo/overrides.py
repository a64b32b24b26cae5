"""Overrides in Hydra's grammar: read from words, and written so that they read back the same."""

import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from ssl_zoo.errors import UserError, one_line


def parse(overrides: list[str]) -> list[Override]:
    for text in overrides:
        if ("=" not in text and not text.startswith("~")) or text.startswith("="):
            raise UserError(f"'{text}' is neither a verb nor an override of the form key=value; see ssl-zoo --help.")
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as e:
        raise UserError(f"Cannot read '{str(e.override)[:160]}': write key=value, with quotes round special characters.") from e
    except Exception as e:  # of Hydra's parser: a number of 5,000 digits, for one
        raise UserError(f"The command cannot be read ({one_line(e)[:200]}): write key=value, with quotes round special characters.") from e


def override(key: str, value: Any) -> str:
    """key=value as Hydra reads it back, whatever the value holds: text, a path, a number, true, null, or a list or table of these."""
    return f"{key}={_quoted(value)}"


def _quoted(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{_quoted(k)}:{_quoted(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_quoted, value)) + "]"
    text = str(value)
    if ("/" in text and re.fullmatch(r"[\w./+-]+", text, re.ASCII)) or (
        re.fullmatch(r"[A-Za-z_][\w.-]*", text, re.ASCII) and text.lower() not in ("null", "true", "false", "nan", "inf")
    ):
        return text
    quoted = re.sub(r"(\\+)(?='|$)", r"\1\1", text).replace("'", "\\'")  # elsewhere a backslash is one
    return f"'{quoted}'"
