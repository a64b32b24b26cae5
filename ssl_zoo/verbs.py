"""Preview, shard and classify, which need torch; eval has a room of its own."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ssl_zoo.build import build_augment, build_data
from ssl_zoo.classify import sentences_for
from ssl_zoo.config import plain
from ssl_zoo.data.images import Images
from ssl_zoo.data.pack import pack
from ssl_zoo.data.pixels import canvas_for
from ssl_zoo.distributed import fold_seed
from ssl_zoo.errors import UserError, one_line
from ssl_zoo.evaluation.features import centre, features_of
from ssl_zoo.evaluation.zero_shot import class_embeddings
from ssl_zoo.instance import build
from ssl_zoo.loading import pixels_of
from ssl_zoo.nn.device import pick_device
from ssl_zoo.nn.numerics import unit
from ssl_zoo.nn.text import END
from ssl_zoo.reports.figures import view_grid
from ssl_zoo.reports.page import printable
from ssl_zoo.words import Towers, towers_of


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
        figure.savefig(file, dpi=130, bbox_inches="tight")
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


def classify(config: DictConfig, trained: DictConfig) -> list[dict[str, Any]]:
    """`ssl-zoo classify`: a table for each picture, of the labels that fit it best; returns them, with the share of each label."""
    pictures, labels = plain(config)["image"], plain(config)["labels"]
    device = pick_device(config.device)
    subject = towers_of(Path(config.run), trained, config.image_size, device)
    towers: Towers = subject.backbone  # type: ignore[assignment]
    if towers.bias is None and len(labels) < 2:
        raise UserError(
            f"One label alone gets 100 % from CLIP, whose softmax shares out between labels: give two or more beside '{labels[0]}'."
        )
    size = subject.image_size
    pixels = torch.stack([pixels_of(p, canvas_for(size), f"image={one_line(p)[:160]}") for p in pictures])
    prompts = [sentences_for(label, plain(config)["templates"]) for label in labels]
    notes = _wording(towers, labels, prompts)
    embedded, _ = towers.sentences([s for of_one in prompts for s in of_one])
    images = features_of(subject, towers, Images(pixels, None, None, size), device)
    cosine = unit(images) @ class_embeddings(embedded.unflatten(0, (len(labels), -1))).T
    shares = towers.confidence(cosine).cpu()
    console, top = Console(), min(config.top, len(labels))
    found = []
    kind = "softmax, %" if towers.bias is None else "sigmoid, %"
    for picture, own in zip(pictures, shares, strict=True):
        order = own.argsort(descending=True, stable=True)[:top].tolist()
        table = Table("label", title=Text(printable(picture)), title_justify="left")
        table.add_column(kind, justify="right")
        for i in order:
            table.add_row(Text(printable(labels[i])), f"{100 * float(own[i]):.1f}")
        console.print(table)
        found.append({"image": picture, "labels": {labels[i]: float(own[i]) for i in order}})
    for note in [_meaning(towers, len(labels), top), *notes]:
        print(note)
    return found


def _wording(towers: Towers, labels: list[str], prompts: list[list[str]]) -> list[str]:
    """What is to be said of labels that are cut. Raises UserError for labels that read the same, or hold nothing, to the network."""
    ids, cut = towers.read([s for of_one in prompts for s in of_one])
    bare, _ = towers.read(labels)
    long = [label for label, some in zip(labels, cut.view(len(labels), -1), strict=True) if some.any()]
    ids = ids[:: len(prompts[0])]  # with the first sentence
    seen: dict[tuple[int, ...], str] = {}
    for label, row, alone in zip(labels, ids.tolist(), bare.tolist(), strict=True):
        if alone[1] == END:
            raise UserError(f"The label '{one_line(label)[:80]}' holds no word that the network reads: leave it out.")
        if (other := seen.setdefault(tuple(row), label)) != label:
            why = ": both are cut" if label in long else ""
            raise UserError(
                f"The labels '{one_line(other)[:80]}' and '{one_line(label)[:80]}' read the same to the network{why}: keep one."
            )
    return [
        f"'{one_line(label)[:60]}' is longer than the {towers.text.context} tokens of the network: its end is not read." for label in long
    ]


def _meaning(towers: Towers, count: int, top: int) -> str:
    """What the scores are, in a sentence."""
    how, shown = f"at the learned temperature {1 / towers.scale:.4f}", "" if top == count else f" ({top} are shown)"
    if towers.bias is None:
        return f"softmax over the {count} labels{shown} {how}: they share out 100 %"
    bias = float(towers.bias.detach())
    return f"sigmoid {how} and bias {bias:.2f}: each of the {count} labels{shown} by itself, so they need not add up to 100 %"
