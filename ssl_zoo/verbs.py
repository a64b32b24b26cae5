"""Preview and shard, which need torch; eval has a room of its own."""

import shlex
import sys
import time
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.progress import Progress

from ssl_zoo.build import build, build_augment, build_data
from ssl_zoo.data.pack import pack
from ssl_zoo.distributed import fold_seed
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.features import centre
from ssl_zoo.reports.figures import view_grid


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
