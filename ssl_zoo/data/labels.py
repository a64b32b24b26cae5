"""Labels as files hold them, to class numbers."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.errors import UserError

log = logging.getLogger("ssl_zoo")


class Classes:
    """The numbering of the labels of train, for every split. given: class names that the file states; its labels are positions in them.
    Without: the sorted labels themselves. -1, null and NaN are unlabelled.
    """

    def __init__(self, column: str, values: Sequence[Any], given: list[str] | None = None) -> None:
        self.column, self.given = column, given
        found: list[Any] = given or sorted({self._label(v) for v in values} - {None})
        self.names = [str(v) for v in found]
        self.numbers: dict[Any, int] = {v: i for i, v in enumerate(found)}
        if given:
            self.numbers |= {i: i for i in range(len(given))}

    def number(self, values: Sequence[Any]) -> Tensor:
        """Class numbers [n]; -1 for unlabelled and for what train does not hold."""
        labels = [self._label(v) for v in values]
        unknown = [v for v in labels if v is not None and v not in self.numbers]
        outside = [v for v in unknown if self.given and isinstance(v, int)]
        if outside:
            raise UserError(
                f"Column '{self.column}' holds the label {outside[0]}, but the file names {len(self.names)} classes (0 to "
                f"{len(self.names) - 1}): correct it or choose another column with dataset.label_column=..."
            )
        if unknown:
            shown = ", ".join(sorted({str(v) for v in unknown})[:10])
            log.warning("%d labels are not among the classes of train and count as unlabelled: %s", len(unknown), shown)
        return torch.tensor([self.numbers.get(v, -1) for v in labels], dtype=torch.long)

    def _label(self, value: Any) -> int | str | None:
        if isinstance(value, str):
            return value
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            return None if value == -1 else int(value)
        raise UserError(
            f"Column '{self.column}' holds {str(value)[:40]}, which is no class label (text or a whole number): "
            f"choose another column with dataset.label_column=..."
        )
