"""How many labels are meant. No torch here, so a bad value is refused at once."""

from typing import Any

from ssl_zoo.errors import UserError

WANTED = 'a share of each class ("1 %" or 0.01) or a whole number of images of each'


def amount(given: Any) -> tuple[str, float | int]:
    """The name and value of an amount of labels: "1 %" or 0.01 is a share of each class, 5 is five images of each.

    Raises UserError for anything else.
    """
    number = given
    if isinstance(given, str) and given.strip().endswith("%"):
        try:
            number = float(given.strip().rstrip("%")) / 100
        except ValueError:
            number = None
    if isinstance(number, float) and 0 < number <= 1:
        return f"{100 * number:g} %", number
    if isinstance(number, int) and not isinstance(number, bool) and number >= 1:
        return f"{number} per class", number
    raise UserError(f"protocol.labels={given} does not work: it takes {WANTED}.")
