"""The reference engine: views made by kornia on whatever device the images are on."""

from collections.abc import Sequence

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from ssl_zoo.augment.spec import View


def operations(view: View) -> list[nn.Module]:
    """The kornia operations of one view on images in [0, 1], in torchvision's SimCLR order and with torchvision's meaning."""
    ops: list[nn.Module] = [
        K.RandomResizedCrop(
            (view.size, view.size),
            scale=view.scale,
            ratio=view.ratio,
            resample=view.interpolation,
            align_corners=False,
            cropping_mode="slice",
        )
    ]
    if view.interpolation == "bicubic":
        ops.append(Clamp())  # bicubic overshoots; torchvision clips when it rounds to bytes
    if view.flip:
        ops.append(K.RandomHorizontalFlip(p=view.flip))
    if view.jitter_p:
        # ColorJitter, not ColorJiggle: the latter clips four times as many pixels as torchvision's
        ops.append(K.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue, p=view.jitter_p))
    if view.gray:
        ops.append(K.RandomGrayscale(rgb_weights=torch.tensor([0.2989, 0.587, 0.114]), p=view.gray))
    if view.blur_p:
        ops.append(K.RandomGaussianBlur((view.blur_kernel, view.blur_kernel), view.blur_sigma, border_type="reflect", p=view.blur_p))
    if view.solarize_p:
        # kornia's defaults would also shift the brightness
        ops.append(K.RandomSolarize(thresholds=(view.solarize_threshold,) * 2, additions=(0.0, 0.0), p=view.solarize_p))
    return ops


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0.0, 1.0)


class KorniaEngine(nn.Module):
    """images uint8 [N, 3, H, W], seed, rows [B] of the images (None: all) -> one float32 view [B, 3, size, size] per specification,
    normalised by mean and std. It takes any kornia operation; it does not antialias, and draws the order of the jitter once per batch.

    The same seed gives the same views; the random state outside is left as it was. extra: further operations of each view.
    """

    def __init__(
        self, views: list[View], mean: tuple[float, ...], std: tuple[float, ...], extra: Sequence[Sequence[nn.Module]] | None = None
    ) -> None:
        super().__init__()
        extra = extra or [()] * len(views)
        self.views = nn.ModuleList(nn.Sequential(*operations(v), *more) for v, more in zip(views, extra, strict=True))
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor, seed: int, rows: Tensor | None = None) -> list[Tensor]:
        with torch.random.fork_rng(devices=[]), torch.autocast(images.device.type, enabled=False):
            torch.default_generator.manual_seed(seed)
            x = (images if rows is None else images[rows]).float() / 255
            # channels_last: convolutions are a third faster with it on CPUs, and on GPUs in half precision
            return [((view(x) - self.mean) / self.std).contiguous(memory_format=torch.channels_last) for view in self.views]
