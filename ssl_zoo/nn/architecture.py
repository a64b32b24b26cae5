"""What network a state dict under timm's names is of, as far as names and shapes tell."""

import re
from dataclasses import dataclass

from torch import Tensor

RESNETS: dict[
    tuple[str, tuple[int, ...], int, int], str
] = {  # (kind of block, blocks per stage, width of the first stage's 3x3 convolutions, its input channels)
    ("basic", (2, 2, 2, 2), 64, 64): "resnet18",
    ("basic", (3, 4, 6, 3), 64, 64): "resnet34",
    ("bottleneck", (3, 4, 6, 3), 64, 64): "resnet50",
    ("bottleneck", (3, 4, 23, 3), 64, 64): "resnet101",
    ("bottleneck", (3, 8, 36, 3), 64, 64): "resnet152",
    ("bottleneck", (3, 4, 6, 3), 128, 128): "wide_resnet50_2",
    ("bottleneck", (3, 4, 23, 3), 128, 128): "wide_resnet101_2",
    ("bottleneck", (3, 4, 6, 3), 128, 4): "resnext50_32x4d",
    ("basic", (1, 1, 1, 1), 16, 16): "tiny",
}
TRANSFORMERS = {(192, 12): "vit_tiny", (384, 12): "vit_small", (768, 12): "vit_base", (1024, 24): "vit_large", (1280, 32): "vit_huge"}
CHOICES = {"tiny": "tiny", "resnet18": "resnet18", "resnet50": "resnet50", "vit_tiny": "vit_t", "vit_small": "vit_s", "vit_base": "vit_b"}
OTHERS = {"vit_large": "vit_large_patch16_224", "vit_huge": "vit_huge_patch14_224"}


@dataclass(frozen=True)
class Architecture:
    """family: "ResNet" or "vision transformer". body: what must agree for weights to fit. name: timm's, or "tiny", where it is known.
    first: pixels along the first convolution's kernel.
    """

    family: str
    body: tuple
    name: str | None
    first: int

    def __str__(self) -> str:
        if self.family == "ResNet":
            kind, blocks, width, _ = self.body
            about = f"{'-'.join(map(str, blocks))} {kind} blocks from width {width}, conv1 {self.first}x{self.first}"
        else:
            width, depth = self.body
            about = f"{depth} blocks of width {width}, patches of {self.first} px"
        return f"{self.family} ({self.name + ': ' if self.name else ''}{about})"

    @property
    def remedy(self) -> str:
        """How to ask for this backbone."""
        if self.name is None:
            return "choose the backbone that the file was made with"
        choice = (
            f"backbone={CHOICES[self.name]}" if self.name in CHOICES else f"backbone=timm backbone.name={OTHERS.get(self.name, self.name)}"
        )
        return f"choose {choice}" + (f" backbone.patch_size={self.first}" if self.family != "ResNet" else "")


def architecture(state: dict[str, Tensor]) -> Architecture | None:
    """The architecture of a state dict; None where it is no ResNet or vision transformer that is known here."""
    if {"conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight"} <= state.keys():
        kind = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
        blocks = tuple(_count(state, rf"layer{stage}\.(\d+)\.") for stage in range(1, 5))
        width, channels = state["layer1.0.conv2.weight"].shape[:2]
        body = (kind, blocks, width, channels)
        return Architecture("ResNet", body, RESNETS.get(body), state["conv1.weight"].shape[-1])
    patches = state.get("patch_embed.proj.weight")
    if patches is not None and patches.dim() == 4 and "blocks.0.attn.qkv.weight" in state and "pos_embed" in state:
        size = (patches.shape[0], _count(state, r"blocks\.(\d+)\."))
        return Architecture("vision transformer", size, TRANSFORMERS.get(size), patches.shape[-1])
    return None


def _count(state: dict[str, Tensor], pattern: str) -> int:
    found = [int(m[1]) for name in state if (m := re.match(pattern, name))]
    return max(found, default=-1) + 1
