"""Features of any layer of a backbone, and of the tokens of its last blocks."""

import difflib
import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from ssl_zoo.errors import UserError

Tokens = list[tuple[Tensor, Tensor | None]]
POOLS = ("auto", "cls", "mean", "cls_mean")


class Tap(nn.Module):
    """images [B, 3, H, W] -> features [B, num_features] from `backbone`, in place of its output.

    layer: the output of the sub-module of this name, averaged over positions; of tokens what `pool` says ("auto": the mean of patches).
    blocks, pool: of a transformer the normalised tokens of its last blocks. "cls": the class tokens of the last `blocks`, concatenated
    (DINO's ViT-S: 4); "mean": the means of their patch tokens; "cls_mean": their class tokens and the mean patch token of the last
    (DINO's ViT-B: 1; DINOv2: 1 or 4). Raises UserError where the backbone has no such layer or tokens.
    """

    def __init__(self, backbone: nn.Module, layer: str | None = None, blocks: int = 1, pool: str = "auto") -> None:
        super().__init__()
        if layer is not None and blocks > 1:
            raise UserError("features.layer and features.blocks exclude each other: leave one at its default.")
        self.backbone, self.layer, self.blocks, self.pool = backbone, layer, blocks, pool
        self.prefix = int(getattr(backbone, "num_prefix_tokens", 0))
        if layer is not None:
            known = [name for name, _ in backbone.named_modules() if name]
            if layer not in known:
                close = difflib.get_close_matches(layer, known, n=1)
                hint = f"did you mean '{close[0]}'?" if close else f"it has {', '.join(n for n, _ in backbone.named_children())}."
                raise UserError(f"The backbone has no layer '{layer}'; {hint}")
        elif self.of_tokens:
            gives = inspect.signature(getattr(backbone, "forward_intermediates", lambda: None)).parameters
            depth = len(backbone.blocks) if hasattr(backbone, "blocks") and "return_prefix_tokens" in gives else 0  # type: ignore[arg-type]
            if not depth or (pool in ("cls", "cls_mean") and not self.prefix):
                raise UserError(
                    f"features.blocks={blocks} features.pool={pool} need a transformer with such tokens: use features.layer=..."
                )
            if blocks > depth:
                raise UserError(f"features.blocks={blocks} is more than the {depth} blocks of the backbone.")

    @property
    def of_tokens(self) -> bool:
        return self.layer is None and (self.blocks > 1 or self.pool != "auto")

    def forward(self, images: Tensor) -> Tensor:
        if self.layer is not None:
            return self._at_layer(images)
        return pick(tokens(self.backbone, images, self.blocks), self.blocks, self.pool) if self.of_tokens else self.backbone(images)

    def _at_layer(self, images: Tensor) -> Tensor:
        found: list[Any] = []
        hook = self.backbone.get_submodule(self.layer or "").register_forward_hook(lambda _m, _x, out: found.append(out))
        try:
            self.backbone(images)
        finally:
            hook.remove()
        out = found[-1][0] if found and isinstance(found[-1], (tuple, list)) else found[-1] if found else None
        if not isinstance(out, Tensor) or out.ndim not in (2, 3, 4) or len(out) != len(images):
            raise UserError(f"features.layer={self.layer} gives no features of images: name a layer or a block.")
        if out.ndim == 3:
            prefix = self.prefix if self._has_prefix(out.shape[1]) else 0
            if prefix or self.pool in ("auto", "mean"):
                return pick([(out[:, prefix:], out[:, :prefix])], 1, "mean" if self.pool == "auto" else self.pool)
        if self.pool not in ("auto", "mean"):
            raise UserError(f"features.layer={self.layer} has no class token for features.pool={self.pool}: leave the pool at auto.")
        if out.ndim == 2:
            return out
        _, a, b, c = out.shape  # images are square: the two sides that agree are the positions
        last = a == b and (b != c or getattr(self.backbone, "output_fmt", "NCHW") == "NHWC")
        return out.mean((1, 2) if last else (2, 3))

    def _has_prefix(self, count: int) -> bool:
        """Whether `count` tokens are a grid of patches behind class and register tokens."""
        patches = getattr(getattr(self.backbone, "patch_embed", None), "num_patches", None)
        if count in (patches, (patches or 0) + self.prefix):
            return count != patches
        return math.isqrt(max(0, count - self.prefix)) ** 2 == count - self.prefix  # images of another size than the built one


def tokens(backbone: nn.Module, images: Tensor, blocks: int) -> Tokens:
    """(patch tokens [B, N, D], class and register tokens [B, P, D] or None) after each of the last `blocks`, through the final norm."""
    found = backbone.forward_intermediates(  # type: ignore[operator]
        images, indices=blocks, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
    )
    norm = getattr(backbone, "fc_norm", None) if isinstance(getattr(backbone, "norm", None), nn.Identity) else None  # of averaging ones
    normed = norm if isinstance(norm, nn.Module) else nn.Identity()
    pairs = ((t[0], t[1]) if isinstance(t, (tuple, list)) else (t, None) for t in found)
    return [(normed(patches), None if others is None else normed(others)) for patches, others in pairs]


def pick(found: Tokens, blocks: int, pool: str) -> Tensor:
    """Features [B, D'] of tokens as `Tap` describes them; "auto" is "cls" where there is a class token, else "mean"."""
    if pool == "auto":
        pool = "mean" if found[-1][1] is None or not found[-1][1].shape[1] else "cls"
    if pool == "mean":
        return torch.cat([patches.mean(1) for patches, _ in found[-blocks:]], -1)
    cls = torch.cat([prefix[:, 0] for _, prefix in found[-blocks:] if prefix is not None], -1)
    return torch.cat([cls, found[-1][0].mean(1)], -1) if pool == "cls_mean" else cls
