"""The verbs beside pretrain that need torch: eval, preview, shard."""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.progress import Progress

from ssl_zoo.build import build, build_augment, build_data
from ssl_zoo.callbacks.evaluate import Judge
from ssl_zoo.config import plain
from ssl_zoo.data.pack import pack
from ssl_zoo.distributed import fold_seed
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.features import centre
from ssl_zoo.evaluation.protocol import knn_top1, labelled_pair, linear
from ssl_zoo.export import load_backbone
from ssl_zoo.reports.figures import view_grid


def pick_device(name: str) -> torch.device:
    if name != "auto":
        try:
            torch.empty(1, device=name)
        except (RuntimeError, AssertionError) as e:
            raise UserError(f"device={name} cannot be used here ({str(e).splitlines()[0]}): choose auto or cpu.") from e
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def evaluate_run(config: DictConfig, trained: DictConfig) -> dict[str, Any]:
    """`ssl-zoo eval`: judge the backbone of a run folder by config.protocol; also written to <run>/eval_<protocol>.json."""
    run, device = Path(config.run), pick_device(config.device)
    data = build_data(trained)
    reason = labelled_pair(data.train, data.test)
    if reason:
        raise UserError(f"eval protocol={config.protocol} needs labels, but {reason}.")
    backbone = build(trained, "backbone", image_size=data.train.image_size)
    load_backbone(backbone, run / "backbone.safetensors", device)
    judge = Judge(data.train, data.test, data.mean, data.std, plain(config.evaluation), trained.seed)
    bank, queries = (judge.features(backbone, images, device) for images in (judge.known, data.test))
    if config.protocol == "knn":
        knn = judge.options["knn"]
        result: dict[str, Any] = {"knn_top1": knn_top1(bank, judge.known, queries, data.test, knn), **knn}
    else:
        result = {f"linear_{k}": v for k, v in linear(bank, judge.known, queries, data.test, judge.options["linear"], trained.seed).items()}
    result |= {"train_images": len(judge.known), "test_images": len(data.test), "seed": trained.seed}
    (run / f"eval_{config.protocol}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


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
