"""Smaller views in the first part of training: most of what is learned there does not need the pixels."""

from typing import Any

from torch import Tensor, nn


class Early(nn.Module):
    """The engine `small` until `share` of training is done, then `full`; outside of training, `full`."""

    def __init__(self, small: nn.Module, full: nn.Module, share: float) -> None:
        super().__init__()
        self.small, self.full, self.share = small, full, share

    def at(self, progress: float) -> nn.Module:
        """The engine for what is to be seen at `progress` of training, 0 to 1."""
        return self.small if progress < self.share else self.full

    def forward(self, *args: Any) -> list[Tensor]:
        return self.full(*args)
