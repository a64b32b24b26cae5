"""Colour operations on planes (red, green, blue; [B, h, w] on [0, 1]) with a strength of its own for every image.

Formulas are those of torchvision's ColorJitter, rgb_to_grayscale and solarize on float tensors. Nothing depends on a value that
would have to be read on the host.
"""

import torch
from torch import Tensor

from ssl_zoo.augment.crop import Planes

LUMA = (0.2989, 0.587, 0.114)


def _each(t: Tensor) -> Tensor:
    return t[:, None, None]


def luma(rgb: Planes) -> Tensor:
    return LUMA[0] * rgb[0] + LUMA[1] * rgb[1] + LUMA[2] * rgb[2]


def select(on: Tensor, a: Planes, b: Planes) -> Planes:
    """Planes of `a` for the images where `on` [B] holds, else of `b`."""
    return tuple(torch.where(_each(on), x, y) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def shift_hue(rgb: Planes, turn: Tensor) -> Planes:
    """Add `turn` [B] (1 is the whole circle) to the hue of HSV, saturation and value kept."""
    r, g, b = rgb
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    per = 1 / torch.where(chroma == 0, 1.0, chroma)
    sixth = torch.where(value == r, (g - b) * per, torch.where(value == g, 2 + (b - r) * per, 4 + (r - g) * per)) + 6 * _each(turn)

    def channel(n: float) -> Tensor:  # HSV to RGB without cases: V - C max(0, min(k, 4 - k, 1)), k = (n + H) mod 6
        k = sixth + n
        k = k - 6 * torch.floor(k * (1 / 6))
        return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)

    return channel(5.0), channel(3.0), channel(1.0)


def places(u: Tensor) -> Tensor:
    """A random order of k operations from uniform numbers [B, k]: the place of each, 0 to k - 1, is how many numbers are smaller."""
    mine, other = u[:, :, None], u[:, None, :]
    earlier = torch.ones(u.shape[1], u.shape[1], dtype=torch.bool, device=u.device).tril(-1)  # of two equal ones the first is smaller
    return ((other < mine) | ((other == mine) & earlier)).sum(2)


def jitter(rgb: Planes, place: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Planes:
    """Brightness, contrast, saturation (factors [B]) and hue (turns [B]), for every image at their `place` [B, 4], 0 to 3.

    All but hue are clamp(a x + b luma(x) + d) with scalars a, b, d for each image: brightness f has a = f; saturation a = f, b = 1 - f;
    contrast a = f, d = (1 - f) mean(luma). So whatever the order, an image passes three such steps, the hue, and three more, of which
    those that are not its turn do nothing. The mean that contrast needs is that of a first passage which ends before it, so two steps on
    either side of the hue are enough there.
    """
    of_hue, others = place[:, 3:], place[:, :3]
    after_hue = others > of_hue
    among = others - after_hue.long()  # places of the three among themselves
    before_contrast = place < place[:, 1:2]

    def step(rgb: Planes, number: int, after: bool, mean: Tensor | None) -> Planes:
        turn = (among == number) & (after_hue == after)
        if mean is None:
            turn = turn & before_contrast[:, :3]
        bright, contrasted, saturated = turn.unbind(1)
        a = torch.where(bright, brightness, torch.where(saturated, saturation, 1.0))
        add = _each(torch.where(saturated, 1 - saturation, 0.0)) * luma(rgb)
        if mean is not None:
            a = torch.where(contrasted, contrast, a)
            add = add + _each(torch.where(contrasted, (1 - contrast) * mean, 0.0))
        return tuple((_each(a) * x + add).clamp(0, 1) for x in rgb)  # type: ignore[return-value]

    def passage(mean: Tensor | None) -> Planes:
        x, steps = rgb, 2 if mean is None else 3
        for number in range(steps):
            x = step(x, number, False, mean)
        x = shift_hue(x, torch.where(before_contrast[:, 3], hue, 0.0) if mean is None else hue)
        for number in range(steps):
            x = step(x, number, True, mean)
        return x

    return passage(luma(passage(None)).mean((1, 2)))


def grayscale(rgb: Planes, on: Tensor) -> Planes:
    """The luma on all three planes of the images where `on` [B] holds."""
    y = luma(rgb)
    return select(on, (y, y, y), rgb)


def solarize(rgb: Planes, on: Tensor, threshold: float) -> Planes:
    """Invert what is at or above `threshold`, in the images where `on` [B] holds."""
    return tuple(torch.where(_each(on) & (x >= threshold), 1 - x, x) for x in rgb)  # type: ignore[return-value]
