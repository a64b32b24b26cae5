"""`ssl-zoo eval`: judge a backbone on a data set by a protocol, and write down what was found."""

import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ssl_zoo.build import Data, build_data
from ssl_zoo.config import plain
from ssl_zoo.data.decode import cache_dir
from ssl_zoo.data.images import Images
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.frozen import frozen
from ssl_zoo.evaluation.pictures import figure_data, save_figure_data
from ssl_zoo.files import whole
from ssl_zoo.judging import dataset_name, judged_folder, of_its_own
from ssl_zoo.nn.device import pick_device
from ssl_zoo.protocols import Evaluation, run_protocol
from ssl_zoo.reports.summary import commit, finite, versions
from ssl_zoo.saved import load_run
from ssl_zoo.shortage import explained
from ssl_zoo.subject import Judged, of_run, of_weights
from ssl_zoo.word_protocols import by_words, lacking
from ssl_zoo.words import towers_of

Judgement = tuple[Path, dict[str, Any]]


def evaluate_all(config: DictConfig, trained: DictConfig | None, wanted: dict[str, tuple[DictConfig, str]]) -> Iterator[Judgement]:
    """`ssl-zoo eval`: judge one backbone on every data set of `wanted`: {name: (config, letters that set the names of files apart where a
    setting is not the usual one)}. Gives the file that was written and what is in it, one by one.
    """
    device = pick_device(config.device)
    for number, (name, (asked, variant)) in enumerate(wanted.items()):
        data = _data_for(asked, trained)
        options = plain(config.protocol)
        words = by_words(options, trained, data, of_its_own(config))
        if "between" in options:
            options["between"] = "words" if words else "images"
        judged = _judged(config, trained, data, words, device)
        for note in judged.notes if not number else ():
            print(note)
        cache = cache_dir(config.data.cache) / "features" if config.features.cache else None
        taps = {k: v for k, v in plain(config.features).items() if k != "cache"}
        e = Evaluation(judged, data, options, taps, config.seed, device, config.batch_size, cache, said=_said)
        e.held_out = list(trained.dataset.get("held_out") or []) if trained else []
        for other in e.options.get("compare", []):
            e.others[other] = _compared(other, judged, config, trained, data, device)
            for note in () if number else e.others[other].notes:  # type: ignore[attr-defined]
                print(note)
        about = {"dataset": name or dataset_name(trained), "path": _path(asked)}  # type: ignore[arg-type]
        if trained and "dataset" not in asked and trained.data.held_out:
            about["held_out_of_train"] = True  # what is judged on
        result = evaluate(e, {**judged.about, **about})
        folder = judged_folder(config)
        if not number and not (folder / "figures" / "data.npz").is_file():  # a run's are made when it ends
            with torch.no_grad():
                features = e.features(data.test)
                made = figure_data(judged.backbone, data.test, features, judged.mean, judged.std, seed=e.seed)
            save_figure_data(folder / "figures", made)
        yield save_result(folder / "eval", name, config, variant, result), result


def _judged(config: DictConfig, trained: DictConfig | None, data: Data, words: bool, device: torch.device) -> Judged:
    if trained is None:
        return of_weights(config, data, device)
    if words:
        return towers_of(Path(config.run), trained, config.image_size, device)
    return of_run(Path(config.run), trained, data, config.net, config.image_size, device)


def _said(epoch: int, epochs: int, top1: float) -> None:
    if epoch % max(1, epochs // 10) == 0 and epoch < epochs:
        print(f"epoch {epoch}/{epochs}  top-1 {top1:.1f} %", flush=True)


def _data_for(asked: DictConfig, trained: DictConfig | None) -> Data:
    """The data set of the command, else the run's own, decoded and cached as the command says."""
    if "dataset" in asked or trained is None:
        return build_data(asked)
    for key, usual in (("subset", None), ("cache", None), ("decoded", "auto")):
        if asked.data[key] != usual:
            trained.data[key] = asked.data[key]
            if key in trained.dataset:
                trained.dataset[key] = asked.data[key]
    return build_data(trained)


def _path(asked: DictConfig) -> str | None:
    """Where the data of `dataset=` lies."""
    path = (asked.get("dataset") or {}).get("path")
    return str(Path(path).expanduser().resolve()) if path else None


def _compared(other: str, judged: Judged, config: DictConfig, trained: DictConfig | None, data: Data, device: torch.device) -> Judged:
    """A run folder, or a file of weights of the judged one's architecture, that it is compared with; a file that does not say how its
    images are normalised gets those of the judged one.
    """
    if Path(other).is_dir():
        return of_run(Path(other), load_run(other, trust=config.trust), data, config.net, config.image_size, device)
    asked = OmegaConf.merge(config, {"weights": other}, {"backbone": trained.backbone} if trained else {})
    return of_weights(asked, data, device, judged)  # type: ignore[arg-type]


def evaluate(e: Evaluation, about: dict[str, Any]) -> dict[str, Any]:
    """The result of one protocol, as it is written to <name>.json. about: what is said of the weights.

    Raises UserError where the data lack what the protocol needs, RuntimeError if the frozen backbone was changed.
    """
    name = e.options["name"]
    if reason := lacking(name, e.options.get("between"), e.data):
        raise UserError(reason)
    start, own = time.perf_counter(), e.options.get("batch_size")
    doing = f"judging {name} with batch_size={e.batch_size} on images of {e.subject.image_size} px"
    tries = [f"{key}={max(2, size // 2)}" for key, size in (("batch_size", e.batch_size), ("protocol.batch_size", own)) if size]
    with explained(doing, [*tries, "device=cpu" if e.device.type != "cpu" else "data.subset"]), frozen(e.subject.backbone) as e.weights:
        told = run_protocol(e)
    seconds = time.perf_counter() - start
    features = {"net": about.get("net", "auto"), **told.pop("tap", e.taps), "image_size": e.subject.image_size}
    return finite(
        {
            "protocol": name,
            "settings": {k: v for k, v in e.options.items() if k != "name"},
            **{k: v for k, v in about.items() if k != "net"},
            "train_images": _counted(e.data.train),
            "test_images": _counted(e.data.test),
            "classes": e.classes,
            "features": features | ({"dim": e.dim} if e.dim else {}),
            "weights": e.weights,
            "seed": e.seed,
            **told,
            "seconds": {"features": round(e.extracting, 2), "protocol": round(seconds - e.extracting, 2)},
            "versions": versions(),
            "commit": commit(),
        }
    )


def _counted(images: Images) -> int:
    """Images with a label that can be read; all of them where there are no labels."""
    return len(images) if images.labels is None else len(images.labelled)


def _is_of_another_path(file: Path, path: str | None) -> bool:
    """Whether `file` holds a result on data of another place."""
    try:
        there = json.loads(file.read_text(encoding="utf-8")).get("path") if path and file.is_file() else None
    except (ValueError, AttributeError):
        return False
    return there not in (None, path)


def save_result(folder: Path, dataset: str, config: DictConfig, variant: str, result: dict[str, Any]) -> Path:
    """Write <protocol>[-<data set>][-<features>][-<variant>].json into `folder`; the name tells apart what is not the usual."""
    f = config.features
    tapped = [config.net] if config.net != "auto" else []
    tapped += [f.layer] if f.layer else []
    tapped += [f.pool if f.layer else f"{f.pool}{f.blocks}"] if f.blocks > 1 or f.pool != "auto" else []
    name = "-".join([result["protocol"], *([dataset] if dataset else []), *tapped, *([variant] if variant else [])])
    file = folder / (re.sub(r"[^\w.-]+", "_", name) + ".json")
    if _is_of_another_path(file, result.get("path")):  # folders of one name
        file = file.with_stem(f"{file.stem}-{hashlib.blake2b(result['path'].encode(), digest_size=3).hexdigest()}")
    folder.mkdir(parents=True, exist_ok=True)
    lines = (f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in result.items())  # a large confusion matrix is one line
    with whole(file) as f:
        f.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())
    return file
