"""Views per second of the engines, of torchvision and of Pillow, and the time of each operation.

    python benchmarks/augment.py OUT --threads 1 --data PARQUET_OR_FOLDER

SimCLR's two views: at 32 px (its CIFAR-10 form) and at 224 px with blur. All make the same views of the same images in turn; torchvision
and Pillow image by image, as the data loaders of most frameworks do, the engines of whole batches. Without --data, images are rendered
shapes. --interpolation bilinear has all of them resample alike, without antialiasing, which kornia does not do.
"""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from harness import arguments, facts, interleaved, interval, medians, ratio, timed, write
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from ssl_zoo.augment.fused_engine import FusedEngine
from ssl_zoo.augment.kornia_engine import KorniaEngine, operations
from ssl_zoo.augment.spec import View, resolve
from ssl_zoo.config import conf_dir
from ssl_zoo.data.folder import Folder
from ssl_zoo.data.parquet import Parquet
from ssl_zoo.data.shapes import Shapes

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def images(data: str, size: int, count: int) -> Tensor:
    """uint8 [count, 3, canvas, canvas]; real images are scaled to the canvas where they are smaller."""
    canvas = size if size <= 128 else size * 8 // 7
    if not data:
        return Shapes(image_size=canvas, train_size=count, test_size=1).load("train").pixels
    source = Parquet(data) if list(Path(data).glob("**/*.parquet")) else Folder(data)
    pixels = source.load("train").pixels[:count].float()
    return nn.functional.interpolate(pixels, (canvas, canvas), mode="bicubic", antialias=True).clamp(0, 255).byte()


def per_image(view: View, on_pil: bool) -> Callable[[object], Tensor]:
    """torchvision's transform of one image."""
    mode = v2.InterpolationMode(view.interpolation)
    steps: list[Callable] = [
        v2.RandomResizedCrop(view.size, view.scale, view.ratio, mode, antialias=view.antialias),
        v2.RandomHorizontalFlip(view.flip),
        v2.RandomApply([v2.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)], view.jitter_p),
        v2.RandomGrayscale(view.gray),
    ]
    if view.blur_p:
        steps.append(v2.RandomApply([PilBlur(view) if on_pil else v2.GaussianBlur(view.blur_kernel, view.blur_sigma)], view.blur_p))
    return v2.Compose([*steps, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


class PilBlur(nn.Module):
    """Pillow's blur, as the frameworks that augment Pillow images use it."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.sigma = view.blur_sigma

    def forward(self, image: Image.Image) -> Image.Image:
        from PIL import ImageFilter

        return image.filter(ImageFilter.GaussianBlur(random.uniform(*self.sigma)))


class KorniaDefault(nn.Module):
    """The same operations in kornia's own container."""

    def __init__(self, view: View) -> None:
        super().__init__()
        import kornia.augmentation as K

        ops = [op for op in operations(view) if isinstance(op, K.base._BasicAugmentationBase)]
        self.both = K.AugmentationSequential(*ops, K.Normalize(torch.tensor(MEAN), torch.tensor(STD)), same_on_batch=False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> list[Tensor]:
        x = x.float() / 255
        return [self.both(x), self.both(x)]


def alternatives(view: View, x: Tensor, device: str, few: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Name -> (a call that makes two views of each of some images, how many views)."""
    n, on_device = len(x), x.to(device)
    kornia_sequence = nn.Sequential(*operations(view)).to(device)
    compiled = torch.compile(lambda t: [(v - 0.5) / 0.25 for v in (kornia_sequence(t), kornia_sequence(t))], dynamic=False)
    default = KorniaDefault(view).to(device)
    engine = KorniaEngine([view] * 2, MEAN, STD).to(device)
    fused, quick = FusedEngine([view] * 2, MEAN, STD), FusedEngine([view] * 2, MEAN, STD, compile_for=n)
    half = FusedEngine([view] * 2, MEAN, STD, torch.bfloat16, compile_for=n)
    pil, one, on_pil = [Image.fromarray(i.permute(1, 2, 0).numpy()) for i in x[:few]], per_image(view, False), per_image(view, True)
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "torchvision, per image": (lambda: [one(i) for i in x[:few] for _ in range(2)], 2 * few),
        "Pillow, per image": (lambda: [on_pil(i) for i in pil for _ in range(2)], 2 * few),
        "kornia, its container": (lambda: default(on_device), 2 * n),
        "fused engine": (lambda: [quick(on_device, 1) for _ in range(5)], 10 * n),  # beside it, and about as long
        "kornia engine": (lambda: engine(on_device, 1), 2 * n),
        "kornia, compiled": (lambda: compiled(on_device.float() / 255), 2 * n),
        "fused engine, not compiled": (lambda: fused(on_device, 1), 2 * n),
    }
    if device != "cpu":
        calls["fused engine, bf16"] = (lambda: half(on_device, 1), 2 * n)
    return calls


def single_operations(view: View, x: Tensor, device: str, rounds: int) -> dict[str, float]:
    """Microseconds per view of the compiled engine with one operation and the crop, less those of the crop alone."""
    off = dataclasses.replace(view, jitter_p=0.0, gray=0.0, blur_p=0.0, solarize_p=0.0, flip=0.0)
    some = {"crop": {}, "jitter": {"jitter_p": 0.8}, "gray": {"gray": 0.2}, "blur": {"blur_p": 0.5}, "solarize": {"solarize_p": 0.2}}
    x = x.to(device)
    kinds = {}
    for name, on in some.items():
        engine = FusedEngine([dataclasses.replace(off, **on)], MEAN, STD, compile_for=len(x))
        kinds[name] = timed(lambda engine=engine: engine(x, 1), device)
    found = medians(interleaved(kinds, rounds))
    return {k: round((v - (found["crop"] if k != "crop" else 0)) / len(x) * 1e6, 2) for k, v in found.items()}


def main() -> None:
    options = arguments(__doc__, data="", sizes=[32, 224], batch=[256, 32], rounds=7, per_image=64, operations=1, interpolation="")
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    described = yaml.safe_load((conf_dir() / "augment/view/simclr.yaml").read_text())
    result, rows, bars, worst = facts(options.device) | {"images": Path(options.data).name or "shapes"}, [], {}, 0.0
    for size, batch in zip(options.sizes, options.batch, strict=True):
        torch._dynamo.reset()
        view, x = resolve(described, size), images(options.data, size, batch)
        if options.interpolation:
            view = dataclasses.replace(view, interpolation=options.interpolation, antialias=False)
        calls = alternatives(view, x, options.device, min(options.per_image, batch))
        seconds = interleaved({k: timed(run, options.device) for k, (run, _) in calls.items()}, options.rounds, warmup=2)
        per_second = {k: calls[k][1] / v for k, v in medians(seconds).items()}
        scaled = {k: [s / calls[k][1] for s in v] for k, v in seconds.items()}  # seconds per view
        against = {k: ratio(scaled, "kornia, its container", k) for k in calls}
        worst = max(worst, against["fused engine"]["spread"])
        result[f"{size} px"] = {
            "batch": batch,
            "blur": view.blur_p,
            "interpolation": view.interpolation,
            "views_per_s": {k: round(v, 1) for k, v in per_second.items()},
            "times_kornia": against,
            "milliseconds_per_batch": {k: round(2e3 * batch / v, 3) for k, v in per_second.items()},
        }
        if options.operations:
            result[f"{size} px"]["microseconds_per_view"] = single_operations(view, x, options.device, options.rounds)
        bars |= {f"{k}, {size} px": v for k, v in per_second.items()}
        rows += [
            {"": f"{k}, {size} px", "views/s": f"{v:,.0f}", "times kornia's container": f"{against[k]['ratio']:.2f}",
             "95 % interval": interval(against[k])} for k, v in per_second.items()
        ]  # fmt: skip
    write(options.out, f"augment-{options.device}", result, rows, bars, "views per second", worst)


if __name__ == "__main__":
    main()
