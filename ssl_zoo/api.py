"""Every verb of `ssl-zoo` as a function.

    from ssl_zoo import api

    summary = api.pretrain(method="dino", backbone="vit_t", epochs=5)
    api.export(run=summary["run"], format="onnx", out="dino_onnx")

A keyword is a key of the configuration, as on the command line; keys with dots are written as overrides, or in a table:
`api.pretrain("optimizer.base_lr=0.3", method="simclr")` or `api.pretrain(**{"optimizer.base_lr": 0.3})`. Each function prints what its
command prints and returns what it made. What is wrong with the input raises `UserError`, a ValueError with one sentence; what ends a
command before its time raises `Ended` or KeyboardInterrupt. `config_dir` names a folder with more configs (--config-dir).
"""

from os import PathLike
from pathlib import Path
from typing import Any

from ssl_zoo.errors import Ended, UserError

__all__ = [
    "Ended",
    "UserError",
    "benchmark",
    "choices",
    "classify",
    "embed",
    "evaluate",
    "export",
    "pretrain",
    "preview",
    "report",
    "resume",
    "search",
    "shard",
]

AnyPath = str | PathLike[str]
AS_THEY_STAND = {  # what a command reads without Hydra's grammar
    "resume": ("run",),
    "report": ("run", "runs", "out"),
    "benchmark": ("suite",),
    "classify": (),
    "shard": ("data",),
    "embed": ("data",),
    "search": ("data",),
}


def _call(verb: str, overrides: tuple[str, ...], values: dict[str, Any], config_dir: AnyPath | None) -> Any:
    from ssl_zoo.cli import of_the_system
    from ssl_zoo.commands import HANDLERS
    from ssl_zoo.overrides import override

    raw = AS_THEY_STAND.get(verb, ())
    values = {k: v for k, v in values.items() if v is not None or k not in raw}
    words = [f"{k}={Path(v).expanduser() if k in ('run', 'out') else v}" if k in raw else override(k, v) for k, v in values.items()]
    try:
        return HANDLERS[verb]([*words, *overrides], {} if config_dir is None else {"config-dir": str(config_dir)})
    except (MemoryError, RuntimeError, OSError) as e:
        if (sentence := of_the_system(e)) is None:
            raise
        raise UserError(sentence) from e


def _listed(files: AnyPath | list[AnyPath]) -> list[AnyPath]:
    """A list is read whatever its names hold; text alone would be parted at its commas."""
    return files if isinstance(files, list) else [files]


def pretrain(*overrides: str, config_dir: AnyPath | None = None, **values: Any) -> dict[str, Any]:
    """Train a backbone without labels. Returns the summary of the run: "run" is its folder, "final" its numbers, "verdict" its health."""
    return _call("pretrain", overrides, values, config_dir)


def resume(run: AnyPath, *overrides: str, **values: Any) -> dict[str, Any]:
    """Go on with a run where it stopped, as in `resume(run, epochs=200)`. Returns its summary."""
    return _call("resume", overrides, {"run": run, **values}, None)


def evaluate(*overrides: str, config_dir: AnyPath | None = None, **values: Any) -> list[dict[str, Any]]:
    """Judge run=... or weights=... by protocol=... (`choices("protocol")`). Returns a result for each data set, as its JSON file has it."""
    return _call("eval", overrides, values, config_dir)


def preview(*overrides: str, config_dir: AnyPath | None = None, **values: Any) -> Path:
    """Draw images and their views. Returns the picture."""
    return _call("preview", overrides, values, config_dir)


def shard(*overrides: str, config_dir: AnyPath | None = None, **values: Any) -> Path:
    """Pack data=... into a few large files in out=... Returns that folder."""
    return _call("shard", overrides, values, config_dir)


def export(run: AnyPath, format: str, *overrides: str, **values: Any) -> Path:
    """Write the backbone of a run for another library, and try it there. format: safetensors, timm, torchvision, onnx, torch_export,
    huggingface or open_clip. Returns the folder.
    """
    return _call("export", overrides, {"run": run, "format": format, **values}, None)


def embed(run: AnyPath, out: AnyPath, *overrides: str, config_dir: AnyPath | None = None, **values: Any) -> Path:
    """Write the features of all images of data=... (a folder, a parquet file or a name; the run's own where it is left out) into `out`,
    a .parquet or .npy file. Returns that file. The same call goes on where an earlier one was stopped.
    """
    return _call("embed", overrides, {"run": run, "out": out, **values}, config_dir)


def search(
    run: AnyPath, *overrides: str, query: AnyPath | list[AnyPath] | None = None, config_dir: AnyPath | None = None, **values: Any
) -> Path:
    """Look for the nearest neighbours of `query`, a picture or several, and for duplicates=0.98 (the least cosine) among the images of
    data=... Returns the folder with search.html, pictures and tables.
    """
    asked = {} if query is None else {"query": _listed(query)}
    return _call("search", overrides, {"run": run, **asked, **values}, config_dir)


def classify(run: AnyPath, image: AnyPath | list[AnyPath], labels: list[str], *overrides: str, **values: Any) -> list[dict[str, Any]]:
    """Judge pictures by words, with a run of clip or siglip. Returns {"image", "labels": {label: share}} for each, the best first."""
    return _call("classify", overrides, {"run": run, "image": _listed(image), "labels": labels, **values}, None)


def report(**values: Any) -> Path:
    """The page of run=..., or that of all runs=... (a folder or a pattern), into out=... Returns the page."""
    return _call("report", (), values, None)


def benchmark(suite: AnyPath, *overrides: str, config_dir: AnyPath | None = None, **values: Any) -> Path:
    """Train and judge all runs of a suite that are not finished. Returns the page of their table. Raises `Ended` where a run failed."""
    from ssl_zoo.overrides import override
    from ssl_zoo.suite import load_suite

    if _call("benchmark", overrides, {"suite": suite, **values}, config_dir):
        raise Ended(f"Some runs of {suite} failed, as told above: the same call tries them again.", 1)
    dirs = [] if config_dir is None else [str(config_dir)]
    known = load_suite(str(suite), [*(override(k, v) for k, v in values.items()), *overrides], dirs)
    return Path(known.cells[0].config["out"]) / known.name / "report" / "index.html"


def choices(group: str, config_dir: AnyPath | None = None) -> dict[str, str]:
    """The options of a group of the configuration (method, backbone, dataset, protocol, suite, ...) and what each is."""
    from ssl_zoo.checks import unknown
    from ssl_zoo.commands import LISTED
    from ssl_zoo.config import choice_names

    if group not in LISTED:
        raise unknown("group", group, LISTED)
    return choice_names(group, [] if config_dir is None else [str(config_dir)])
