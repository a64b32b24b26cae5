"""Rows of the benchmark table: runs that differ in their seed only, as mean and standard deviation."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_zoo.fingerprint import ABSENT, flat
from ssl_zoo.reports.collect import Problem, Run, number, table
from ssl_zoo.reports.published import Published, published

LABELS = {
    "knn_top1": "kNN",
    "linear_top1": "linear top-1",
    "linear_top5": "linear top-5",
    "online_linear_top1": "online linear",
}
COLUMNS_OF_ITS_OWN = ("epochs", "batch_size", "data.subset", "trainer.max_epochs", "trainer.devices", "trainer.num_nodes",
                      "trainer.accumulate_grad_batches")  # fmt: skip


@dataclass(frozen=True)
class Measure:
    """Mean and sample standard deviation over seeds (None for one seed), in percent; whether it is the best that it compares with."""

    mean: float
    std: float | None
    values: tuple[float, ...]
    protocol: str


@dataclass
class Group:
    """A row."""

    method: str
    backbone: str
    dataset: str
    runs: list[Run]
    stale: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    unchecked: str = ""
    variant: str = ""
    measures: dict[str, Measure] = field(default_factory=dict)
    best: set[str] = field(default_factory=set)
    published: list[Published] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.method} ({self.variant})" if self.variant else self.method

    def mean(self, *keys: str) -> float | None:
        """The mean over seeds of a number of summary.json."""
        found = [number(table(r.summary, *keys[:-1]).get(keys[-1])) for r in self.runs]
        kept = [v for v in found if v is not None]
        return statistics.fmean(kept) if kept else None

    def texts(self, key: str) -> list[str]:
        """What the runs say under a key of summary.json, each once."""
        return list(dict.fromkeys(str(r.summary[key]) for r in self.runs if r.summary.get(key)))

    @property
    def minutes(self) -> float | None:
        seconds = self.mean("seconds", "total")
        return None if seconds is None else seconds / 60


def group(
    runs: Iterable[Run],
    names: Mapping[str, list[str]],
    stale: Mapping[Path, dict[str, tuple[Any, Any]]],
    unchecked: Mapping[Path, str],
) -> tuple[list[Group], list[Problem]]:
    """The rows in the order of the table, and the runs that only repeat a seed. names: the methods and data sets there are."""
    found: dict[Any, dict[Any, Run]] = {}
    repeats = []
    for run in runs:  # in the order of their paths, where a later time comes later
        seeds = found.setdefault((run.group, run.summary["name"], tuple(stale.get(run.folder, ()))), {})
        if before := seeds.pop(run.seed, None):
            repeats.append(Problem(before.folder, f"seed {run.seed} of the same config is also in {run.folder}, which is the one shown"))
        seeds[run.seed] = run
    groups = [_group([seeds[s] for s in sorted(seeds, key=_order)], names, stale, unchecked) for seeds in found.values()]
    groups.sort(key=lambda g: (g.dataset, g.backbone, bool(g.stale), g.method, _order(g.mean("epochs"))))
    _name_variants(groups)
    _mark_best(groups)
    return groups, repeats


def _order(value: Any) -> tuple[bool, float, str]:
    found = number(value)
    return (found is None, found or 0.0, str(value))


def _group(runs: list[Run], names: Mapping[str, list[str]], stale: Mapping, unchecked: Mapping) -> Group:
    first = runs[0]
    method, backbone, dataset = split_name(first.summary["name"], names)
    data = table(first.config, "data")
    subset, apart = number(data.get("subset")), number(data.get("held_out"))
    dataset += "" if subset is None else f"[:{subset:.0f}]"
    row = Group(method, backbone, dataset if apart is None else f"{dataset} ({apart:.0f} held out)", runs)
    for run in runs:
        row.stale |= stale.get(run.folder, {})
        row.unchecked = row.unchecked or unchecked.get(run.folder, "")
    columns = [c for c in LABELS if any(c in r.at_end for r in runs)]
    for column in dict.fromkeys([*columns, *(c for r in runs for c in r.judged)]):
        # what `ssl-zoo eval` found only where every seed was judged in the same way: two protocols make no mean
        judged = [r.judged[column] for r in runs if column in r.judged]
        alike = len({j.protocol for j in judged}) == 1
        at_end = [r.at_end[column] for r in runs if column in r.at_end]
        results = judged if alike and (len(judged) == len(runs) or not at_end) else at_end
        if not results:
            continue
        values = tuple(r.value for r in results)
        std = statistics.stdev(values) if len(values) > 1 else None
        how = "; ".join(dict.fromkeys(r.protocol for r in results))
        row.measures[column] = Measure(statistics.fmean(values), std, values, how)
    row.published = published(method, backbone, row.dataset)
    return row


def split_name(name: str, names: Mapping[str, list[str]]) -> tuple[str, str, str]:
    """<method>_<backbone>_<dataset>, each of which may have underscores, with the names there are as a guide."""
    method = max((m for m in names["method"] if name.startswith(f"{m}_")), key=len, default=name.split("_")[0])
    rest = name.removeprefix(method).removeprefix("_").split("+")[0]
    dataset = max((d for d in names["dataset"] if rest.endswith(f"_{d}")), key=len, default=rest.rpartition("_")[2])
    return method, rest.removesuffix(dataset).removesuffix("_"), dataset


def _name_variants(groups: list[Group]) -> None:
    """Rows of the same method, backbone, data set and epochs are told apart by the keys that differ."""
    alike: dict[Any, list[Group]] = {}
    for g in groups:
        alike.setdefault((g.method, g.backbone, g.dataset, g.runs[0].summary["epochs"], g.mean("global_batch")), []).append(g)
    for rows in alike.values():
        configs = [flat(g.runs[0].config) for g in rows]
        keys = [k for k in dict.fromkeys(k for c in configs for k in c) if k not in ("seed", *COLUMNS_OF_ITS_OWN)]
        differing = [k for k in keys if any(c.get(k, ABSENT) != configs[0].get(k, ABSENT) for c in configs)]
        differing = [k for k in differing if not k.startswith("evaluation.")] or differing
        for g, config in zip(rows, configs, strict=True):
            told = [f"{k.removeprefix('method.')}={config.get(k, ABSENT)}" for k in differing[:3]]
            g.variant = ", ".join([*told, f"and {len(differing) - 3} more"] if len(differing) > 3 else told)


def _mark_best(groups: list[Group]) -> None:
    """The highest of each column among rows of one data set, judged in the same way, that are not stale."""
    rivals: dict[Any, list[Group]] = {}
    for g in groups:
        for column, m in g.measures.items():
            if not g.stale:
                rivals.setdefault((g.dataset, column, m.protocol), []).append(g)
    for (_, column, _), rows in rivals.items():
        best = max(round(g.measures[column].mean, 1) for g in rows)
        for g in rows:
            if len(rows) > 1 and round(g.measures[column].mean, 1) == best:
                g.best.add(column)
