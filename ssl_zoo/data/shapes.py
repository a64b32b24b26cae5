"""The embedded data set `shapes`: captioned pictures of ten shapes, drawn when asked for, with nothing to download.

An image is a function of (seed, split, index) alone: the first n images of a larger set are the set of n images. The
scene does not depend on the image size either. All the shapes in an image are of one kind, which is the label, and differ
in all else, so that two crops of an image share little besides the label.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "test")
TEXTURES = ("solid", "striped", "dotted", "checked")
# Name: hue, saturation, value in [0, 1]. Light fills go on dark backgrounds (the first row of each) and dark fills on pale
# ones, so that the shapes stay visible in grayscale.
FILLS = (
    {"yellow": (0.14, 0.6, 0.85), "orange": (0.07, 0.5, 1.0), "pink": (0.93, 0.4, 1.0), "red": (0.0, 0.45, 1.0)},
    {"red": (0.99, 0.9, 0.8), "green": (0.37, 0.85, 0.5), "blue": (0.61, 0.85, 0.8), "purple": (0.77, 0.75, 0.6)},
)
BACKGROUNDS = (
    {"black": (0.0, 0.0, 0.05), "navy": (0.64, 0.7, 0.35), "dark green": (0.4, 0.7, 0.25), "maroon": (0.97, 0.7, 0.33)},
    {"white": (0.0, 0.0, 1.0), "pale blue": (0.57, 0.2, 0.95), "pale green": (0.33, 0.2, 0.93), "beige": (0.1, 0.2, 0.95)},
)
FIGURES = 7  # the main shape and up to six companions
DISCS = 8  # at clutter 1
UNIFORMS = 8 + 12 * FIGURES + 3 * DISCS  # numbers drawn per image; another count changes every image
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


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cos(angle) * x + torch.sin(angle) * y, torch.cos(angle) * y - torch.sin(angle) * x


def _rgb(hsv: Tensor) -> Tensor:
    """Hue, saturation, value [n, 3] in [0, 1] to red, green, blue [n, 3, 1, 1] in [0, 1]."""
    hue, saturation, value = hsv.unsqueeze(-1).unbind(1)
    k = (torch.tensor([5.0, 3.0, 1.0]) + hue * 6) % 6
    return (value * (1 - saturation * torch.minimum(k, 4 - k).clamp_(0, 1)))[..., None, None]


@dataclass
class Shapes:
    """A main shape and smaller companions of the same kind; the kind is the label, the caption tells of the main one.

    companions: chance of each of six companions, 0 (none) to 1; clutter: small discs strewn behind the shapes, 0 (none) to
    1 (up to eight); texture: contrast of the patterns on the shapes, 0 (all solid) to 1; background: share of the images
    whose background is coloured and unevenly lit rather than plain black or white, 0 to 1; min_size, max_size: diameter of
    the main shape as a share of the image's side, in (0, 1]; shift: how far the main shape leaves the centre, 0 to 1 (up to
    the border); rotation: largest turn of a shape to either side in degrees, 0 to 180.
    """

    image_size: int = 32
    train_size: int = 10000
    test_size: int = 2000
    seed: int = 0
    companions: float = 0.0
    clutter: float = 0.2
    texture: float = 0.4
    background: float = 0.8
    min_size: float = 0.5
    max_size: float = 0.85
    shift: float = 1.0
    rotation: float = 15.0
    classes: ClassVar[list[str]] = ["circle", "crescent", "ring", *POLYGONS]

    def __post_init__(self) -> None:
        for name, least in (("image_size", 16), ("train_size", 1), ("test_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"shapes: {name} is {getattr(self, name)}; set it to {least} or more.")
        for name, most in (("companions", 1), ("clutter", 1), ("texture", 1), ("background", 1), ("shift", 1), ("rotation", 180)):
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
        whole, figures, discs = u.split((8, 12 * FIGURES, 3 * DISCS), dim=1)
        v = figures.unflatten(1, (FIGURES, 12))
        size = self.min_size + (self.max_size - self.min_size) * v[..., 0]
        size[:, 1:] = size[:, :1] * (0.45 + 0.25 * v[:, 1:, 0])
        reach = torch.tensor([self.shift] + [1.0] * (FIGURES - 1))[:, None]
        return {
            "shape": (whole[:, 0] * len(self.classes)).long(),
            "dark": (whole[:, 1] * 0).long(),
            "ground": (whole[:, 2] * 4).long() * 0,
            "phase": whole[:, 3:5],
            "check": 0.2 + 0.1 * whole[:, 5],
            "size": size,
            "place": 0.5 + reach * (1 - size[..., None]) * (v[..., 1:3] - 0.5),
            "present": (v[..., 3] < self.companions) | (torch.arange(FIGURES) == 0),
            "fill": (v[..., 4] * 4).long(),
            "texture": (v[..., 5] * len(TEXTURES)).long() * (self.texture > 0),
            "turn": math.radians(self.rotation) * (2 * v[..., 6] - 1),
            "slant": math.pi * v[..., 7],
            "period": 0.5 + 0.2 * v[..., 8],
            "tint": (v[..., 9:12] - 0.5) * torch.tensor([0.04, 0.1, 0.1]),
            "discs": discs.unflatten(1, (DISCS, 3)),
        }

    def _draw(self, scene: dict[str, Tensor]) -> Tensor:
        """The images uint8 [n, 3, S, S] of a scene."""
        side, dark = self.image_size, scene["dark"]
        axis = (torch.arange(side) + 0.5) / side
        row, column = axis[:, None], axis
        ground = _rgb(torch.tensor([list(colours.values()) for colours in BACKGROUNDS])[dark, scene["ground"]])
        x, y = ((p - scene["phase"][:, i, None, None]) / scene["check"][:, None, None] for i, p in enumerate((column, row)))
        step = torch.where(dark.bool(), -0.45, 0.45)[:, None, None, None] * self.background
        image = ground + step * _pattern(3, x, y, scene["check"][:, None, None] * side)[:, None]
        toward = torch.where(dark.bool(), -0.25, 0.35)[:, None, None, None]
        for disc in scene["discs"][..., None, None].unbind(1):
            across, down, presence = disc.unbind(1)
            width = torch.where(presence < self.clutter, 0.025 + 0.03 * presence / max(self.clutter, 1e-6), -1.0)
            cover = (0.5 + side * (width - torch.hypot(column - across, row - down))).clamp_(0, 1)
            image = torch.lerp(image, ground + toward, cover[:, None])
        for k in reversed(range(FIGURES)):  # the main shape last, in front of its companions
            self._add(image, scene, k)
        return (image.clamp_(0, 1) * 255).round_().to(torch.uint8)

    def _add(self, image: Tensor, scene: dict[str, Tensor], k: int) -> None:
        """Draw figure k of each scene over the images [n, 3, S, S], in place."""
        axis = (torch.arange(self.image_size) + 0.5) / self.image_size
        for label, name in enumerate(self.classes):
            at = ((scene["shape"] == label) & scene["present"][:, k]).nonzero()[:, 0]
            one = {key: scene[key][at, k][:, None, None] for key in ("size", "turn", "slant", "period")}
            radius, pixels = one["size"] / 2, one["size"] / 2 * self.image_size
            # Into the figure's own frame: its centre at 0, its radius 1.
            place = scene["place"][at, k, :, None, None]
            x, y = _turned((axis - place[:, 0]) / radius, (axis[:, None] - place[:, 1]) / radius, one["turn"])
            across, down = _turned(x / one["period"], y / one["period"], one["slant"])
            shade = torch.zeros_like(x)
            for texture in range(1, len(TEXTURES)):
                some = scene["texture"][at, k] == texture
                shade[some] = _pattern(texture, across[some], down[some], (one["period"] * pixels)[some])
            dark = scene["dark"][at]
            hsv = torch.tensor([list(colours.values()) for colours in FILLS])[dark, scene["fill"][at, k]]
            fill = _rgb((hsv + scene["tint"][at, k]).clamp_(0, 1))
            fill = torch.lerp(fill, dark[:, None, None, None].float(), 0.7 * self.texture * shade[:, None])
            cover = (0.5 - _distance(name, x, y) * pixels).clamp_(0, 1)
            image[at] = torch.lerp(image[at], fill, cover[:, None])

    def _captions(self, scene: dict[str, Tensor]) -> list[list[str]]:
        captions = []
        for shape, dark, ground, others, fills, textures, sizes, places in zip(
            *(scene[k].tolist() for k in ("shape", "dark", "ground", "present", "fill", "texture", "size", "place")), strict=True
        ):
            (x, y), size = places[0], sizes[0]
            extent = "small" if size < 0.45 else "medium-sized" if size < 0.53 else "large"
            down = "top" if y < 0.43 else "bottom" if y > 0.57 else ""
            across = "left" if x < 0.43 else "right" if x > 0.57 else ""
            place = f"at the {down} {across}".replace("  ", " ").rstrip() if down or across else "in the centre"
            colour, back = list(FILLS[dark])[fills[0]], list(BACKGROUNDS[dark])[ground]
            what = f"a {extent} {colour} {TEXTURES[textures[0]]} {self.classes[shape]}"
            company = " with smaller ones" if any(others[1:]) else ""
            captions.append([f"{what} {place}{company} on a {back} background"])
        return captions
