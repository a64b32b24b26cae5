"""The towers of a finished run with words: images and sentences as unit vectors of one space."""

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ssl_zoo.errors import UserError
from ssl_zoo.evaluation.features import eval_mode
from ssl_zoo.export import load_backbone
from ssl_zoo.instance import build
from ssl_zoo.methods.two_towers import TwoTowers
from ssl_zoo.nn.backbones import try_size
from ssl_zoo.nn.numerics import unit
from ssl_zoo.nn.text import tokenize
from ssl_zoo.subject import Judged

FILE = "towers.safetensors"


class Towers(nn.Module):
    """What CLIP and SigLIP have learned, as a network of images [B, 3, H, W] -> embeddings [B, embed_dim], of any length; `sentences` gives
    those of words. bias: None for a softmax over captions (CLIP), else the sigmoid's (SigLIP).
    """

    def __init__(self, method: TwoTowers) -> None:
        super().__init__()
        self.backbone, self.project, self.text = method.backbone, method.project, method.text
        self.log_scale: nn.Parameter = method.log_scale  # type: ignore[assignment]
        self.bias: nn.Parameter | None = getattr(method, "bias", None)
        self.num_features = method.project.out_features

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.backbone(images))

    @property
    def scale(self) -> float:
        """The inverse of the learned temperature."""
        return float(self.log_scale.detach().exp())

    @torch.no_grad()
    def sentences(self, sentences: list[str], batch_size: int = 512) -> tuple[Tensor, int]:
        """Unit embeddings float32 [N, embed_dim] of N sentences, and how many of them were cut at the context. The same wording is read
        once, so it has the same embedding. Raises UserError where an embedding is no finite number.
        """
        number = {s: i for i, s in enumerate(dict.fromkeys(sentences))}
        ids, cut = self.read([*number])
        device = self.log_scale.device
        with eval_mode(self):
            parts = [unit(self.text(some.to(device)).float()) for some in ids.split(batch_size)]
        found = torch.cat(parts) if parts else torch.empty(0, self.num_features, device=device)
        if not torch.isfinite(found).all():
            raise UserError("Words get embeddings that are no finite numbers: these weights have diverged.")
        rows = torch.tensor([number[s] for s in sentences], dtype=torch.long)
        return found[rows.to(device)], int(cut[rows].sum())

    def read(self, sentences: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids int32 [N, context] of sentences, and which of them are longer and cut, bool [N]."""
        return tokenize(sentences, int(self.text.context))  # type: ignore[arg-type]

    def confidence(self, cosine: Tensor) -> Tensor:
        """What the network believes of cosines [N, C] of images with labels: CLIP's softmax over the labels at the learned temperature, or
        SigLIP's sigmoid, an answer for each label by itself.
        """
        logits = self.scale * cosine
        return logits.softmax(-1) if self.bias is None else (logits + self.bias.detach()).sigmoid()


def trained_towers(run: Path, trained: DictConfig) -> tuple[TwoTowers, dict[str, Any]]:
    """The method of a finished run with its trained weights, in evaluation mode, and how its images are prepared: "image_size", "mean" and
    "std". trained: the run's config. Raises UserError where they cannot be had.
    """
    known = _about(run / FILE)
    if trained.backbone.get("pretrained"):
        trained.backbone.pretrained = False  # nothing is downloaded for weights that are replaced at once
    method = build(trained, "method", backbone=build(trained, "backbone", image_size=known["image_size"]))
    if not isinstance(method, TwoTowers):
        raise UserError(f"run={run} was trained with {type(method).__name__}, which knows no words: give a run of clip or siglip.")
    load_backbone(method, run / FILE)
    return method.eval(), known


def towers_of(run: Path, trained: DictConfig, image_size: int | None, device: torch.device) -> Judged:
    """The towers of a finished run for images of `image_size` pixels, its own where None. Raises UserError where they cannot be had."""
    method, known = trained_towers(run, trained)
    size = known["image_size"]
    towers = Towers(method).to(device).eval()
    if image_size:
        size = image_size
        try_size(towers, "This run's backbone", size, "choose another image_size")
    about = {"source": str(run), "net": "auto", "epochs": known.get("epochs", trained.epochs)}
    return Judged(towers, size, tuple(known["mean"]), tuple(known["std"]), about)


def _about(file: Path) -> dict[str, Any]:
    """What the header of the towers says, which anyone may have written: at least how images are prepared."""
    try:
        with safe_open(file, "pt") as f:
            known = json.loads((f.metadata() or {}).get("ssl_zoo", "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError) as e:
        raise UserError(f"The weights {file} cannot be read ({str(e).splitlines()[0]}): has the run finished?") from e
    try:
        three = [[float(v) for v in known[key]] for key in ("mean", "std")]
        good = isinstance(known["image_size"], int) and 8 <= known["image_size"] <= 1 << 14 and [len(t) for t in three] == [3, 3]
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise UserError(f"The weights {file} do not say how images are prepared: train the run again, or restore the file from a copy.")
    return known
