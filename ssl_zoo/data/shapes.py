"""The embedded data set `shapes`: captioned pictures of ten shapes, drawn when asked for, with nothing to download.

An image is a function of (seed, split, index) alone: the first n images of a larger set are the set of n images. The
scene does not depend on the image size either. What tells two images apart, other than the shape, is what SimCLR's views
vary: hue, place and size. Texture, turn, light and clutter survive the views and can identify an image, so learning the
shape is harder with more of them.
"""

import difflib
import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.data.images import Images
from ssl_zoo.data.outlines import KINDS, distance
from ssl_zoo.errors import UserError

SPLITS = ("train", "test")
TEXTURES = ("solid", "striped", "dotted", "checked")
COLOURS = {"red": 0.0, "orange": 0.08, "yellow": 0.16, "green": 0.34, "cyan": 0.5, "blue": 0.64, "purple": 0.77, "pink": 0.9}
DISCS = 8  # at clutter 1
UNIFORMS = 16 + 3 * DISCS  # numbers drawn per image; another count changes every image
PIXELS_PER_CHUNK = 1 << 18  # bounds the memory of the drawing whatever the number and the size of the images


COMBINATIONS = [f"{colour} {kind}" for colour in COLOURS for kind in KINDS]
LABELS = ("shape", "colour", "colour_shape")


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


def _name(hue: float) -> str:
    """The colour word nearest to a hue in [0, 1)."""
    return min(COLOURS, key=lambda c: min(abs(hue - COLOURS[c]), 1 - abs(hue - COLOURS[c])))


def _colours(hues: Tensor) -> Tensor:
    """The number of `_name` in COLOURS for each of the hues [n], int64 [n]."""
    away = np.abs(hues.double().numpy()[:, None] - np.array([*COLOURS.values()]))
    return torch.from_numpy(np.minimum(away, 1 - away).argmin(1))


@dataclass
class Shapes:
    """One shape per image; its kind is the label, the caption tells the rest.

    clutter: small discs strewn behind the shape, 0 (none) to 1 (up to eight); texture: contrast of the pattern on the
    shape, 0 (all solid) to 1; background: unevenness of the light on the background, 0 (flat) to 1; colour: spread of the
    hues, 0 (orange on blue) to 1 (any hue on its opposite); min_size, max_size: diameter of the shape as a share of the
    image's side, in (0, 1]; shift: how far the shape leaves the centre, 0 to 1 (up to the border); rotation: largest turn
    to either side in degrees, 0 to 180; labels: "shape", "colour" of the shape, or "colour_shape", as in "red star"; held_out:
    such combinations that train leaves out, taking later ones of its scenes instead. Test shows them as ever.
    """

    image_size: int = 32
    train_size: int = 4000
    test_size: int = 1000
    seed: int = 0
    clutter: float = 0.2
    texture: float = 0.3
    background: float = 0.3
    colour: float = 1.0
    min_size: float = 0.4
    max_size: float = 0.85
    shift: float = 0.7
    rotation: float = 180.0
    labels: str = "shape"
    held_out: list[str] = field(default_factory=list)
    classes: ClassVar[list[str]] = KINDS

    def __post_init__(self) -> None:
        for name, least in (("image_size", 16), ("train_size", 1), ("test_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"shapes: {name} is {getattr(self, name)}; set it to {least} or more.")
        for name, most in (("clutter", 1), ("texture", 1), ("background", 1), ("colour", 1), ("shift", 1), ("rotation", 180)):
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"shapes: {name} is {getattr(self, name)}; set it to a number from 0 to {most}.")
        if not 0 < self.min_size <= self.max_size <= 1:
            sizes = f"min_size is {self.min_size} and max_size {self.max_size}"
            raise UserError(f"shapes: {sizes}; choose them so that 0 < min_size <= max_size <= 1.")
        if self.labels not in LABELS:
            raise UserError(f"shapes: labels is {self.labels}; set it to one of {', '.join(LABELS)}.")
        for unknown in [c for c in self.held_out if c not in COMBINATIONS]:
            near = difflib.get_close_matches(str(unknown), COMBINATIONS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it takes a colour ({', '.join(COLOURS)}) and a shape ({', '.join(KINDS)})."
            raise UserError(f"shapes: held_out has '{unknown}', which is no combination; {hint}")

    def load(self, split: str) -> Images:
        """The "train" or "test" images, with labels, class names and one caption each."""
        count = self.train_size if split == "train" else self.test_size
        chunk = max(1, PIXELS_PER_CHUNK // self.image_size**2)
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, SPLITS.index(split)])))
        images = torch.empty(count, 3, self.image_size, self.image_size, dtype=torch.uint8)
        labels: list[int] = []
        captions: list[list[str]] = []
        drawn = 0
        while len(labels) < count:
            # Only whole chunks are drawn: the length of a vector can change the last bit of a sine, hence a pixel.
            scene = self._scene(torch.from_numpy(generator.random((chunk, UNIFORMS), dtype=np.float32)))
            kept = (~self._is_held_out(scene) if split == "train" else torch.ones(chunk, dtype=torch.bool)).nonzero()[:, 0]
            kept = kept[: count - len(labels)]
            images[len(labels) : len(labels) + len(kept)] = self._draw(scene)[kept]
            of_all = self._captions(scene)
            captions += [of_all[i] for i in kept.tolist()]
            labels += self._labels(scene)[kept].tolist()
            drawn += chunk
            if drawn > 20_000 and len(labels) < drawn / 200:
                raise UserError("shapes: held_out leaves next to nothing to train on: hold fewer combinations out.")
        return Images(images, torch.tensor(labels), self.names, self.image_size, captions)

    @property
    def names(self) -> list[str]:
        """What the labels stand for."""
        return {"shape": self.classes, "colour": [*COLOURS], "colour_shape": COMBINATIONS}[self.labels]

    def _labels(self, scene: dict[str, Tensor]) -> Tensor:
        colour = _colours(scene["hue"])
        return {"shape": scene["shape"], "colour": colour, "colour_shape": colour * len(self.classes) + scene["shape"]}[self.labels]

    def _is_held_out(self, scene: dict[str, Tensor]) -> Tensor:
        apart = torch.tensor([COMBINATIONS.index(c) for c in self.held_out], dtype=torch.long)
        return torch.isin(_colours(scene["hue"]) * len(self.classes) + scene["shape"], apart)

    def _scene(self, u: Tensor) -> dict[str, Tensor]:
        """What the uniform numbers [n, UNIFORMS] say is in each image; lengths are shares of the image's side."""
        hue = 0.08 + self.colour * u[:, 4]
        dark = u[:, 5] < 0.5  # whether the background is darker than the shape
        shape_hsv = torch.stack([hue % 1, 0.75 + 0.2 * u[:, 6], torch.where(dark, 1.0, 0.55)], 1)
        # the opposite hue: turning the hues of a whole image, as views do, then leaves nothing of its colours to know it by
        ground_hsv = torch.stack([(hue + 0.5) % 1, torch.where(dark, 0.8, 0.35), torch.where(dark, 0.3, 1.0)], 1)
        size = self.min_size + (self.max_size - self.min_size) * u[:, 1]
        return {
            "shape": (u[:, 0] * len(self.classes)).long(),
            "size": size,
            "place": 0.5 + self.shift * (1 - size[:, None]) * (u[:, 2:4] - 0.5),
            "hue": hue % 1,
            "dark": dark.float(),
            "fill": _rgb(shape_hsv),
            "ground": _rgb(ground_hsv),
            "texture": (u[:, 8] * len(TEXTURES)).long() * (self.texture > 0),
            "turn": math.radians(self.rotation) * (2 * u[:, 9] - 1),
            "slant": math.pi * u[:, 10],
            "period": 0.5 + 0.2 * u[:, 11],
            "light": 2 * math.pi * u[:, 12],
            "discs": u[:, 16:].unflatten(1, (DISCS, 3)),
        }

    def _draw(self, scene: dict[str, Tensor]) -> Tensor:
        """The images uint8 [n, 3, S, S] of a scene."""
        axis = (torch.arange(self.image_size) + 0.5) / self.image_size
        row, column = axis[:, None], axis
        light = scene["light"][:, None, None]
        slope = torch.cos(light) * (column - 0.5) + torch.sin(light) * (row - 0.5)
        image = scene["ground"] * (1 + 0.5 * self.background * slope[:, None])
        speck = scene["ground"] + (scene["dark"] - 0.5)[:, None, None, None] * 0.5
        for disc in scene["discs"][..., None, None].unbind(1):
            across, down, presence = disc.unbind(1)
            width = torch.where(presence < self.clutter, 0.025 + 0.03 * presence / max(self.clutter, 1e-6), -1.0)
            cover = (0.5 + self.image_size * (width - torch.hypot(column - across, row - down))).clamp_(0, 1)
            image = torch.lerp(image, speck, cover[:, None])
        for label, name in enumerate(self.classes):
            at = (scene["shape"] == label).nonzero()[:, 0]
            image[at] = self._add(image[at], {k: v[at] for k, v in scene.items()}, name, column, row)
        return (image.clamp_(0, 1) * 255).round_().to(torch.uint8)

    def _add(self, image: Tensor, scene: dict[str, Tensor], name: str, column: Tensor, row: Tensor) -> Tensor:
        """Draw the named shape over the images [n, 3, S, S]."""
        radius, turn, slant, period = (scene[k][:, None, None] for k in ("size", "turn", "slant", "period"))
        radius = radius / 2
        pixels = radius * self.image_size
        place = scene["place"][:, :, None, None]
        # Into the shape's own frame: its centre at 0, its radius 1.
        x, y = _turned((column - place[:, 0]) / radius, (row - place[:, 1]) / radius, turn)
        across, down = _turned(x / period, y / period, slant)
        shade = torch.zeros_like(x)
        for texture in range(1, len(TEXTURES)):
            some = scene["texture"] == texture
            shade[some] = _pattern(texture, across[some], down[some], (period * pixels)[some])
        away = scene["dark"][:, None, None, None]  # the pattern leans away from the background
        fill = torch.lerp(scene["fill"].expand(-1, 3, *shade.shape[1:]), away, 0.7 * self.texture * shade[:, None])
        cover = (0.5 - distance(name, x, y) * pixels).clamp_(0, 1)
        return torch.lerp(image, fill, cover[:, None])

    def _captions(self, scene: dict[str, Tensor]) -> list[list[str]]:
        captions = []
        columns = (scene[k].tolist() for k in ("shape", "hue", "texture", "size", "place"))
        third = (self.max_size - self.min_size) / 3
        for shape, hue, texture, size, (x, y) in zip(*columns, strict=True):
            extent = "small" if size < self.min_size + third else "large" if size > self.max_size - third else "medium-sized"
            down = "top" if y < 0.43 else "bottom" if y > 0.57 else ""
            across = "left" if x < 0.43 else "right" if x > 0.57 else ""
            place = f"at the {' '.join(w for w in (down, across) if w)}" if down or across else "in the centre"
            what = f"{extent} {_name(hue)} {TEXTURES[texture]} {self.classes[shape]}"
            captions.append([f"a {what} {place} on a {_name((hue + 0.5) % 1)} background"])
        return captions
