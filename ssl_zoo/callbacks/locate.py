"""Where a number that is not finite comes from: a batch run once more, with every module watched."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors(v)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def finite(value: Any) -> bool:
    """Waits for the device."""
    return all(bool(t.isfinite().all()) for t in tensors(value))


class Trace:
    """Hooks on the modules inside `module`, for the duration of a `with`. `forward` is the first of them whose output is not finite, and
    `backward` the first whose output has a gradient that is not. A part ends before the whole, so the first is the innermost.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forward: str | None = None
        self.backward: str | None = None
        self.passed = 0  # outputs up to the first that is not finite: of several ranks, the one with the fewest is where it began

    def __enter__(self) -> "Trace":
        named = [(n, m) for n, m in self.module.named_modules() if n]
        self._hooks = [m.register_forward_hook(partial(self._seen, n)) for n, m in named]
        return self

    def __exit__(self, *_: Any) -> None:
        for hook in self._hooks:
            hook.remove()

    def _seen(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self.passed += self.forward is None
        if self.forward is None and not finite(output):
            bad = [n for n, p in module.named_parameters(recurse=False) if not finite(p)]
            self.forward = f"the weights {name}.{bad[0]}" if bad else f"the output of {name} ({type(module).__name__})"
        for t in tensors(output):
            if t.requires_grad:
                t.register_hook(partial(self._returned, name))

    def _returned(self, name: str, grad: Tensor) -> None:
        if self.backward is None and not finite(grad):
            self.backward = f"the gradient with respect to the output of {name}"


@torch.compiler.set_stance("force_eager")
def locate(module: Any, batch: dict[str, Any], number: int) -> tuple[str | None, int, dict[str, Tensor]]:
    """Take batch `number` of this rank once more through `module` (a Method): the first thing that is not finite, or None, how many outputs
    there were until then, and the scalars of its step. No weight and no gradient is changed; buffers are, as by any step. Every rank has
    to call it.
    """
    batch = module.make_views(batch, number - 1)  # which is done before Lightning counts the batch
    fine = finite(batch["views"])
    with torch.enable_grad(), module.trainer.precision_plugin.train_step_context(), Trace(module) as trace:
        module.seed_step(number)
        out = module.step(batch["views"], batch)
        params = [p for p in module.parameters() if p.requires_grad]
        grads = torch.autograd.grad(out["loss"], params, allow_unused=True)
    scalars = {k: v.detach() for k, v in out.items() if v.ndim == 0}
    if not fine:
        return "a view of the images", 0, scalars
    if trace.forward or not finite(out["loss"]):
        return trace.forward or "the loss itself, of outputs that are finite", trace.passed, scalars
    if trace.backward:
        return trace.backward, trace.passed, scalars
    named = zip((n for n, p in module.named_parameters() if p.requires_grad), grads, strict=True)
    where = next((f"the gradient of {n}" for n, g in named if g is not None and not finite(g)), None)
    return where, trace.passed, scalars
