"""Several devices that wait for each other: which one is missing is said in a sentence, and nobody waits for ever."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import lightning.pytorch as L
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from ssl_zoo.callbacks.launcher import Launcher
from ssl_zoo.callbacks.stop import Stop, Stopped
from ssl_zoo.errors import Ended

RUNS, WAITS, ENDS, FAILED = "runs", "waits", "ends", "failed"
SUSPECT = 10.0  # seconds of silence that are too many once a collective has failed
OWN_WORDS = 8.0  # seconds that a rank above 0 has to say itself why it failed


class Watch(Callback):
    """A thread of each rank tells the others every second that it lives, how far it is, and whether it was asked to stop.

    A rank that is silent for `timeout_s` seconds, or behind the others that long, is named by the first of the others, and all end with
    exit code 1: the collective in which they wait would not. advice: says what to do then.
    """

    def __init__(self, timeout_s: float, stop: Stop, advice: Callable[[], str]) -> None:
        self.timeout_s, self.stop, self.advice = timeout_s, stop, advice
        self.state, self.progress = RUNS, 0
        self._thread: threading.Thread | None = None
        self._trainer: L.Trainer | None = None

    # ------------------------------------------------------------------------------------ what the training process tells the thread
    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if trainer.world_size > 1 and dist.is_initialized() and self._thread is None:
            self._trainer, self.mine = trainer, Other(trainer.global_rank)
            self.others = {r: Other(r) for r in range(trainer.world_size) if r != trainer.global_rank}
            self._answered = time.monotonic()  # the process that holds the board
            self._thread = threading.Thread(target=self._watch, name="ranks", daemon=True)
            self._thread.start()
            board = Board(trainer, min(SUSPECT, self.timeout_s))
            threading.Thread(target=self._talk, args=(board,), name="ranks", daemon=True).start()

    def _further(self, *args: Any) -> None:
        self.progress += 1

    on_train_batch_start = on_train_batch_end = on_train_epoch_end = on_train_end = _further  # the data has come; the step is done; ...

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, error: BaseException) -> None:
        """An error of a collective tells that a rank is missing, not which: that is left to the thread, which then ends the process."""
        if self._thread is None:
            return
        if isinstance(error, Stopped):
            self.state = ENDS
        elif isinstance(error, RuntimeError) and of_collectives(error):
            self.state = WAITS
            self._thread.join(3 * SUSPECT)
        if self.state != ENDS:
            self.state = FAILED
            time.sleep(1.5)  # until that is told

    def lost(self, error: BaseException) -> Ended | None:
        """What to say of an error of a collective where nobody is missing; None for other errors."""
        if isinstance(error, dist.DistError) and self._thread is None:  # nobody has been heard yet
            return Ended(f"The ranks did not all start ({' '.join(str(error).split())[:200]}). {self.advice()}", 1)
        if self._thread is None or not of_collectives(error):
            return None
        return Ended(f"The ranks have lost each other ({' '.join(str(error).split())[:200]}). {self.advice()}", 1)

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        self.state = ENDS

    # ------------------------------------------------------------------------------------ two threads
    def _talk(self, board: "Board") -> None:
        """Say and hear. Apart from the one that judges: an answer that never comes holds this thread for ever."""
        last = False
        while not last:
            last = self.state == ENDS
            asked = self.stop.number if self.stop.asked else 0
            self.mine.hear(f"{self.state} {self.progress} {asked} {socket.gethostname()} {time.monotonic()}")
            try:
                for other, said in zip(self.others.values(), board.swap(self.mine.said, list(self.others)), strict=True):
                    other.hear(said)
                self._answered = time.monotonic()
            except Exception:  # torch's errors of a store are of many kinds
                board.close()
            time.sleep(0 if last else 0.25 if self.state == WAITS else 1.0 + len(self.others) / 64)

    def _watch(self) -> None:
        while self.state != ENDS:
            heard = [o.asked for o in self.others.values() if o.asked]
            if heard and not self.stop.asked:
                self.stop.hear(heard[0])
            finding = self._finding(self.mine, self.others, time.monotonic() - self._answered)
            if finding is not None and self.state != ENDS:
                self._end(*finding)
            time.sleep(0.25 if self.state == WAITS else 1.0)

    def _finding(self, mine: "Other", others: dict[int, "Other"], silence: float) -> tuple[list[int], str] | None:
        """The ranks that are missing and what to say of them, "" where they say it themselves; None while all is well."""
        failed = [o for o in others.values() if o.state == FAILED and o.since(o.moved) > (OWN_WORDS if o.rank else 0)]
        if failed:
            return [o.rank for o in failed], ""
        patience = min(SUSPECT, self.timeout_s) if self.state == WAITS else self.timeout_s
        if silence > patience:
            return [0], "Rank 0 or what started it has not answered"
        silent = [o for o in others.values() if o.state != ENDS and o.since(o.heard) - silence > patience]
        if silent:
            return [o.rank for o in silent], f"{named(silent)} has not answered"
        if mine.since(mine.moved) <= patience:
            return None
        behind = [o for o in others.values() if o.state == RUNS and (o.progress < mine.progress or self.state == WAITS)]
        return ([o.rank for o in behind], f"{named(behind)} is behind the others, which have waited") if behind else None

    def _end(self, missing: list[int], what: str) -> None:
        assert self._trainer is not None
        first = min(r for r in range(self._trainer.world_size) if r not in missing)
        if what and first == self._trainer.global_rank:
            limit = f"trainer.timeout_s={self.timeout_s:g}"
            print(f"\nssl-zoo: {what} for too long ({limit}), so all ranks end. {self.advice()}", file=sys.stderr, flush=True)
        if isinstance(self._trainer.strategy.launcher, Launcher):
            self._trainer.strategy.launcher.end()
        sys.stdout.flush()
        os._exit(1)


def named(ranks: list["Other"]) -> str:
    return "Rank " + ", ".join(f"{o.rank} (on {o.host})" if o.host else f"{o.rank}" for o in ranks)


def of_collectives(error: BaseException) -> bool:
    words = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "c10d", "tcpstore", "process group")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


class Other:
    """What is known of a rank: what it said last, and when it said and did something new, by the clock of this process."""

    def __init__(self, rank: int) -> None:
        self.rank, self.said, self.state, self.progress, self.asked, self.host = rank, "", RUNS, -1, 0, ""
        self.heard = self.moved = time.monotonic()

    def hear(self, said: str) -> None:
        if not said or said == self.said:
            return
        self.said, before, self.heard = said, (self.state, self.progress), time.monotonic()
        self.state, progress, asked, self.host, _ = said.split()
        self.progress, self.asked = int(progress), int(asked)
        if (self.state, self.progress) != before:
            self.moved = self.heard

    @staticmethod
    def since(moment: float) -> float:
        return time.monotonic() - moment


class Board:
    """Where ranks write what they say: the store at which they met, by a connection of its own, for a collective may hold the other."""

    def __init__(self, trainer: L.Trainer, patience: float) -> None:
        environment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        self.place = environment.main_address, environment.main_port
        self.me, self.patience, self.store = trainer.global_rank, timedelta(seconds=patience), None

    def swap(self, said: str, others: list[int]) -> list[str]:
        """Write `said`, and read what the other ranks have written, "" for one that has written nothing yet."""
        if self.store is None:
            self.store = dist.TCPStore(*self.place, None, False, self.patience, wait_for_workers=False)  # type: ignore[assignment]
        store: Any = self.store
        store.set(f"ssl_zoo/{self.me}", said)
        return [store.get(key).decode() if store.check([key]) else "" for key in (f"ssl_zoo/{r}" for r in others)]

    def close(self) -> None:
        """After an error: what the old connection still brings would be taken for the next answer."""
        self.store = None
