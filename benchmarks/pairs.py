"""How much memory a rank needs for the loss of images and captions, softmax (CLIP) against sigmoid (SigLIP), by the number of ranks.

    python benchmarks/pairs.py OUT --batch 2048 --dim 512 --ranks 1 2 4

Gloo processes of this machine; `batch` pairs on each rank, so the global batch grows with the ranks. A figure is the most resident
memory that any rank held while it took the loss and its gradient, above that of two pairs. Memory that is freed goes back to the system
at once there (glibc would keep some, more or less by the order in which blocks come and go).
"""

import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from harness import arguments, facts, write

from ssl_zoo.methods.clip import clip_loss
from ssl_zoo.methods.siglip import siglip_loss


def peak() -> float:
    """MB: the most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3 / 1.024)


def take(name: str, batch: int, dim: int) -> None:
    image, text = (torch.randn(batch, dim, requires_grad=True) for _ in range(2))
    scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    loss = clip_loss(image, text, scale) if name == "clip" else siglip_loss(image, text, scale, bias)
    loss.backward()


def measure(rank: int, world: int, name: str, batch: int, dim: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    take(name, 2, dim)
    before = peak()
    take(name, batch, dim)
    Path(folder, str(rank)).write_text(str(peak() - before))
    dist.destroy_process_group()


def main() -> None:
    options = arguments(__doc__, batch=2048, dim=512, ranks=[1, 2, 4])
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)  # for the processes of the ranks
    found: list[dict[str, Any]] = []
    for world in options.ranks:
        for name in ("clip", "siglip"):
            with tempfile.TemporaryDirectory() as folder:
                mp.start_processes(measure, (world, name, options.batch, options.dim, folder), world, start_method="spawn")
                most = max(float(Path(folder, str(r)).read_text()) for r in range(world))
            found.append({"loss": name, "ranks": world, "global_batch": world * options.batch, "mb": round(most, 1)})
            print(found[-1], flush=True)
    bars = {f"{p['loss']}, {p['ranks']} ranks": p["mb"] for p in found}
    result = facts(options.device) | {"batch": options.batch, "dim": options.dim, "points": found}
    write(options.out, "pairs-cpu", result, found, bars, "MB of a rank for the loss and its gradient", 0.0)


if __name__ == "__main__":
    main()
