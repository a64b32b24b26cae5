"""What other installed packages would add to a run unasked, kept out of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from unittest.mock import patch

from lightning.pytorch.trainer.connectors import callback_connector
from lightning.pytorch.utilities.rank_zero import rank_zero_only


@contextmanager
def none_of_others(group: str) -> Iterator[None]:
    """Lightning gives every Trainer the callbacks that installed packages name under the entry point `group`: not those made in here.

    They are not even imported: a run is what its config says, and a broken package must not end it.
    """
    packages = sorted({e.dist.name if e.dist else e.value.partition(".")[0] for e in entry_points(group=group)})
    if packages and not rank_zero_only.rank:
        print(f"left out      callbacks that other packages add to every run of Lightning ({', '.join(packages)})")
    with patch.object(callback_connector, "_load_external_callbacks", lambda _: []):
        yield
