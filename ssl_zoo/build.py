"""From a config to the parts of a run: data, method, trainer."""

import itertools
import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import hydra
import lightning.pytorch as L
import torch
from omegaconf import DictConfig
from torch import nn

from ssl_zoo.augment.early import Early
from ssl_zoo.augment.fused_engine import FusedEngine
from ssl_zoo.augment.kornia_engine import KorniaEngine
from ssl_zoo.augment.spec import View, resolve_all, resolve_early
from ssl_zoo.callbacks.checkpoint import WholeFiles, onward
from ssl_zoo.callbacks.launcher import prepare
from ssl_zoo.callbacks.loggers import build_loggers
from ssl_zoo.checks import check_located
from ssl_zoo.config import plain
from ssl_zoo.data.captions import Counts, captioned, prompted_too
from ssl_zoo.data.images import Images
from ssl_zoo.data.tokens import Tokens
from ssl_zoo.errors import UserError
from ssl_zoo.foreign import none_of_others
from ssl_zoo.instance import build
from ssl_zoo.judging import dataset_name
from ssl_zoo.methods.base import Method
from ssl_zoo.methods.two_towers import TwoTowers
from ssl_zoo.nn.backbones import try_size
from ssl_zoo.nn.text import tokenize
from ssl_zoo.prompts import templates
from ssl_zoo.run_folder import say

log = logging.getLogger("ssl_zoo")
LONG_RUN = 1.5e8  # pixels of views, 40 to 70 seconds of one core without the compiler; compiling takes it 10 to 50
NEUTRAL = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
MANY_CAPTIONS = 100_000  # about half a minute


@dataclass
class Data:
    train: Images
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    captions: Counts | None = None  # of the training images, for a method with words


def build_data(config: DictConfig) -> Data:
    source = build(config, "dataset")
    train = source.load("train")
    if "num_classes" in (config.get("method") or {}):  # it learns from labels
        train = train.only_labelled()
    if count := config.data.get("held_out"):  # `ssl-zoo eval` has no such key
        train, test = train.without(count)
    else:
        test = source.load("test")
    train = train.some(config.data.subset)
    if len(train) < 2 or len(test) < 1:
        raise UserError(f"There are {len(train)} training and {len(test)} test images: at least 2 and 1 are needed.")
    return Data(train, test, *train.statistics())


def build_augment(config: DictConfig, image_size: int, data: Data | None = None, training: bool = False) -> nn.Module:
    """The engine that makes the views; compiled, in the precision of training and smaller at first, only for `training`."""
    asked = plain(config.augment)
    full = _engine(config, resolve_all(asked, image_size), data, training)
    early = resolve_early(asked, image_size) if training else None
    return Early(_engine(config, early, data, training), full, asked["early_share"]) if early else full


def _engine(config: DictConfig, views: list[View], data: Data | None, training: bool) -> nn.Module:
    mean, std = (data.mean, data.std) if data else NEUTRAL
    extra = any(view.extra for view in views)
    if extra:
        check_located(plain(config.augment), "augment", config.trust)
    if extra and config.augment.engine == "fused":
        log.warning("augment.*.extra names kornia operations, so the kornia engine makes the views (augment.engine=kornia)")
    if extra or config.augment.engine == "kornia":
        return KorniaEngine(views, mean, std, [[hydra.utils.instantiate(op, _convert_="all") for op in view.extra] for view in views])
    if not training:
        return FusedEngine(views, mean, std)
    dtype = torch.bfloat16 if str(precision(config)).startswith("bf16") else torch.float32
    return FusedEngine(views, mean, std, dtype, config.batch_size if compiles(config, views, len(data.train) if data else 0) else None)


def compiles(config: DictConfig, views: list[View], images: int) -> bool:
    """Whether to compile the augmentation: as asked, or for "auto" where there is a GPU or more to do than a compilation takes."""
    if config.augment.compile != "auto":
        return bool(config.augment.compile)
    if on_gpu(config):
        return True
    seen = config.epochs * images
    if config.trainer.max_steps >= 0:
        seen = min(seen, config.trainer.max_steps * config.batch_size * config.trainer.accumulate_grad_batches)
    return seen * sum(view.size**2 for view in views) > LONG_RUN


def on_gpu(config: DictConfig) -> bool:
    return config.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def precision(config: DictConfig) -> str | int:
    if config.trainer.precision != "auto":
        return config.trainer.precision
    return "bf16-mixed" if on_gpu(config) and torch.cuda.is_bf16_supported() else "32-true"


def build_method(config: DictConfig, data: Data) -> Method:
    size = data.train.image_size
    backbone = build(config, "backbone", image_size=size)
    asked = plain(config.augment)
    for other in {view.size for view in resolve_all(asked, size)} - {size}:
        try_size(backbone, "This backbone", other, "set augment.local.size, augment.local_crops=0 or another backbone")
    if asked.get("early_size"):
        try_size(backbone, "This backbone", asked["early_size"], "set another augment.early_size, or null")
    backbone = backbone.to(memory_format=torch.channels_last)
    return build(
        config,
        "method",
        backbone=backbone,
        augment=build_augment(config, size, data, training=True),
        optimizer=plain(config.optimizer),
        batch_size=config.batch_size,
        seed=config.seed,
        chunk_size=config.chunk_size,
        **_classes(config, data),
    )


def _classes(config: DictConfig, data: Data) -> dict[str, int]:
    """What a method that learns from labels is told of them."""
    if "num_classes" not in config.method:
        return {}
    asked, there = config.method.num_classes, data.train.num_classes
    if there < 2 or not len(data.train.labelled):
        raise UserError(
            f"This method learns from labels (method.num_classes), and the training images have {there or 'none'}"
            f"{' class' if there else ''}: choose another method or dataset."
        )
    if asked is not None and asked < there:
        raise UserError(f"method.num_classes={asked} is less than the {there} classes of the data set: use null, or at least {there}.")
    return {"num_classes": asked or there}


def data_for(config: DictConfig, data: Data) -> Data:
    """For a method with words, the training images that have captions, which are cleaned; with prompts the test images have them too."""
    if "text" not in config.method:
        return data
    train, counts = captioned(data.train, config.data.prompts, dataset_name(config))
    say(f"captions      {counts.line()}")
    prompts = config.data.prompts
    test = data.test if prompts is None else prompted_too(data.test, templates(prompts))
    return replace(data, train=train, test=test, captions=counts)


def build_tokens(method: Method, images: Images) -> Tokens | None:
    """The captions of images for a method with words; those that images share are there once."""
    if not isinstance(method, TwoTowers):
        return None
    assert images.captions is not None
    unique = {id(own): own for own in images.captions}
    if (number := sum(map(len, unique.values()))) > MANY_CAPTIONS:
        say(f"captions      {number:,} become tokens, which takes a while")
    ids, cut = tokenize((caption for own in unique.values() for caption in own), method.text.context)
    starts = dict(zip(unique, itertools.accumulate(map(len, unique.values()), initial=0), strict=False))
    start, count = torch.tensor([(starts[id(own)], len(own)) for own in images.captions]).unbind(1)
    before = torch.cat([torch.zeros(1, dtype=torch.long), cut.cumsum(0)])  # how many of the captions before each are cut
    long = int((before[start + count] - before[start]).sum())
    if long:
        say(f"captions      {long:,} of {int(count.sum()):,} are cut at {method.text.context} tokens (method.text.context)")
    return Tokens(ids, start, count, long)


def build_trainer(config: DictConfig, run: Path, callbacks: list[L.Callback]) -> L.Trainer:
    options = plain(config.trainer)
    options.pop("compile")
    timeout_s = options.pop("timeout_s")
    options["precision"] = precision(config)
    loggers = build_loggers(plain(config.logger), run)
    try:
        with none_of_others("lightning.pytorch.callbacks_factory"):
            trainer = L.Trainer(
                **options,
                callbacks=callbacks,
                logger=loggers,
                plugins=[WholeFiles(run)],
                default_root_dir=run,
                enable_model_summary=False,
                use_distributed_sampler=False,
                limit_val_batches=0,
                num_sanity_val_steps=0,
            )
    except Exception as e:  # Lightning refuses impossible devices, strategies and precisions with exceptions of many kinds
        raise UserError(f"This trainer cannot be had here: {' '.join(str(e).split())}") from e
    prepare(trainer, timeout_s, partial(onward, run))
    return trainer
