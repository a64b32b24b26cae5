"""How far the features of exported networks are off, in each format, as a table.

    python benchmarks/export.py OUT [--names resnet18 vit_small_patch16_224 convnext_tiny] [--sizes 32 224] [--images PARQUET]

Weights are as drawn, running statistics as if the network had seen something. Each file is loaded as the lines that `ssl-zoo export`
prints load it, and compared on random images, and on images of a parquet file where one is given.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import arguments, facts, write_rows
from torch import nn

from ssl_zoo.data.parquet import Parquet
from ssl_zoo.data.pixels import canvas_for
from ssl_zoo.evaluation.features import normalised
from ssl_zoo.formats import FORMATS, difference
from ssl_zoo.loading import load
from ssl_zoo.nn.backbones import create

RANDOM, REAL = 8, 8  # images


def network(name: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    net = create(name, size).eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, 0, 0.1)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    return net


def row(name: str, size: int, images: dict[str, torch.Tensor]) -> dict[str, Any]:
    net: Any = network(name, size)
    about = {
        "name": name,
        "image_size": size,
        "canvas": canvas_for(size),
        "num_features": net.num_features,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "backbone": {"_target_": "ssl_zoo.nn.backbones.create", "name": name},
        "trust": [],
    }
    found: dict[str, Any] = {"backbone": name, "px": size, "largest feature": 0.0}
    for form, save in FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            written = save(net, about, Path(folder))
            theirs = (written.load or load)(Path(folder))
            apart = [difference(net, theirs, x) for x in images.values()]
        found["largest feature"] = round(max(found["largest feature"], *(scale for _, scale in apart)), 1)
        found[form] = f"{max(largest for largest, _ in apart):.1e}"
    return found


def main() -> int:
    args = arguments(__doc__, names=["resnet18", "vit_small_patch16_224", "convnext_tiny"], sizes=[32, 224], images="")
    rows = []
    for size in args.sizes:
        images = {"random": torch.randn(RANDOM, 3, size, size, generator=torch.Generator().manual_seed(0))}
        if args.images:
            data = Parquet(args.images, image_size=size, cache=str(args.out / "cache")).load("train")
            images["real"] = normalised(data.pixels[:REAL], size, (0.5,) * 3, (0.25,) * 3)
        rows += [row(name, size, images) for name in args.names]
    real = f", {REAL} of {Path(args.images).name}" if args.images else ""
    worst = max(float(r[f]) / max(1.0, r["largest feature"]) for r in rows for f in FORMATS)
    found = {"images": f"{RANDOM} random ones{real}", "worst_relative": f"{worst:.1e}", **facts("cpu")}
    write_rows(args.out, "export", found, rows)
    return int(worst > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
