"""Batches on the host, in a given order, made ahead by threads or by processes."""

import functools
import logging
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ssl_zoo.data.ondemand import Fetched, OnDemand, Pixels, cpus
from ssl_zoo.errors import UserError

log = logging.getLogger("ssl_zoo")
AHEAD = 2  # batches in the making beside the one that is waited for
LARGE = 128  # px; decoding a larger image is work that threads share, a smaller one mostly Python, of which only one thread runs


def plan(pixels: Pixels, workers: int | str, kind: str, local: int) -> tuple[int, str]:
    """How many workers, and whether "thread" or "process". workers "auto": a share of the CPUs for each of the `local` processes of this
    machine, 16 at most; one thread where images only have to be gathered.
    """
    if kind == "auto" or not isinstance(pixels, OnDemand):
        kind = "thread" if not isinstance(pixels, OnDemand) or pixels.canvas >= LARGE else "process"
    if workers == "auto":
        workers = min(16, max(1, cpus() // local)) if isinstance(pixels, OnDemand) else 1
    return int(workers), kind


def feed(pixels: Pixels, batches: Iterable[Tensor], workers: int, kind: str, pin_memory: bool) -> Iterator[Fetched]:
    """The images at each index [B] of `batches`, in their order; workers 0 makes each when it is asked for."""
    if workers and kind == "process" and isinstance(pixels, OnDemand):
        return _by_processes(pixels, batches, workers, pin_memory)
    return _by_threads(pixels, batches, workers, pin_memory)


def _by_threads(pixels: Pixels, batches: Iterable[Tensor], workers: int, pin_memory: bool) -> Iterator[Fetched]:
    pool = ThreadPoolExecutor(max(1, workers))
    ring: deque[Callable[[], Fetched]] = deque()
    try:
        for index in batches:
            if isinstance(pixels, OnDemand):
                ring.append(partial(pixels.collect, pixels.submit(pool, index.tolist(), pin_memory)))
            else:
                ring.append(pool.submit(_gather, pixels, index, pin_memory).result)
            if len(ring) > (AHEAD if workers else 0):
                yield ring.popleft()()
        while ring:
            yield ring.popleft()()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _gather(pixels: Tensor, index: Tensor, pin_memory: bool) -> Fetched:
    out = torch.empty(len(index), *pixels.shape[1:], dtype=torch.uint8, pin_memory=pin_memory)
    return Fetched(torch.index_select(pixels, 0, index, out=out), index.pin_memory() if pin_memory else index, [])


class _Lists:
    """Indices as lists: a worker is sent them as they are, where a tensor would take shared memory."""

    def __init__(self, batches: Iterable[Tensor]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return (index.tolist() for index in self.batches)


def _by_processes(pixels: OnDemand, batches: Iterable[Tensor], workers: int, pin_memory: bool) -> Iterator[Fetched]:
    loader: DataLoader = DataLoader(
        pixels,  # type: ignore[arg-type]
        batch_sampler=_Lists(batches),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_sent,
        pin_memory=pin_memory,
        prefetch_factor=AHEAD,
        worker_init_fn=_leave_signals,
    )
    try:
        yield from map(pixels.collect, map(_received, loader))
    except RuntimeError as e:
        if (ended := worker_error(e)) is None:
            raise
        raise ended from e


def worker_error(e: RuntimeError) -> UserError | None:
    """What to say of a worker process that was killed, which torch may raise at any line of the training process; None for other errors."""
    if "DataLoader worker" not in str(e):
        return None
    reason = " ".join(str(e).split("DataLoader worker", 1)[1].split())[:200].rstrip(". ")
    return UserError(f"A data worker {reason}: set data.workers lower, or data.worker_kind=thread.")


def _sent(batch: Any) -> Any:
    """In a worker: put the batch into shared memory. Torch would do so later, where a lack of it is lost and the batch waited for forever;
    what does not fit goes through a pipe instead.
    """
    if isinstance(batch, Fetched):
        try:
            batch.pixels.share_memory_()
            batch.shown.share_memory_()
        except RuntimeError:
            return Fetched(batch.pixels.numpy(), batch.shown.numpy(), batch.bad)  # type: ignore[arg-type]
    return batch


def _received(batch: Any) -> Any:
    if isinstance(batch, Fetched) and isinstance(batch.pixels, np.ndarray):
        _say_full()
        return Fetched(torch.from_numpy(batch.pixels), torch.from_numpy(batch.shown), batch.bad)
    return batch


@functools.cache
def _say_full() -> None:
    log.warning("/dev/shm is full, so data workers send images through pipes, which is slower: give it more (docker run --shm-size=8g)")


def _leave_signals(worker: int) -> None:
    """A signal to the process group reaches the workers too: the training process alone decides what becomes of it. SIGTERM is also what
    ends a worker that hangs: only the first one passes.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
