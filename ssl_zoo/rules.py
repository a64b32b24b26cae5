"""What values the keys of a config take."""

import os
import re
from collections.abc import Callable
from typing import Any

from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.amounts import WANTED, amount


def _number(low: float, high: float = float("inf"), whole: bool = False) -> Callable[[Any], bool]:
    kinds = int if whole else (int, float)
    return lambda v: isinstance(v, kinds) and not isinstance(v, bool) and low <= v <= high and v != float("inf")


def _one_of(*options: Any) -> Callable[[Any], bool]:
    return lambda v: any(v == o and type(v) is type(o) for o in options)


def _or(*tests: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: any(t(v) for t in tests)


def _devices(v: Any) -> bool:
    return v in ("auto", -1) or (_number(1, whole=True)(v)) or (isinstance(v, list) and bool(v) and all(map(_number(0, whole=True), v)))


def _listed(test: Callable[[Any], bool], least: int = 0) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, list) and len(v) >= least and all(map(test, v))


def _some(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return _or(test, _listed(test, 1))


def _amount(v: Any) -> bool:
    try:
        return bool(amount(v))
    except UserError:
        return False


def _place(v: Any) -> bool:
    known = not str(v).startswith("~") or os.path.expanduser(str(v)) != str(v)  # ~somebody is nobody here
    return v is None or (isinstance(v, (str, int, float)) and not isinstance(v, bool) and "\0" not in str(v) and known)


ATTRIBUTES = ("shape", "colour", "colour_shape")  # that shapes can be labelled by
TEXTS = _or(_one_of(None), _some(lambda v: isinstance(v, str)))
PLACE = (_place, "null or a path")
POSITIVE = (_number(1, whole=True), "a whole number of at least 1")
SHARE = (_number(0, 1), "a number from 0 to 1")
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "run": PLACE,
    "out": PLACE,
    "file": PLACE,
    "weights": PLACE,
    "data.cache": PLACE,
    "dataset.cache": PLACE,
    "dataset.path": PLACE,
    "trust": (_listed(lambda v: isinstance(v, str) and all(part.isidentifier() for part in v.split("."))), "a list of names of packages"),
    "epochs": POSITIVE,
    "batch_size": (_number(2, whole=True), "a whole number of at least 2"),
    "chunk_size": (_or(_one_of(None), _number(1, whole=True)), "null or a whole number of at least 1"),
    "images": POSITIVE,
    "draws": POSITIVE,
    "shard_mb": (_number(1, 2048, whole=True), "a whole number of megabytes from 1 to 2048"),
    "size": (_or(_one_of(None), _number(8, whole=True)), "null or a whole number of at least 8"),
    "seed": (_number(0, 2**32 - 1, whole=True), "a whole number from 0 to 4294967295"),
    "resume": (_one_of(None, "auto"), "null or auto"),
    "checkpoint.every_n_epochs": POSITIVE,
    "checkpoint.every_n_steps": (_or(_one_of(None), POSITIVE[0]), "null or a whole number of at least 1"),
    "checkpoint.keep": (_number(0, whole=True), "a whole number of at least 0"),
    "checkpoint.best": (lambda v: v is None or isinstance(v, str), "null or the name of a metric, such as eval/knn_top1"),
    "data.subset": (_or(_one_of(None), POSITIVE[0]), "null or a whole number of at least 1"),
    "data.held_out": (_or(_one_of(None), POSITIVE[0]), "null or a whole number of at least 1"),
    "data.prompts": (_or(_one_of(None), _some(lambda v: isinstance(v, str))), "null, photo, a list of sentences, or a file of them"),
    "data.resident": (_one_of("auto", True, False), "auto, true or false"),
    "data.decoded": (_one_of("auto", True, False), "auto, true or false"),
    "data.workers": (_or(_one_of("auto"), _number(0, 512, whole=True)), "auto or a whole number from 0 to 512"),
    "data.worker_kind": (_one_of("auto", "thread", "process"), "auto, thread or process"),
    "dataset.captions": (_place, "auto, null or a path"),
    "dataset.decoded": (_one_of("auto", True, False), "auto, true or false"),
    "dataset.labels": (_one_of("auto", True, False, *ATTRIBUTES), f"auto, true or false, or of shapes {', '.join(ATTRIBUTES)}"),
    "dataset.held_out": (_listed(lambda v: isinstance(v, str)), "a list such as ['red star','blue ring']"),
    "dataset.image_size": (_or(_one_of(None), _number(8, whole=True)), "null or a whole number of at least 8"),
    "dataset.test_share": (_number(0.001, 0.9), "a share from 0.001 to 0.9"),
    "guard.nonfinite": (_one_of("stop", "skip", "off", False), "stop, skip or off"),
    "guard.most_skipped": POSITIVE,
    "trainer.devices": (_devices, "a whole number of at least 1, auto, or a list of device indices"),
    "trainer.num_nodes": POSITIVE,
    "trainer.strategy": (
        lambda v: isinstance(v, str) and not v.startswith(("fsdp", "deepspeed", "model_parallel", "ddp_spawn")),
        "auto or one of Lightning's ddp strategies, but for ddp_spawn, which would copy the trainer; fsdp and deepspeed split what the EMA "
        "teacher, checkpoints and evaluation need whole",
    ),
    "trainer.accumulate_grad_batches": POSITIVE,
    "trainer.log_every_n_steps": POSITIVE,
    "trainer.max_epochs": POSITIVE,
    "trainer.max_steps": (_number(-1, whole=True), "-1 or a number of optimizer steps"),
    "trainer.gradient_clip_val": (_or(_one_of(None), _number(0)), "null or a number of at least 0"),
    "trainer.timeout_s": (_number(1, 1e6), "a number of seconds from 1 to 1000000"),
    "preemption.deadline_s": (_number(0, 1e6), "a number of seconds from 0 to 1000000"),
    "sweep.name": (_one_of("local", "slurm"), "local or slurm"),
    "sweep.cluster": (_one_of("slurm", "local", "debug"), "slurm, local or debug"),
    "sweep.timeout_min": POSITIVE,
    "sweep.gpus_per_node": (_or(_one_of("auto"), _number(0, whole=True)), "auto or a whole number of at least 0"),
    "sweep.cpus_per_task": POSITIVE,
    "sweep.mem_gb": (_or(_one_of(None), _number(0.1)), "null or a number of at least 0.1"),
    "sweep.signal_s": (_number(1, 65535, whole=True), "a whole number of seconds from 1 to 65535"),
    "trainer.precision": (lambda v: isinstance(v, str) or v in (16, 32, 64), "auto or one of Lightning's precisions"),
    "optimizer.name": (_one_of("sgd", "lars", "lars_timm", "adamw", "auto"), "sgd, lars, lars_timm, adamw or auto"),
    "optimizer.milestones": (
        lambda v: v is None or (isinstance(v, list) and all(map(_number(0, 1), v))),
        "null or a list of shares of training from 0 to 1",
    ),
    "optimizer.bias_base_lr": (_or(_one_of(None), _number(0)), "null or a number of at least 0"),
    "optimizer.final_weight_decay": (_or(_one_of(None), _number(0)), "null or a number of at least 0"),
    "optimizer.scale_lr": (_one_of(True, False), "true or false"),
    "optimizer.decay_positions": (_one_of(True, False), "true or false"),
    "optimizer.base_lr": (_number(0), "a number of at least 0"),
    "optimizer.momentum": (_or(_one_of(None), _number(0, 0.9999999)), "null or a number from 0 to below 1"),
    "optimizer.trust_coefficient": (_or(_one_of(None), _number(0)), "null or a number of at least 0"),
    "optimizer.eps": (_or(_one_of(None), _number(1e-30)), "null or a number above 0"),
    "optimizer.betas": (
        lambda v: v is None or (isinstance(v, list) and len(v) == 2 and all(map(_number(0, 0.9999999), v))),
        "null or two numbers from 0 to below 1",
    ),
    "logger.name": (_one_of("csv", "tensorboard", "wandb"), "csv, tensorboard or wandb"),
    "optimizer.weight_decay": (_number(0), "a number of at least 0"),
    "optimizer.final_lr": (_number(0, 1), "a share of the peak from 0 to 1"),
    "optimizer.warmup_epochs": (_or(_one_of("auto"), _number(0)), "auto or a number of epochs"),
    "method.temperature": (_number(1e-6), "a number above 0"),
    "method.student_temp": (_number(1e-6), "a number above 0"),
    "method.teacher_temp": (_number(1e-6), "a number above 0"),
    "method.teacher_temp_start": (_number(1e-6), "a number above 0"),
    "method.teacher_temp_warmup": SHARE,
    "method.momentum": SHARE,
    "method.momentum_end": SHARE,
    "method.center_momentum": SHARE,
    "method.queue_size": POSITIVE,
    "method.bn_groups": POSITIVE,
    "method.num_layers": POSITIVE,
    "method.hidden_dim": POSITIVE,
    "method.proj_dim": POSITIVE,
    "method.pred_dim": POSITIVE,
    "method.bottleneck_dim": POSITIVE,
    "method.lambd": (_number(0), "a number of at least 0"),
    "method.loss_scale": (_number(1e-9), "a number above 0"),
    "method.sim_coeff": (_number(0), "a number of at least 0"),
    "method.std_coeff": (_number(0), "a number of at least 0"),
    "method.cov_coeff": (_number(0), "a number of at least 0"),
    "method.out_dim": (_number(2, whole=True), "a whole number of at least 2"),
    "method.assignment": (_one_of("centering", "sinkhorn"), "centering or sinkhorn"),
    "method.max_scale": (_or(_one_of(None), _number(1)), "null or a number of at least 1"),
    "method.clip_grad": (_or(_one_of(None), _number(0)), "null or a number of at least 0"),
    "method.freeze_last_layer": (_number(0, whole=True), "a whole number of epochs of at least 0"),
    "method.vit": (_one_of("auto", True, False), "auto, true or false"),
    "evaluation.every_n_epochs": (_or(_one_of("auto"), POSITIVE[0]), "auto or a whole number of at least 1"),
    "evaluation.batch_size": POSITIVE,
    "evaluation.health_every_n_steps": POSITIVE,
    "evaluation.bank": POSITIVE,
    "evaluation.knn.k": POSITIVE,
    "evaluation.knn.temperature": (_number(0.002), "a number of at least 0.002"),
    "evaluation.map": (_one_of("pca", "tsne", "umap"), "pca, tsne or umap"),
    "evaluation.linear.max_iter": POSITIVE,
    "evaluation.linear.l2": (_listed(_number(0), 1), "a list of at least one number of at least 0"),
    "logger.offline": (_one_of("auto", True, False), "auto, true or false"),
    "trainer.deterministic": (_one_of("warn", True, False), "true, false or warn"),
    **{f"method.{key}_weights": PLACE for key in ("image", "text")},
    "method.num_classes": (_or(_one_of(None), POSITIVE[0]), "null or a whole number of at least 1"),
    "method.embed_dim": POSITIVE,
    **{f"method.text.{key}": POSITIVE for key in ("width", "heads", "layers")},
    "method.text.context": (_number(3, 4096, whole=True), "a whole number from 3 to 4096"),
    "augment.local_crops": (_number(0, 64, whole=True), "a whole number from 0 to 64"),
    "augment.early_size": (_or(_one_of(None), _number(8, 4096, whole=True)), "null or a whole number of pixels from 8 to 4096"),
    "augment.early_share": SHARE,
    "augment.engine": (_one_of("fused", "kornia"), "fused or kornia"),
    "augment.compile": (_one_of("auto", True, False), "auto, true or false"),
    "net": (_one_of("auto", "student", "teacher"), "auto, student or teacher"),
    "image_size": (_or(_one_of(None), _number(8, whole=True)), "null or a whole number of at least 8"),
    "transfer": (_listed(lambda v: isinstance(v, str)), "a list of data sets"),
    "features.layer": (lambda v: v is None or isinstance(v, str), "null or the name of a layer"),
    "device": (lambda v: isinstance(v, str) and bool(re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", v)), "auto, cpu, mps, cuda or cuda:N"),
    "features.blocks": POSITIVE,
    "features.pool": (_one_of("auto", "cls", "mean", "cls_mean"), "auto, cls, mean or cls_mean"),
    "features.cache": (_one_of(True, False), "true or false"),
    "protocol.k": (_some(_number(1, whole=True)), "a whole number of at least 1, or a list of them"),
    "protocol.temperature": (_some(_number(0.002)), "a number of at least 0.002, or a list of them"),
    "protocol.l2": (_listed(_number(0), 1), "a list of at least one number of at least 0"),
    "protocol.max_iter": POSITIVE,
    "protocol.base_lr": (_or(_one_of("auto"), _some(_number(0))), "auto, a number of at least 0, or a list of them"),
    "protocol.batch_size": (_number(2, whole=True), "a whole number of at least 2"),
    "protocol.epochs": POSITIVE,
    "protocol.optimizer": (_one_of("sgd", "lars"), "sgd or lars"),
    "protocol.momentum": (_number(0, 0.9999999), "a number from 0 to below 1"),
    "protocol.weight_decay": (_number(0), "a number of at least 0"),
    "protocol.schedule": (_one_of("cosine", "cosine_epoch", "steps"), "cosine, cosine_epoch or steps"),
    "protocol.milestones": (_listed(_number(0, 1)), "a list of shares of training from 0 to 1"),
    "protocol.features": (_one_of(None, "dino", "dinov2"), "null, dino or dinov2"),
    "protocol.draws": POSITIVE,
    "protocol.labels": (_or(_one_of(None), _some(_amount)), f"{WANTED}, or a list of them"),
    "protocol.backbone_lr": (_number(0), "a number of at least 0"),
    "protocol.layer_decay": (_or(_one_of("auto"), _number(0.01, 1)), "auto or a number from 0.01 to 1"),
    "protocol.warmup_epochs": (_number(0), "a number of at least 0"),
    "protocol.mixup": (_number(0), "a number of at least 0"),
    "protocol.cutmix": (_number(0), "a number of at least 0"),
    "protocol.label_smoothing": (_number(0, 0.99), "a number from 0 to below 1"),
    "protocol.between": (_one_of("auto", "images", "words"), "auto, images or words"),
    "protocol.templates": (TEXTS, "null, photo, a list of sentences with {}, or a text file of them"),
    "protocol.classes": (TEXTS, "null, a list of names, or a text file with one a line"),
    "top": POSITIVE,
    "protocol.gallery": (_one_of("test", "train"), "test or train"),
    "protocol.images": (_number(16, whole=True), "a whole number of at least 16"),
    "protocol.compare": (_listed(lambda v: isinstance(v, str)), "a list of run folders and files of weights"),
    "backbone.stem": (_one_of("auto", "small", "model"), "auto, small or model"),
    "backbone.patch_size": (_or(_one_of("auto", None), POSITIVE[0]), "auto or a whole number of at least 1"),
}
