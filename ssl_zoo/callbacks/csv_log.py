"""metrics.csv: one row per logged step, readable while the run goes on, kept across a resume."""

import csv
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class CSVLog(Logger):
    """Append metrics to `folder`/metrics.csv. After a resume, rows from the resumed step on are written anew."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.file = Path(folder) / "metrics.csv"
        self.rows: list[dict[str, Any]] | None = None
        self.columns = ["step", "epoch"]

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
            self.rows = [r for r in self._read() if int(r["step"]) < step]
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

    def _read(self) -> list[dict[str, Any]]:
        if not self.file.is_file():
            return []
        with open(self.file, newline="", encoding="utf-8") as f:
            reader = csv.DictReader(f)
            rows = [{k: v for k, v in r.items() if v not in ("", None)} for r in reader]
            self.columns = list(reader.fieldnames or self.columns)
        return [r for r in rows if r.get("step", "").isdigit()]

    def _write(self) -> None:
        part = self.file.with_suffix(".part")
        with open(part, "w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, self.columns)
            writer.writeheader()
            writer.writerows(self.rows or [])
        os.replace(part, self.file)

    def _append(self, row: dict[str, Any]) -> None:
        with open(self.file, "a", newline="", encoding="utf-8") as f:
            csv.DictWriter(f, self.columns).writerow(row)
