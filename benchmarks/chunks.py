"""How much longer a training step takes when the backbone is given a few images at a time (`chunk_size`).

    python benchmarks/chunks.py OUT --set backbone=vit_t dataset.image_size=64 --batch 256 --chunks 0 128 32

--set takes the overrides of `ssl-zoo`; a chunk of 0 is `chunk_size=null`. In one process and in turn, on the same views of random images:
loss, backward and optimizer of one step. What chunks save: benchmarks/memory.py.
"""

from collections.abc import Callable

import torch
from harness import arguments, facts, interleaved, interval, medians, ratio, timed, words_for, write
from memory import STATISTICS

from ssl_zoo.build import Data, build_method
from ssl_zoo.config import compose
from ssl_zoo.data.images import Images
from ssl_zoo.optim.build import build_optimizer


def contestant(overrides: list[str], batch: int, chunk: int, device: str) -> Callable[[], None]:
    """A step of a method of its own, on views that are made once."""
    config = compose("train", [*overrides, f"batch_size={batch}", f"chunk_size={chunk or 'null'}", "augment.compile=false", "recipe=none"])
    size = config.dataset.image_size or 32
    images = Images(torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8), None, None, size)
    method = build_method(config, Data(images, images, *STATISTICS)).to(device)
    optimizer = build_optimizer(method, dict(config.optimizer), fused=True)
    views, words = method.augment(images.pixels.to(device), 0), words_for(method, batch)

    def step() -> None:
        optimizer.zero_grad()
        method.step(views, words)["loss"].backward()
        optimizer.step()
        method.after_step()

    return step


def main() -> None:
    options = arguments(__doc__, set=["backbone=vit_t", "dataset.image_size=64"], batch=256, chunks=[0, 128, 32], rounds=9)
    kinds = {f"chunk {c}" if c else "none": contestant(options.set, options.batch, c, options.device) for c in options.chunks}
    seconds = interleaved({k: timed(run, options.device) for k, run in kinds.items()}, options.rounds)
    whole = next(iter(kinds))
    against, middle = {k: ratio(seconds, k, whole) for k in kinds}, medians(seconds)
    rows = [{"chunk": k.removeprefix("chunk "), "seconds / step": f"{middle[k]:.2f}", f"times {whole}": f"{against[k]['ratio']:.2f}",
             "95 % interval": interval(against[k])} for k in kinds]  # fmt: skip
    result = facts(options.device) | {"command": " ".join(options.set), "batch": options.batch, "times": against}
    write(options.out, f"chunks-{options.device}", result, rows, middle, "seconds per step", max(r["spread"] for r in against.values()))


if __name__ == "__main__":
    main()
