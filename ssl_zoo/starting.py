"""What the towers of a method with words begin with: a finished run, or weights from elsewhere."""

import math
from collections.abc import Sequence
from pathlib import Path

from ssl_zoo.build import Data
from ssl_zoo.checks import weights_place
from ssl_zoo.export import header
from ssl_zoo.methods.base import Method
from ssl_zoo.methods.two_towers import TwoTowers
from ssl_zoo.nn.checkpoint_file import read_checkpoint
from ssl_zoo.nn.text_weights import load_meeting, load_text
from ssl_zoo.nn.weights import load_weights
from ssl_zoo.run_folder import say


def start_towers(method: Method, data: Data) -> None:
    """Fill the towers from method.image_weights and method.text_weights, and say what was loaded; nothing for methods without words.

    A run that is continued does not come here: its checkpoint holds the towers.
    """
    if not isinstance(method, TwoTowers):
        return
    places = {key: getattr(method, key) for key in ("image_weights", "text_weights")}
    files = {key: weights_place(key, place) for key, place in places.items() if place is not None}
    if image := files.get("image_weights"):
        report = load_weights(method.backbone, image)
        say("\n".join([f"image tower   {image}", *report.lines(), *_normalised(image, data)]))
    elif method.lock_image and not getattr(method.backbone, "pretrained", False):
        say("image tower   locked as it was initialised, untrained: method.image_weights=... gives it weights")
    if text := files.get("text_weights"):
        content = read_checkpoint(text)
        lines = load_text(method.text, content)
        if "image_weights" in places and _same(places["image_weights"], places["text_weights"]):
            lines += load_meeting(method, content)
            method.after_step()  # which keeps the scale in its bounds
        say("\n".join([f"text tower    {text}", *lines]))


def _same(a: str | None, b: str | None) -> bool:
    return a is not None and b is not None and Path(a).expanduser().resolve() == Path(b).expanduser().resolve()


def _normalised(file: Path, data: Data) -> list[str]:
    """A line where the weights were trained on images normalised otherwise."""
    about = header(file)
    if "mean" not in about or all(map(_close, (about["mean"], about["std"]), (data.mean, data.std))):
        return []
    theirs, ours = (" and ".join(", ".join(f"{v:.3f}" for v in values) for values in pair) for pair in ((about["mean"], about["std"]),
                                                                                                  (data.mean, data.std)))  # fmt: skip
    return [f"note     trained on images normalised by mean and deviation {theirs}; here they are by {ours}"]


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(math.isclose(x, y, abs_tol=5e-3) for x, y in zip(a, b, strict=True))
