"""Out of memory, said in one sentence: what was asked for, what there was, and what to try. Torch is only used where it is loaded."""

import errno
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ssl_zoo.errors import UserError

SIGNS = re.compile(
    r"can't allocate memory|not enough memory|out of memory|unable to allocate|cannot allocate memory|can't start new thread"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|std::bad_alloc",
    re.IGNORECASE,
)


def is_shortage(e: BaseException) -> bool:
    """Whether memory ran out: of a GPU, of torch's or numpy's allocator, of Python or of the system."""
    if isinstance(e, MemoryError) or type(e).__name__ == "OutOfMemoryError":
        return True
    if isinstance(e, OSError):
        return e.errno == errno.ENOMEM
    return isinstance(e, RuntimeError) and SIGNS.search(str(e)) is not None


def shortage(e: BaseException, doing: str, tries: list[str]) -> UserError:
    """The sentence on a shortage while `doing`, with what to try first."""
    asked = re.search(r"(?:allocate|allocation of) ([\d.]+ ?(?:[KMGTPE]i?B|bytes))", str(e))
    more = f" ({_amount(asked[1])} more were asked for)" if asked else ""
    return UserError(f"Out of memory while {doing}{more}: {_held(e)}; try {', '.join(tries[:-1])}{' or ' if tries[1:] else ''}{tries[-1]}.")


@contextmanager
def explained(doing: str, tries: list[str]) -> Iterator[None]:
    """Turn a shortage of memory in the `with` into its sentence."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as e:
        if not is_shortage(e):
            raise
        raise shortage(e, doing, tries) from e


def training_tries(config: Mapping[str, Any], precise: bool, transformer: bool) -> list[str]:
    """What to change in the config of a run. precise: it computes in float32. transformer: its activations can be recomputed."""
    half, parts = max(2, config["batch_size"] // 2), config["trainer"]["accumulate_grad_batches"]
    tries = [f"batch_size={half} (with trainer.accumulate_grad_batches={2 * parts} for as many images a step)"]
    tries += [f"chunk_size={half} (the gradient of the whole batch, for more time)"] if config.get("chunk_size") is None else []
    tries += ["trainer.precision=bf16-mixed"] if precise else []
    tries += ["backbone.grad_checkpointing=true"] if transformer and not config["backbone"]["grad_checkpointing"] else []
    tries += ["data.resident=false"] if config["data"]["resident"] is not False else []
    return [*tries, "smaller images"]


def _amount(text: str) -> str:
    number, unit = re.fullmatch(r"([\d.]+) ?(\w+)", text).groups()  # type: ignore[union-attr]
    return f"{float(number) / 1e9:.1f} GB" if unit == "bytes" else f"{number} {unit}"


def _held(e: BaseException) -> str:
    """The peak of what was held, and what there is."""
    torch = sys.modules.get("torch")
    gpu = torch is not None and ("CUDA" in str(e) or "CUBLAS" in str(e) or type(e).__name__ == "OutOfMemoryError")
    if gpu and torch.cuda.is_available():
        device = torch.cuda.current_device()
        whole = torch.cuda.get_device_properties(device).total_memory
        return f"cuda:{device} held {torch.cuda.max_memory_allocated(device) / 1e9:.1f} of its {whole / 1e9:.1f} GB at the peak"
    try:
        import resource
    except ImportError:  # Windows
        return "the memory of this machine is full"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    allowed = "" if limit == resource.RLIM_INFINITY else f", under a limit of {limit / 1e9:.1f} GB (ulimit -v)"
    return f"the process held {peak / 1e9:.1f} GB at its peak{allowed}"
