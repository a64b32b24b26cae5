"""The protocols of `ssl-zoo eval`: what is measured of a backbone on a data set."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.augment.fused_engine import FusedEngine
from ssl_zoo.build import Data
from ssl_zoo.collapse.representation import cka_matrix, representation_health
from ssl_zoo.data.images import Images, spread
from ssl_zoo.data.ondemand import OnDemand
from ssl_zoo.distributed import fold_seed
from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.feature_cache import behaviour, cached, data_hash, weights_hash
from ssl_zoo.evaluation.features import Subject, dtype_of, features_of
from ssl_zoo.evaluation.few_shot import few_shot
from ssl_zoo.evaluation.finetune import finetune
from ssl_zoo.evaluation.knn import knn_sweep
from ssl_zoo.evaluation.linear import choose_and_fit
from ssl_zoo.evaluation.retrieval import retrieval
from ssl_zoo.evaluation.scores import judge, wilson
from ssl_zoo.evaluation.sgd import Trained, crop_and_flip, linear_sgd
from ssl_zoo.nn.taps import Tap
from ssl_zoo.nn.vit import is_vit
from ssl_zoo.word_protocols import judge_retrieval, judge_zero_shot

SAMPLE = 4096  # images in the health numbers: uniformity takes all pairs
VIEWED = 512  # of them with two views


@dataclass
class Evaluation:
    """A subject before a data set. options: conf/protocol. taps: conf/eval's features. cache: where features are kept; None for nowhere.
    others: what it is compared with. held_out: names of classes that training left out. said: is told the epoch, of how many, and top-1
    after it.
    """

    subject: Subject
    data: Data
    options: dict[str, Any]
    taps: dict[str, Any]
    seed: int
    device: torch.device
    batch_size: int = 512
    cache: Path | None = None
    weights: str = ""
    extracting: float = 0.0
    dim: int = 0
    others: dict[str, Subject] = field(default_factory=dict)
    held_out: list[str] = field(default_factory=list)
    said: Callable[[int, int, float], None] = lambda epoch, epochs, top1: None

    def features(self, images: Images, subject: Subject | None = None, weights: str | None = None) -> Tensor:
        """Features [N, D] of all of `images`, from the cache where they are there."""
        s, start = subject or self.subject, time.perf_counter()
        tap = self.tap(s)

        def compute() -> Tensor:
            return features_of(s, tap, images, self.device, self.batch_size)

        if self.cache is None:
            found = compute()
        else:
            does = behaviour(tap, s.image_size, self.device)
            key = f"{weights or self.weights} {does} {data_hash(images)} {s.image_size} {s.mean} {s.std} {self.taps}"
            found = cached(self.cache, key, compute, lambda: not (isinstance(images.pixels, OnDemand) and images.pixels.unreadable))
        self.extracting += time.perf_counter() - start
        self.dim = found.shape[1]
        return found.to(self.device)

    def tap(self, subject: Subject) -> Tap:
        return Tap(subject.backbone, **self.taps)

    def known(self, images: Images) -> tuple[Tensor, Tensor]:
        """Features and labels of the labelled images."""
        images = images.only_labelled()
        features, rows = self.features(images), images.labelled.to(self.device)
        return features[rows], images.labels.to(self.device)[rows]  # type: ignore[union-attr]

    @property
    def classes(self) -> list[str]:
        return self.data.train.classes or [str(i) for i in range(self.data.train.num_classes)]


Told = dict[str, Any]


def _knn(e: Evaluation) -> Told:
    ks, temperatures = _several(e.options["k"]), _several(e.options["temperature"])
    (bank, labels), (queries, wanted) = e.known(e.data.train), e.known(e.data.test)
    found = knn_sweep(bank, labels, queries, ks, temperatures, len(e.classes))
    results = [{"k": k, "temperature": t, **judge(s, wanted, e.classes)} for (k, t), s in found.items()]
    first = next(iter(found.values()))
    told = judge(first, wanted, e.classes, first / first.sum(1, keepdim=True))
    return {**told, "results": [{k: v for k, v in r.items() if k not in ("per_class", "confusion")} for r in results]}


def _linear(e: Evaluation) -> Told:
    (train, labels), (test, wanted) = e.known(e.data.train), e.known(e.data.test)
    probe, l2 = choose_and_fit(train, labels, len(e.classes), e.options["l2"], e.options["max_iter"], e.seed)
    scores = probe(test)
    return {**judge(scores, wanted, e.classes, scores.softmax(1)), "l2": l2, "train_top1": judge(probe(train), labels, e.classes)["top1"]}


def _linear_sgd(e: Evaluation) -> Told:
    options, vit = dict(e.options), is_vit(e.subject.backbone)
    if options["base_lr"] == "auto":  # MoCo v3
        options["base_lr"] = 3.0 if vit else 0.1
    taps = [Tap(e.subject.backbone, **t) for t in _paper_taps(options["features"], e.subject.backbone, vit)] or [e.tap(e.subject)]
    train, test = e.data.train.only_labelled(), e.data.test.only_labelled()
    return _trained(e, linear_sgd(e.subject, taps, train, test, options, e.seed, e.device, e.batch_size, e.said))


def _paper_taps(kind: str | None, backbone: torch.nn.Module, vit: bool) -> list[dict[str, Any]]:
    """DINO's and DINOv2's features of a transformer; none for other networks and protocols."""
    if kind is None or not vit:
        return []
    if kind == "dino":  # the narrow ones: class tokens of the last four blocks; the others: class and mean patch token of the last
        return [{"blocks": 4, "pool": "cls"} if int(backbone.num_features) < 768 else {"blocks": 1, "pool": "cls_mean"}]  # type: ignore[arg-type]
    return [{"blocks": n, "pool": pool} for n in (1, 4) for pool in ("cls", "cls_mean")]


def _finetune(e: Evaluation) -> Told:
    train, test = e.data.train.only_labelled(), e.data.test.only_labelled()
    return _trained(e, finetune(e.subject, train, test, e.options, e.seed, e.device, e.batch_size, e.said))


def _trained(e: Evaluation, found: Trained) -> Told:
    if not torch.isfinite(found.scores).all():
        raise UserError(f"{e.options['name']} has diverged: lower protocol.base_lr={e.options['base_lr']}.")
    told = judge(found.scores, found.labels, e.classes, found.scores.float().softmax(1))
    return {**told, **found.summary}


def _few_shot(e: Evaluation) -> Told:
    (train, labels), (test, wanted) = e.known(e.data.train), e.known(e.data.test)
    o = e.options
    amounts = _several(o["labels"])
    return {"results": few_shot(train, labels, test, wanted, e.classes, amounts, o["draws"], o["l2"], o["max_iter"], e.seed)}


def _retrieval(e: Evaluation) -> Told:
    if e.options.get("between", "images") == "words":
        return judge_retrieval(e)
    queries, labels = e.known(e.data.test)
    gallery = e.known(e.data.train) if e.options["gallery"] == "train" else (None, None)
    found = retrieval(queries, labels, *gallery, _several(e.options["k"]))
    first = found.get("recall_at_1")
    return found if first is None else {**found, "top1": first, "top1_interval": wilson(first, int(found["queries"]))}


def _health(e: Evaluation) -> Told:
    """Without labels, on test images; alignment is that of two random crops, the same for every method."""
    test, s = e.data.test, e.subject
    images = test.take(spread(len(test), min(e.options["images"], len(test))))
    features = e.features(images)
    some = images.take(spread(len(images), min(VIEWED, len(images)))).pixels[:].to(e.device)
    augment = FusedEngine([crop_and_flip(s.image_size)] * 2, s.mean, s.std)
    with torch.no_grad():
        views, tap = augment(some, fold_seed("health", e.seed)), e.tap(s)
        h1, h2 = (torch.cat([tap(x.to(dtype_of(s.backbone))).float() for x in v.split(e.batch_size)]) for v in views)
    sample = features[spread(len(features), min(SAMPLE, len(features)))]
    told = representation_health(sample, h1, h2) | {"images": len(sample), "images_viewed": len(some)}
    found = {"this": features, **{name: e.features(images, other, weights_hash(other.backbone)) for name, other in e.others.items()}}
    return {**told, **({"images_cka": len(images), "cka": cka_matrix(found)} if e.others else {})}


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


PROTOCOLS: dict[str, Callable[[Evaluation], Told]] = {
    "knn": _knn,
    "linear": _linear,
    "few_shot": _few_shot,
    "finetune": _finetune,
    "retrieval": _retrieval,
    "zero_shot": judge_zero_shot,
    "health": _health,
}


def run_protocol(e: Evaluation) -> Told:
    """What the protocol of conf/protocol that `e.options` names finds."""
    name = e.options["name"]
    return (_linear_sgd if name.startswith("linear_") else PROTOCOLS[name])(e)
