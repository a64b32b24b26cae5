"""metrics.csv: one row per logged step, readable while the run goes on, kept across a resume."""

import csv
import io
import logging
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from ssl_zoo.files import whole

log = logging.getLogger("ssl_zoo")


class CSVLog(Logger):
    """Append metrics to `folder`/metrics.csv. `start`: the step that training starts from, behind which rows are written anew; the row of
    that step itself may be of the end of a run that goes on. None: the first step that is logged.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.file = Path(folder) / "metrics.csv"
        self.rows: list[dict[str, Any]] | None = None
        self.columns = ["step", "epoch"]
        self.start: int | None = None

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run folder's config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        step = 0 if step is None else step
        if self.rows is None:
            last = step - 1 if self.start is None else self.start if self.start else -1
            self.rows = [r for r in self._read() if int(r["step"]) <= last]
            self._write()
        new = [k for k in metrics if k not in self.columns]
        self.columns += new
        row = {"step": step, **{k: float(v) for k, v in metrics.items()}}
        if "epoch" in row:
            row["epoch"] = int(row["epoch"])
        if self.rows and int(self.rows[-1]["step"]) == step:
            self.rows[-1].update(row)
            self._write()
        else:
            self.rows.append(row)
            self._write() if new else self._append(row)

    @rank_zero_only
    def sync(self) -> None:
        """Wait until the rows so far are on the disk."""
        if self.file.is_file():
            with open(self.file, "ab") as f:
                os.fsync(f.fileno())

    def _read(self) -> list[dict[str, Any]]:
        if not self.file.is_file():
            return []
        text = self.file.read_bytes().decode("utf-8", "replace")
        try:
            reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))  # a line without an end was cut off
            rows = [{k: v for k, v in r.items() if k and v not in ("", None)} for r in reader]
            self.columns = list(dict.fromkeys([*self.columns, *filter(None, reader.fieldnames or [])]))
            return [{**r, "step": int(r["step"])} for r in rows if r.get("step", "").isdecimal()]
        except (ValueError, csv.Error) as e:
            os.replace(self.file, self.file.with_suffix(".damaged"))
            log.warning("metrics.csv cannot be read (%s): it is kept as metrics.damaged, and a new one begins here", e)
            return []

    def _write(self) -> None:
        with whole(self.file, sync=False) as f:
            text = io.TextIOWrapper(f, encoding="utf-8", newline="", write_through=True)
            writer = csv.DictWriter(text, self.columns)
            writer.writeheader()
            writer.writerows(self.rows or [])
            text.detach()

    def _append(self, row: dict[str, Any]) -> None:
        with open(self.file, "a", newline="", encoding="utf-8") as f:
            csv.DictWriter(f, self.columns).writerow(row)
