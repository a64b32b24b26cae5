"""`ssl_zoo.load`: a finished run as a torch module."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from torch import Tensor, nn

from ssl_zoo.data.encoded import read_file
from ssl_zoo.data.pixels import UNREADABLE, as_rgb, canvas_for, fit, to_rgb
from ssl_zoo.errors import UserError, one_line
from ssl_zoo.evaluation.features import normalised
from ssl_zoo.export import header, load_backbone
from ssl_zoo.instance import build
from ssl_zoo.origins import refuse_resolvers

FILES = ("backbone.safetensors", "model.safetensors")  # of a run folder, and of an export
Picture = Image.Image | np.ndarray | str | PathLike[str]


class Pretrained(nn.Module):
    """A trained backbone: images [B, 3, S, S], as `transform` makes them -> features [B, num_features]. image_size: S, in pixels.
    mean, std: of the channels on [0, 1]. about: what the file says of its origin (name, epochs, the config of the backbone).
    """

    def __init__(self, backbone: nn.Module, about: dict) -> None:
        super().__init__()
        self.backbone, self.about = backbone, about
        self.num_features = int(backbone.num_features)  # type: ignore[arg-type]
        self.image_size: int = about["image_size"]
        self.mean, self.std = tuple(about["mean"]), tuple(about["std"])

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    def transform(self, picture: Picture) -> Tensor:
        """A file, a PIL image or an array uint8 [H, W] or [H, W, 3], prepared as test images are: float32 [3, S, S]. Raises UserError for a
        file that is no picture.
        """
        name = "The picture" if isinstance(picture, Image.Image | np.ndarray) else one_line(str(picture))[:160]
        pixels = pixels_of(picture, canvas_for(self.image_size), name)
        return normalised(pixels[None], self.image_size, self.mean, self.std)[0]


def load(path: str | PathLike[str], trust: Sequence[str] = ()) -> Pretrained:
    """The backbone of a run folder, of an export (safetensors, timm, huggingface) or of its file alone, in evaluation mode on the CPU; of
    methods with a teacher the network that their paper evaluates. Nothing in the file is executed. trust: packages of your own that a
    backbone may come from.

    Raises UserError where there is none, or where the file does not say what it is of.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        found = next((file / name for name in FILES if (file / name).is_file()), None)
        if found is None:
            raise UserError(f"{file} has no {FILES[0]}: give the folder of a run that has finished.")
        file = found
    about = header(file)
    if not about.get("backbone") or not about.get("image_size") or not about.get("mean"):
        raise UserError(f"{file} does not say what it is of: give a run folder of ssl_zoo, or its {FILES[0]}.")
    return Pretrained(backbone_of(file, about, about["image_size"], trust), about).eval()


def backbone_of(file: Path, about: dict[str, Any], image_size: int, trust: Sequence[str]) -> nn.Module:
    """The backbone that a file of ssl_zoo holds, as its header `about` describes it, with its weights; on the CPU."""
    own = {**about["backbone"], **({"pretrained": False} if about["backbone"].get("pretrained") else {})}  # nothing is downloaded
    refuse_resolvers(own, f"The header of {file}: backbone")
    try:
        made = build(OmegaConf.create({"backbone": own, "trust": list(trust)}), "backbone", image_size=image_size)
    except (TypeError, AttributeError, OmegaConfBaseException) as e:
        raise UserError(f"The header of {file} describes no backbone ({one_line(e)[:160]}): restore the file from a copy.") from e
    return load_backbone(made, file)


def pixels_of(picture: Picture, canvas: int, name: str) -> Tensor:
    """A picture as a data set holds it, uint8 [3, canvas, canvas]. Raises UserError, which calls it `name`, where it is none."""
    try:
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        image = as_rgb(picture) if isinstance(picture, Image.Image) else to_rgb(read_file(Path(picture).expanduser()), canvas)
        return torch.from_numpy(fit(image, canvas).copy())
    except UNREADABLE as e:
        reason = str(e).split("<_io")[0].strip() or type(e).__name__
        raise UserError(f"{name} is no picture that can be read ({one_line(reason)[:160]}).") from e
