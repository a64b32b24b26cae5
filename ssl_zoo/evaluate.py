"""`ssl-zoo eval`: judge a backbone on a data set by a protocol, and write down what was found."""

import json
import re
import time
from pathlib import Path
from typing import Any

from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.frozen import frozen
from ssl_zoo.evaluation.labelled import labelled_pair
from ssl_zoo.protocols import Evaluation, run_protocol
from ssl_zoo.reports.summary import commit, finite, versions


def evaluate(e: Evaluation, about: dict[str, Any]) -> dict[str, Any]:
    """The result of one protocol, as it is written to <name>.json. about: what is said of the weights.

    Raises UserError where the data lack what the protocol needs, RuntimeError if the frozen backbone was changed.
    """
    name = e.options["name"]
    reason = labelled_pair(e.data.train, e.data.test)
    if reason and name != "health":
        raise UserError(f"eval protocol={name} needs labels, but {reason}: use protocol=health.")
    start = time.perf_counter()
    with frozen(e.subject.backbone) as e.weights:
        told = run_protocol(e)
    seconds = time.perf_counter() - start
    return finite(
        {
            "protocol": name,
            "settings": {k: v for k, v in e.options.items() if k != "name"},
            **{k: v for k, v in about.items() if k != "net"},
            "train_images": len(e.data.train),
            "test_images": len(e.data.test),
            "classes": e.classes,
            "features": {
                "net": about.get("net", "auto"),
                **e.taps,
                "image_size": e.subject.image_size,
                **({"dim": e.dim} if e.dim else {}),
            },
            "weights": e.weights,
            "seed": e.seed,
            **told,
            "seconds": {"features": round(e.extracting, 2), "protocol": round(seconds - e.extracting, 2)},
            "versions": versions(),
            "commit": commit(),
        }
    )


def save_result(folder: Path, dataset: str, config: Any, result: dict[str, Any]) -> Path:
    """Write <protocol>[-<data set>][-<features>].json into `folder`; the name tells apart what is not the run's own default."""
    f = config.features
    tapped = [config.net] if config.net != "auto" else []
    tapped += [f.layer] if f.layer else [f"{f.pool}{f.blocks}"] if f.blocks > 1 or f.pool != "auto" else []
    name = "-".join([result["protocol"], *([dataset] if dataset else []), *tapped])
    file = folder / (re.sub(r"[^\w.-]+", "_", name) + ".json")
    folder.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(file)
    return file
