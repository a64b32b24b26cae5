"""How much memory a training step takes, by batch size, with and without chunks.

    python benchmarks/memory.py OUT --set backbone=vit_t dataset.image_size=64 --batches 64 256 1024 --chunks 0 32

--set takes the overrides of `ssl-zoo`; a chunk of 0 is `chunk_size=null`. Every point has a process of its own: random images as a
batch, one step of it (views, loss, backward, optimizer), and the peak above that of a step of two images (weights, gradients,
optimizer): of resident memory on a CPU, of allocated memory on a GPU. Points without chunks that would need more than half of the
memory that is free are left out.
"""

import json
import resource
import subprocess
import sys
from typing import Any

import torch
from harness import arguments, facts, words_for, write
from torch import Tensor

from ssl_zoo.build import Data, build_method
from ssl_zoo.config import compose
from ssl_zoo.data.images import Images
from ssl_zoo.data.memory import free_memory
from ssl_zoo.optim.build import build_optimizer

STATISTICS = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def peak(device: str) -> float:
    """MB: the most that this process has held so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3 / 1.024)


def measure(words: list[str], batch: int, chunk: int, device: str) -> dict[str, float]:
    """One point, in this process."""
    config = compose("train", [*words, f"batch_size={batch}", f"chunk_size={chunk or 'null'}", "augment.compile=false", "recipe=none"])
    size = config.dataset.image_size or 32
    images = Images(torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8), None, None, size)
    method = build_method(config, Data(images, images, *STATISTICS)).to(device)
    optimizer = build_optimizer(method, dict(config.optimizer), fused=True)
    pixels = images.pixels.to(device)

    def step(rows: Tensor) -> float:
        """MB at the peak once the views are made."""
        views = method.augment(rows, 0)
        made = peak(device)
        method.step(views, words_for(method, len(rows)))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        method.after_step()
        return made

    step(pixels[:2])  # what libraries, gradients and the optimizer take whatever the batch
    before = peak(device)
    made = step(pixels) - before
    return {"mb": round(peak(device) - before, 1), "views_mb": round(made, 1), "before_mb": round(before, 1)}


def points(options: Any) -> list[dict[str, Any]]:
    """Every batch size with every chunk, each in a process of its own; "mb" is None where the machine has too little."""
    found: list[dict[str, Any]] = []
    for chunk in options.chunks:
        last: dict[str, Any] | None = None
        for batch in sorted(options.batches):
            here: dict[str, Any] = {"batch": batch, "chunk": chunk}
            if last and not chunk and last["mb"] * batch / last["batch"] > free_memory(torch.device(options.device)) / 2e6:
                here |= {"mb": None, "estimate_mb": round(last["mb"] * batch / last["batch"])}
            else:
                words = [str(options.out), "--device", options.device, "--threads", str(options.threads), "--set", *options.set]
                done = subprocess.run(
                    [sys.executable, __file__, *words, "--point", f"{batch}", f"{chunk}"], stdout=subprocess.PIPE, text=True, check=True
                )
                last = here = here | json.loads(done.stdout.splitlines()[-1])
            print(here, flush=True)
            found.append(here)
    return found


def main() -> None:
    options = arguments(__doc__, set=["backbone=vit_t", "dataset.image_size=64"], batches=[64, 256, 1024], chunks=[0, 32], point=[0, 0])
    if options.point[0]:
        print(json.dumps(measure(options.set, *options.point, options.device)))
        return
    found = points(options)
    rows = [
        {
            "batch": f"{p['batch']:,}",
            "chunk": p["chunk"] or "none",
            "MB": f"{p['mb']:,.0f}" if p["mb"] is not None else f"about {p['estimate_mb']:,}, not run",
            "MB of views alone": f"{p['views_mb']:,.0f}" if p["mb"] is not None else "",
        }
        for p in found
    ]
    bars = {f"batch {r['batch']}, chunk {r['chunk']}": p["mb"] / 1e3 for r, p in zip(rows, found, strict=True) if p["mb"] is not None}
    result = facts(options.device) | {"command": " ".join(options.set), "points": found}
    write(options.out, f"memory-{options.device}", result, rows, bars, "GB at the peak of a training step", 0.0)


if __name__ == "__main__":
    main()
