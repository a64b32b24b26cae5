"""Which configs train the same: the hash in summary.json, the group of runs that differ in their seed only, and what has changed."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

ASIDE = ("run", "out", "logger", "resume", "checkpoint", "guard", "preemption")
LOADING = ("decoded", "resident", "workers", "worker_kind")  # who loads the data and how, not which
# keys that older configs lack, with the value under which they trained
LATER = {"chunk_size": None, "optimizer.eps": None, "data.prompts": None, "data.held_out": None, "dataset.captions": "auto",
         "dataset.labels": "shape", "dataset.held_out": [], "augment.early_size": None, "augment.early_share": 0.6}  # fmt: skip
ABSENT = "absent"


def config_hash(config: Mapping[str, Any]) -> str:
    """A hash of everything that decides the result: the config without where it is written, when it stops or waits, who loads the data and
    how features are pictured. How data is decoded is part of the data sets that it decides the order of.
    """
    decisive = {k: v for k, v in config.items() if k not in ASIDE and not _as_ever(k, v)}
    decisive["data"] = {k: v for k, v in decisive["data"].items() if k not in LOADING and not _as_ever(f"data.{k}", v)}
    for group in ("dataset", "augment", "optimizer"):
        decisive[group] = {k: v for k, v in decisive[group].items() if not _as_ever(f"{group}.{k}", v)}
    for group in ("data", "dataset"):  # where images are cached
        decisive[group] = {k: None if k == "cache" else v for k, v in decisive[group].items()}
    decisive["trainer"] = {k: v for k, v in decisive["trainer"].items() if k != "timeout_s"}
    decisive["evaluation"] = {k: v for k, v in decisive["evaluation"].items() if k != "map"}
    return _hash(decisive)


def _as_ever(key: str, value: Any) -> bool:
    """Whether a key says what went without saying before there was such a key."""
    return key in LATER and value == LATER[key]


def group_hash(config: Mapping[str, Any]) -> str:
    """The same for all seeds of a config, wherever its data is cached."""
    return _hash({k: v for k, v in flat(config).items() if k != "seed" and not _as_ever(k, v)})


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a result as {dotted key: value}, without folders that are only written to."""
    return {k: v for k, v in (LATER | dict(leaves(config))).items() if decides(k)}


def decides(key: str) -> bool:
    """Whether a dotted key decides a result."""
    aside = {"run", "out", "resume", "trust", "trainer.timeout_s", *(f"data.{k}" for k in LOADING)}
    aside |= {"dataset.cache", "dataset.decoded", "data.cache", "evaluation.map"}
    return key not in aside and not key.startswith(("logger.", "checkpoint.", "guard.", "preemption."))


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a config, an empty table being a value."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changes(saved: Mapping[str, Any], now: Mapping[str, Any], paths: bool = True) -> dict[str, tuple[Any, Any]]:
    """{key: (value of a saved config, value of today)} where they differ; `paths` tells whether the place of the data counts.

    What came to `data`, `trainer` and `evaluation` after the run is no difference: such a run is resumed under their defaults.
    """
    a, b = flat(saved), flat(now)
    late = {k for k in b if k not in a and k.startswith(("data.", "trainer.", "evaluation."))}
    keys = [k for k in dict.fromkeys([*a, *b]) if k not in late and (paths or k != "dataset.path")]
    found = {k: (a.get(k, ABSENT), b.get(k, ABSENT)) for k in keys if a.get(k, ABSENT) != b.get(k, ABSENT)}
    if "epochs" in found:  # which sets it
        found.pop("trainer.max_epochs", None)
    for key in ("trainer.devices", "trainer.num_nodes"):  # a run that SLURM or torchrun started has saved what "auto" was there
        if "auto" in (pair := found.get(key, ())) or -1 in pair:
            del found[key]
    return found
