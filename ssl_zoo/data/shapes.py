"""The embedded data set `shapes`: captioned pictures of ten shapes, drawn when asked for, with nothing to download.

An image is a function of (seed, split, index) alone: the first n images of a larger set are the set of n images. The
scene does not depend on the image size either. Colour, place and size of the shape are what SimCLR's augmentations vary;
what they leave alone (texture, background, clutter) can identify an image, so learning the shape is harder with more of it.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "test")
TEXTURES = ("solid", "striped", "dotted", "checked")
# Name: hue, saturation, value in [0, 1]. Fills are lighter (first row) or darker than every background, so that the shape
# stays visible in grayscale, yet neither brightness nor colour alone tells the shape from the background.
FILLS = (
    {"yellow": (0.15, 0.7, 1.0), "orange": (0.09, 0.7, 1.0), "pink": (0.93, 0.3, 1.0), "cyan": (0.5, 0.5, 1.0)},
    {"red": (0.99, 0.9, 0.58), "green": (0.37, 0.9, 0.28), "blue": (0.64, 0.85, 0.5), "purple": (0.78, 0.8, 0.4)},
)
GROUNDS = {"gray": (0.0, 0.0, 0.5), "slate blue": (0.6, 0.35, 0.58), "olive": (0.22, 0.35, 0.5), "brown": (0.06, 0.4, 0.55)}
DISTRACTORS = 8  # at clutter 1
UNIFORMS = 17 + 3 * DISTRACTORS  # numbers drawn per image; another count changes every image
PIXELS_PER_CHUNK = 1 << 18  # bounds the memory of the drawing whatever the number and the size of the images


def _star() -> list[tuple[float, float]]:
    radii = [1.0, 0.42] * 5
    return [(r * math.sin(math.pi * k / 5), 0.05 - r * math.cos(math.pi * k / 5)) for k, r in enumerate(radii)]


def _heart(n: int = 28) -> list[tuple[float, float]]:
    turns = [2 * math.pi * (k + 0.5) / n for k in range(n)]
    heights = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in turns]
    return [(0.95 * math.sin(a) ** 3, -(h + 2.5) / 16.5) for a, h in zip(turns, heights, strict=True)]


# Corners in turn, about the centre of the shape, in units of its radius; x to the right, y down.
POLYGONS = {
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0.0, -0.95), (0.98, 0.75), (-0.98, 0.75)],
    "star": _star(),
    "cross": [(-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3),
              (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)],
    "heart": _heart(),
    "hourglass": [(-0.85, -0.9), (0.85, -0.9), (0.12, 0.0), (0.85, 0.9), (-0.85, 0.9), (-0.12, 0.0)],
    "arrow": [(0.0, -0.98), (0.9, -0.05), (0.32, -0.05), (0.32, 0.95), (-0.32, 0.95), (-0.32, -0.05), (-0.9, -0.05)],
}  # fmt: skip


def _polygon(x: Tensor, y: Tensor, corners: list[tuple[float, float]]) -> Tensor:
    """Signed distance to a polygon: the nearest edge gives its size, the parity of the edges crossed its sign."""
    nearest = torch.full_like(x, torch.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp_(0, 1)
        nearest = torch.minimum(nearest, (px - along * ex).square_() + (py - along * ey).square_())
        if ey != 0:
            inside ^= ((y < ay) != (y < by)) & (px < py * (ex / ey))
    return torch.where(inside, -1.0, 1.0) * nearest.sqrt_()


def _distance(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to the named shape, negative inside, in units of the shape's radius."""
    if name in POLYGONS:
        return _polygon(x, y, POLYGONS[name])
    if name == "ring":
        return (torch.hypot(x, y) - 0.68).abs_() - 0.24
    if name == "crescent":
        return torch.maximum(torch.hypot(x, y) - 0.95, 0.72 - torch.hypot(x - 0.42, y))
    return torch.hypot(x, y) - 0.9


def _pattern(texture: int, x: Tensor, y: Tensor, period: Tensor) -> Tensor:
    """Coverage in [0, 1] of the second shade; x and y in periods, `period` in pixels [n, 1, 1] for soft edges."""
    if texture == 1:
        edge = torch.sin(2 * math.pi * x) / (2 * math.pi)
    elif texture == 2:
        edge = 0.33 - torch.hypot(x - x.round(), y - y.round())
    elif texture == 3:
        edge = torch.sin(math.pi * x) * torch.sin(math.pi * y) / math.pi
    else:
        return torch.zeros_like(x)
    return (0.5 + edge * period).clamp_(0, 1)


def _rgb(hsv: Tensor) -> Tensor:
    """Hue, saturation, value [n, 3] in [0, 1] to red, green, blue [n, 3, 1, 1] in [0, 1]."""
    hue, saturation, value = hsv.unsqueeze(-1).unbind(1)
    k = (torch.tensor([5.0, 3.0, 1.0]) + hue * 6) % 6
    return (value * (1 - saturation * torch.minimum(k, 4 - k).clamp_(0, 1)))[..., None, None]


@dataclass
class Shapes:
    """Ten shapes that differ in colour, texture, size, place and background; the label is the shape.

    clutter: small discs strewn behind the shape, 0 (none) to 1 (up to eight); texture: contrast of the pattern on the
    shape, 0 (all solid) to 1; background: strength of the light falling off across the background, 0 (flat) to 1;
    min_size, max_size: the shape's diameter as a share of the image's side, in (0, 1]; shift: how far the shape leaves the
    centre, 0 to 1 (up to the border); rotation: largest turn to either side in degrees, 0 to 180.
    """

    image_size: int = 32
    train_size: int = 10000
    test_size: int = 2000
    seed: int = 0
    clutter: float = 0.25
    texture: float = 0.4
    background: float = 0.25
    min_size: float = 0.4
    max_size: float = 0.75
    shift: float = 1.0
    rotation: float = 30.0
    stretch: float = 0.25
    classes: ClassVar[list[str]] = ["circle", "crescent", "ring", *POLYGONS]

    def __post_init__(self) -> None:
        for name, least in (("image_size", 16), ("train_size", 1), ("test_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"shapes: {name} is {getattr(self, name)}; set it to {least} or more.")
        for name, most in (("clutter", 1), ("texture", 1), ("background", 1), ("shift", 1), ("rotation", 180)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"shapes: {name} is {getattr(self, name)}; set it to a number from 0 to {most}.")
        if not 0 < self.min_size <= self.max_size <= 1:
            sizes = f"min_size is {self.min_size} and max_size {self.max_size}"
            raise ValueError(f"shapes: {sizes}; choose them so that 0 < min_size <= max_size <= 1.")

    def load(self, split: str) -> tuple[Tensor, Tensor, list[list[str]]]:
        """Images uint8 [N, 3, S, S], labels int64 [N], and a list of captions (here one) for each image."""
        if split not in SPLITS:
            raise ValueError(f"shapes has no split {split!r}; ask for 'train' or 'test'.")
        count = self.train_size if split == "train" else self.test_size
        chunk = max(1, PIXELS_PER_CHUNK // self.image_size**2)
        # Only whole chunks are drawn: the length of a vector can change the last bit of a sine, hence a pixel.
        stream = np.random.Philox(np.random.SeedSequence([self.seed, SPLITS.index(split)]))
        uniforms = np.random.Generator(stream).random((math.ceil(count / chunk) * chunk, UNIFORMS), dtype=np.float32)
        images = torch.empty(len(uniforms), 3, self.image_size, self.image_size, dtype=torch.uint8)
        labels, captions = [], []
        for start in range(0, len(uniforms), chunk):
            scene = self._scene(torch.from_numpy(uniforms[start : start + chunk]))
            images[start : start + chunk] = self._draw(scene)
            labels.append(scene["shape"])
            captions += self._captions(scene)
        return images[:count].clone(), torch.cat(labels)[:count], captions[:count]

    def _scene(self, u: Tensor) -> dict[str, Tensor]:
        """What the uniform numbers [n, UNIFORMS] say is in each image; lengths are shares of the image's side."""
        size = self.min_size + (self.max_size - self.min_size) * u[:, 5]
        return {
            "shape": (u[:, 0] * len(self.classes)).long(),
            "dark": (u[:, 1] * 2).long(),
            "fill": (u[:, 2] * 4).long(),
            "ground": (1 + 3 * u[:, 3] / max(self.background, 1e-6)).long() * (u[:, 3] < self.background),
            "texture": (u[:, 4] * len(TEXTURES)).long() * (self.texture > 0),
            "size": size,
            "place": 0.5 + self.shift * (1 - size[:, None]) * (u[:, 6:8] - 0.5),
            "turn": math.radians(self.rotation) * (2 * u[:, 8] - 1),
            "slant": math.pi * u[:, 9],
            "period": 0.5 + 0.2 * u[:, 10],
            "light": 2 * math.pi * u[:, 11],
            "tint": u[:, 12:16] - 0.5,
            "stretch": (1 + self.stretch) ** (2 * u[:, 16] - 1),
            "discs": u[:, 17:].view(len(u), DISTRACTORS, 3),
        }

    def _draw(self, scene: dict[str, Tensor]) -> Tensor:
        """The images uint8 [n, 3, S, S] of a scene."""
        side, radius = self.image_size, scene["size"][:, None, None] / 2
        axis = (torch.arange(side) + 0.5) / side
        row, column = axis[:, None], axis
        fill, ground = self._colours(scene)
        toward = torch.where(scene["dark"].bool(), 1.0, 0.0)[:, None, None, None]

        light = scene["light"][:, None, None]
        slope = torch.cos(light) * (column - 0.5) + torch.sin(light) * (row - 0.5)
        image = ground * (1 + 0.6 * (scene["ground"] > 0)[:, None, None, None] * slope[:, None])
        for disc in scene["discs"].unbind(1):
            across, down, presence = disc[:, :, None, None].unbind(1)
            width = torch.where(presence < self.clutter, 0.025 + 0.03 * presence / max(self.clutter, 1e-6), -1.0)
            cover = (0.5 + side * (width - torch.hypot(column - across, row - down))).clamp_(0, 1)[:, None]
            image = torch.lerp(image, ground + 0.2 - 0.4 * toward, cover)

        # Into the shape's own frame: its centre at 0, its radius 1.
        turn, slant = scene["turn"][:, None, None], scene["slant"][:, None, None]
        x, y = ((p - scene["place"][:, i, None, None]) / radius for i, p in enumerate((column, row)))
        x, y = torch.cos(turn) * x + torch.sin(turn) * y, torch.cos(turn) * y - torch.sin(turn) * x
        stretch = scene["stretch"][:, None, None].sqrt()
        x, y = x / stretch, y * stretch
        period = scene["period"][:, None, None]
        across, down = (torch.cos(slant) * x + torch.sin(slant) * y) / period, (torch.cos(slant) * y - torch.sin(slant) * x) / period
        cover, shade = torch.empty_like(x), torch.empty_like(x)
        for k, name in enumerate(self.classes):
            chosen = scene["shape"] == k
            cover[chosen] = (0.5 - _distance(name, x[chosen], y[chosen]) * radius[chosen] * side).clamp_(0, 1)
        for k in range(len(TEXTURES)):
            chosen = scene["texture"] == k
            shade[chosen] = _pattern(k, across[chosen], down[chosen], (period * radius)[chosen] * side)
        fill = torch.lerp(fill, ground, 0.8 * self.texture * shade[:, None])
        return (torch.lerp(image, fill, cover[:, None]).clamp_(0, 1) * 255).round_().to(torch.uint8)

    def _colours(self, scene: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The colours of shape and background, each [n, 3, 1, 1], a little off the named ones."""
        tint = scene["tint"]
        fill = torch.tensor([list(row.values()) for row in FILLS])[scene["dark"], scene["fill"]]
        ground = torch.tensor(list(GROUNDS.values()))[scene["ground"]]
        fill = fill + tint[:, :3] * torch.tensor([0.04, 0.1, 0.1])
        ground = ground + tint[:, 3:] * torch.tensor([0.0, 0.0, 0.2])
        return _rgb(fill.clamp_(0, 1)), _rgb(ground)

    def _captions(self, scene: dict[str, Tensor]) -> list[list[str]]:
        captions = []
        for shape, dark, fill, ground, texture, size, (x, y) in zip(
            *(scene[k].tolist() for k in ("shape", "dark", "fill", "ground", "texture", "size", "place")), strict=True
        ):
            extent = "small" if size < 0.5 else "medium-sized" if size < 0.63 else "large"
            down = "top" if y < 0.43 else "bottom" if y > 0.57 else ""
            across = "left" if x < 0.43 else "right" if x > 0.57 else ""
            place = f"at the {down} {across}".replace("  ", " ").rstrip() if down or across else "in the centre"
            colour, back = list(FILLS[dark])[fill], list(GROUNDS)[ground]
            what = f"a {extent} {colour} {TEXTURES[texture]} {self.classes[shape]}"
            captions.append([f"{what} {place} on a {back} background"])
        return captions
