"""Numbers that others published (published.yaml), shown beside ours where method, backbone and data set agree; never mixed with them."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml


class Published(NamedTuple):
    """One published number, in percent."""

    metric: str
    value: float
    epochs: int
    protocol: str
    source: str

    @property
    def short(self) -> str:
        return f"{self.metric} {self.value:.1f} ({self.epochs} ep.)"

    @property
    def how(self) -> str:
        return f"{self.source}: {self.protocol}"


@cache
def _all() -> dict[tuple[str, str, str], list[Published]]:
    table = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8"))
    found: dict[tuple[str, str, str], list[Published]] = {}
    for key, block in table.items():
        dataset, backbone, _ = key.split(" / ")
        for method, by_epochs in block["results"].items():
            for epochs, value in by_epochs.items():
                entry = Published(block["metric"], float(value), int(epochs), block["protocol"], block["source"])
                found.setdefault((method, backbone, dataset), []).append(entry)
    return found


def published(method: str, backbone: str, dataset: str) -> list[Published]:
    """What others published for this method, backbone and data set, short trainings first."""
    return sorted(_all().get((method, backbone, dataset), []), key=lambda p: (p.epochs, p.metric, p.source))
