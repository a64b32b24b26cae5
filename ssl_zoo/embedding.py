"""`ssl-zoo embed`: which run, which images and which file are meant, and what is told while features are written."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from ssl_zoo.config import compose
from ssl_zoo.errors import UserError, one_line
from ssl_zoo.files import JOINING, index_of, parts_of
from ssl_zoo.saved import load_run
from ssl_zoo.shard import dataset_words

if TYPE_CHECKING:
    import torch

    from ssl_zoo.data.images import Images
    from ssl_zoo.evaluation.embedded import Embedding
    from ssl_zoo.loading import Pretrained

USAGE = "ssl-zoo embed run=runs/<name>/<time> data=photos out=features.parquet"
SPLITS = ("all", "train", "test")
SUFFIXES = (".parquet", ".npy")


def embed_config(words: list[str], config_dirs: list[str]) -> DictConfig:
    """conf/embed.yaml under the words of the command."""
    return compose("embed", dataset_words(words, config_dirs, 0, USAGE), config_dirs)


def check_embed(config: DictConfig) -> DictConfig:
    """The config of the run whose backbone makes the features. Raises UserError where something cannot be."""
    out = Path(str(config.out)).expanduser()
    if out.suffix not in SUFFIXES:
        raise UserError(f"out={config.out} does not say which kind of file to write: end it with {' or '.join(SUFFIXES)}.")
    begun = (parts_of(out) / JOINING).exists()  # stopped between its index and its array
    for file in (out, *([index_of(out)] if out.suffix == ".npy" and not begun else [])):
        if file.exists():
            raise UserError(f"{file} is there already: choose another out=..., or delete it.")
    if not out.parent.is_dir():
        raise UserError(f"The folder of out={config.out} does not exist: make it first.")
    trained = trained_run(config)
    _make(parts_of(out))
    return trained


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"The folder {folder} cannot be made ({e.strerror}): choose another place.") from e


def trained_run(config: DictConfig) -> DictConfig:
    """The config of the finished run of a command that looks at images with it."""
    if config.split not in SPLITS:
        raise UserError(f"split={config.split} does not work: split takes {', '.join(SPLITS)}.")
    run = Path(str(config.run)).expanduser()
    trained = load_run(run, trust=config.trust)
    if not (run / "backbone.safetensors").is_file():
        raise UserError(f"{run} has no backbone.safetensors yet: let the run finish, or continue it with ssl-zoo resume run={run}.")
    config.run = str(run)
    return trained


@dataclass
class Looking:
    """A backbone, the images that it looks at, and where."""

    net: "Pretrained"
    splits: "dict[str, Images]"
    device: "torch.device"

    @property
    def images(self) -> int:
        return sum(map(len, self.splits.values()))


def looking(config: DictConfig, trained: DictConfig) -> Looking:
    """What a command looks at, and with what. Images are prepared as `ssl_zoo.load(run).transform` prepares a picture, where the data set
    does not say what size they have.
    """
    from ssl_zoo.instance import build
    from ssl_zoo.loading import load
    from ssl_zoo.nn.device import pick_device

    device = pick_device(config.device)
    net = load(config.run, trust=config.trust)
    asked = config if config.get("dataset") is not None else trained
    if asked is trained:
        for key in ("cache", "decoded"):
            if key in trained.dataset:
                trained.dataset[key] = config.data[key]
    if "image_size" in asked.dataset and asked.dataset.image_size is None:
        asked.dataset.image_size = net.image_size
    source = build(asked, "dataset")
    wanted = ("train", "test") if config.split == "all" else (config.split,)
    net.to(device)
    return Looking(net, {split: source.load(split) for split in wanted}, device)


def embed(config: DictConfig, trained: DictConfig) -> list[str]:
    """`ssl-zoo embed`: write the features, and say what was written."""
    started = time.perf_counter()
    look = looking(config, trained)
    out = Path(str(config.out)).expanduser()
    ready = time.perf_counter()
    found = write_features(look, out, config.batch_size)
    took, new = time.perf_counter() - ready, look.images - found.before
    told = [f"{'features':14}{found.rows:,} x {found.dim} float32 in {found.file}" + (f", index in {found.index}" if found.index else "")]
    if found.left:
        told.append(f"{'left out':14}{len(found.left):,} that cannot be read: {one_line(', '.join(found.left[:3]))[:300]}")
    told += [f"{'time':14}{took:.0f} s for {new:,} images, {new / max(took, 1e-9):,.0f} images/s; {ready - started:.0f} s to start"]
    return told


def write_features(look: Looking, out: Path, batch_size: int, label: str = "embedding") -> "Embedding":
    """The features of all images into `out`, with a bar that tells images/s; goes on where an earlier command stopped."""
    from ssl_zoo.data.cache import locked
    from ssl_zoo.evaluation.embed import embed, identity
    from ssl_zoo.evaluation.feature_cache import weights_hash
    from ssl_zoo.evaluation.features import Subject
    from ssl_zoo.shortage import explained

    net = look.net
    of = identity(look.splits, weights_hash(net.backbone), net.image_size)
    subject = Subject(net.backbone, net.image_size, net.mean, net.std)
    tries = [f"batch_size={max(2, batch_size // 2)}", *(["device=cpu"] if look.device.type != "cpu" else [])]
    _make(folder := parts_of(out))
    with (
        locked(folder / "embedding"),
        explained(f"embedding with batch_size={batch_size} at {net.image_size} px", tries),
        _bar(label, look.images) as bar,
    ):
        if out.exists():
            raise UserError(f"{out} was written meanwhile by another process: choose another name.")
        try:
            return embed(subject, look.splits, out, of, look.device, batch_size, bar.step)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"ssl-zoo: stopped after {bar.done:,} of {look.images:,} images; the same command goes on") from None


QUIET = 30.0  # seconds between lines where there is no terminal


class _Bar:
    """Counts images: a bar on a terminal, else a line from time to time."""

    def __init__(self, label: str, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
        self.progress = Progress(*columns, TimeRemainingColumn(), transient=True, disable=not sys.stdout.isatty())
        self.task = self.progress.add_task(label, total=total, speed="")
        self.label, self.total = label, total
        self.done, self.before = 0, -1  # -1: not yet told what an earlier command has done
        self.since = self.told = time.perf_counter()

    def step(self, images: int) -> None:
        self.before = images if self.before < 0 else self.before
        self.done += images
        now = time.perf_counter()
        speed = f"{(self.done - self.before) / (now - self.since):,.0f} images/s" if now - self.since > 1 else ""
        self.progress.update(self.task, completed=self.done, speed=speed)
        if self.progress.disable and now - self.told > QUIET:
            print(f"{self.label:14}{self.done:,} of {self.total:,}  {speed}", flush=True)
            self.told = now


@contextmanager
def _bar(label: str, total: int) -> Iterator[_Bar]:
    bar = _Bar(label, total)
    with bar.progress:
        yield bar
