"""What a view is, independent of the engine that makes it. No torch here, so a bad value is refused at once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ssl_zoo.errors import UserError

INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class View:
    """One view: random resized crop, flip, colour jitter, grayscale, blur, solarize, in this order.

    size and blur_kernel in pixels, scale as shares of the image's area, ratio as width / height, blur_sigma in pixels,
    solarize_threshold on [0, 1], probabilities on [0, 1], jitter amplitudes as in torchvision's ColorJitter. extra: kornia operations
    that follow, as configs with a `_target_`.
    """

    size: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    interpolation: str
    antialias: bool
    flip: float
    jitter_p: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    gray: float
    blur_p: float
    blur_kernel: int
    blur_sigma: tuple[float, float]
    solarize_p: float
    solarize_threshold: float
    extra: tuple[Any, ...] = ()

    def largest(self, height: int, width: int) -> float:
        """The longest side in pixels that a crop of images of this size can have."""
        side = math.sqrt(self.scale[1] * height * width * max(self.ratio[1], 1 / self.ratio[0]))
        return min(float(max(height, width)), side + 0.5)


def pick(value: Any, size: int) -> Any:
    """A value, or the entry of a table by view size: that of the largest size not above `size`, else of the smallest."""
    if not isinstance(value, Mapping):
        return value
    return value[max((k for k in value if k <= size), default=min(value))]


def resolve(view: Mapping[str, Any], image_size: int, name: str = "view1") -> View:
    """The view that conf/augment/view describes, for images of `image_size` pixels. Raises UserError for a value out of range."""
    size = local_size(image_size) if view["size"] == "local" else view["size"] or image_size

    if isinstance(size, bool) or not isinstance(size, int) or not 8 <= size <= 4096:
        raise UserError(f"augment.{name}.size={size} does not work: it takes null or a whole number of pixels from 8 to 4096.")

    def get(*path: str, low: float = 0.0, high: float = 1.0) -> float:
        value: Any = view
        for part in path:
            value = value[part]
        value = pick(value, size)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise UserError(f"augment.{name}.{'.'.join(path)}={value} does not work: it takes a number from {low:g} to {high:g}.")
        return value

    def span(*path: str, low: float, high: float) -> tuple[float, float]:
        value = pick(view[path[0]][path[1]], size)
        if not (len(value) == 2 and low <= value[0] <= value[1] <= high):
            raise UserError(
                f"augment.{name}.{'.'.join(path)}={list(value)} does not work: it takes [a, b] with {low:g} <= a <= b <= {high:g}."
            )
        return float(value[0]), float(value[1])

    interpolation = pick(view["crop"]["interpolation"], size)
    if interpolation not in INTERPOLATIONS:
        raise UserError(f"augment.{name}.crop.interpolation={interpolation} does not work: it takes {' or '.join(INTERPOLATIONS)}.")
    antialias = view["crop"].get("antialias", False)  # runs of before the fused engine have no such key
    if not isinstance(antialias, bool):
        raise UserError(f"augment.{name}.crop.antialias={antialias} does not work: it takes true or false.")
    extra = view.get("extra") or []
    if not (
        isinstance(extra, list) and all(isinstance(op, dict) and str(op.get("_target_")).startswith("kornia.augmentation.") for op in extra)
    ):
        raise UserError(f"augment.{name}.extra={extra} does not work: it takes a list of {{_target_: kornia.augmentation..., ...}}.")
    s = get("jitter", "strength", high=10.0)
    return View(
        size=int(size),
        scale=span("crop", "scale", low=1e-4, high=1.0),
        ratio=span("crop", "ratio", low=0.05, high=20.0),
        interpolation=interpolation,
        antialias=antialias,
        flip=get("flip"),
        jitter_p=get("jitter", "p"),
        brightness=s * get("jitter", "brightness"),
        contrast=s * get("jitter", "contrast"),
        saturation=s * get("jitter", "saturation"),
        hue=min(0.5, s * get("jitter", "hue", high=0.5)),
        gray=get("gray"),
        blur_p=get("blur", "p"),
        blur_kernel=max(3, int(get("blur", "kernel") * size) // 2 * 2 + 1),
        blur_sigma=span("blur", "sigma", low=0.01, high=50.0),
        solarize_p=get("solarize", "p"),
        solarize_threshold=get("solarize", "threshold"),
        extra=tuple(extra),
    )


def resolve_all(augment: Mapping[str, Any], image_size: int) -> list[View]:
    """The two global views of conf/augment, of one size, and `local_crops` local ones; view1 alone where the config has no view2."""
    given = sorted(k for k in augment if k.startswith("view") and augment[k])
    if given != ["view1", "view2"] and (given != ["view1"] or "view2" in augment):
        raise UserError(f"augment has {', '.join(given) or 'no view'}: a method takes view1 and view2, and more through local_crops.")
    names = [*given, *(["local"] if augment.get("local_crops") else [])]
    views = []
    for name in names:
        try:
            views.append(resolve(augment[name], image_size, name))
        except UserError:
            raise
        except (TypeError, KeyError, AttributeError, ValueError) as e:
            raise UserError(f"augment.{name} cannot be read ({e}): `ssl-zoo --cfg job` shows what a view is made of.") from e
    if len(given) == 2 and views[0].size != views[1].size:
        raise UserError(f"augment.view1 has {views[0].size} px and augment.view2 {views[1].size} px: both need the same size.")
    return views[: len(given)] + views[len(given) :] * augment.get("local_crops", 0)


def resolve_early(augment: Mapping[str, Any], image_size: int) -> list[View] | None:
    """The views of the first part of training: those of `resolve_all`, the global ones with fewer pixels; None where conf/augment asks for
    no such part.
    """
    if (early := augment.get("early_size")) is None:  # which runs of older versions lack
        return None
    first, *others = resolve_all(augment, image_size)
    if early >= first.size:
        raise UserError(f"augment.early_size={early} is not below the {first.size} px of the views: choose a smaller one, or null.")
    if others and early <= others[-1].size < first.size:
        raise UserError(f"augment.early_size={early} is not above the {others[-1].size} px of local views: choose a larger one, or null.")

    def smaller(view: View) -> View:
        kernel = max(3, int(view.blur_kernel * early / view.size) // 2 * 2 + 1)
        return replace(view, size=early, blur_kernel=kernel) if view.size == first.size else view

    return [smaller(view) for view in (first, *others)]


def local_size(image_size: int) -> int:
    """Three sevenths of the image, as 96 of 224, in steps of 16 px (8 px for small images), which suit the patches of transformers."""
    step = 16 if image_size >= 64 else 8
    return max(step, round(image_size * 3 / 7 / step) * step)
