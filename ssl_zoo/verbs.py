"""The verbs beside pretrain that need torch: eval, preview, shard."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress

from ssl_zoo.build import Data, build, build_augment, build_data
from ssl_zoo.config import plain
from ssl_zoo.data.decode import cache_dir
from ssl_zoo.data.pack import pack
from ssl_zoo.distributed import fold_seed
from ssl_zoo.errors import UserError
from ssl_zoo.evaluate import evaluate, save_result
from ssl_zoo.evaluation.features import centre
from ssl_zoo.judging import dataset_name, judged_folder
from ssl_zoo.protocols import Evaluation
from ssl_zoo.reports.figures import view_grid
from ssl_zoo.saved import load_run
from ssl_zoo.subject import Judged, of_run, of_weights


def pick_device(name: str) -> torch.device:
    if name != "auto":
        try:
            torch.empty(1, device=name)
        except (RuntimeError, AssertionError) as e:
            raise UserError(f"device={name} cannot be used here ({str(e).splitlines()[0]}): choose auto or cpu.") from e
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def evaluate_all(config: DictConfig, trained: DictConfig | None, wanted: dict[str, DictConfig]) -> list[tuple[Path, dict[str, Any]]]:
    """`ssl-zoo eval`: judge one backbone on every data set of `wanted`; the files that were written and what is in them."""
    device, found = pick_device(config.device), []
    for name, asked in wanted.items():
        data = _data_for(asked, trained)
        judged = (
            of_run(Path(config.run), trained, data, config.net, config.image_size, device) if trained else of_weights(config, data, device)
        )
        for note in judged.notes if not found else ():
            print(note)
        cache = cache_dir(config.data.cache) / "features" if config.features.cache else None
        taps = {k: v for k, v in plain(config.features).items() if k != "cache"}
        e = Evaluation(judged, data, plain(config.protocol), taps, config.seed, device, config.batch_size, cache)
        for other in e.options.get("compare", []):
            e.others[other] = _compared(other, config, data, device)
        result = evaluate(e, {**judged.about, "dataset": name or dataset_name(trained), "epochs": trained.epochs if trained else None})
        found.append((save_result(judged_folder(config) / "eval", name, config, result), result))
    return found


def _data_for(asked: DictConfig, trained: DictConfig | None) -> Data:
    """The data set of the command, else the run's own."""
    config = asked
    if "dataset" not in asked and trained is not None:
        config = trained
        if asked.data.subset is not None:
            config.data.subset = asked.data.subset
    return build_data(config)


def _compared(other: str, config: DictConfig, data: Data, device: torch.device) -> Judged:
    """A run folder or a file of weights that the judged one is compared with."""
    if Path(other).is_dir():
        return of_run(Path(other), load_run(other, trust=config.trust), data, config.net, config.image_size, device)
    return of_weights(OmegaConf.merge(config, {"weights": other}), data, device)  # type: ignore[arg-type]


def preview(config: DictConfig) -> Path:
    """`ssl-zoo preview`: a PNG grid of images and their views."""
    data = build_data(config)
    size, count = data.train.image_size, min(config.images, len(data.train))
    augment = build_augment(config, size, data)
    pixels = data.train.pixels[:count]
    draws = [augment(pixels, fold_seed("preview", config.seed, d)) for d in range(config.draws)]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (data.mean, data.std))
    shown = [((v * std + mean).clamp(0, 1) * 255).byte().numpy() for views in draws for v in views]
    figure = view_grid((centre(pixels, size) * 255).byte().numpy(), shown)
    file = Path(config.file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=130)
    except (OSError, ValueError) as e:
        raise UserError(f"The picture cannot be written to file={file} ({e}).") from e
    return file


def shard(config: DictConfig) -> str:
    """`ssl-zoo shard`: write the data set into shards, and say what was written."""
    started, out = time.perf_counter(), Path(config.out).expanduser()
    source = build(config, "dataset")
    splits = {split: source.load(split) for split in ("train", "test")}
    with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("packing", total=sum(map(len, splits.values())))
        packed = pack(splits, out, config.format, config.shard_mb * 10**6, config.size, lambda: bar.advance(task))
    count = f"{packed.images:,} images" + (f" ({len(packed.left):,} left out)" if packed.left else "")
    amount = f"{count} in {packed.shards:,} shards, {packed.bytes / 1e6:,.1f} MB, {time.perf_counter() - started:.0f} s"
    return f"{amount}; train on them with: ssl-zoo dataset=shards dataset.path={shlex.quote(str(out))}"
