"""How several processes of this machine are started, and what becomes of the others when one of them ends."""

import atexit
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import lightning.pytorch as L
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

SLACK = 15.0  # seconds that a collective waits longer than who watches the ranks, so that the one who knows the reason tells it


class Launcher(_SubprocessScriptLauncher):
    """Lightning's, which runs the same command again for each device. Where one of these processes fails, Lightning kills all, this one
    too, without a word; here a sentence names it, and the command ends with exit code 1. None of them outlives the command.
    """

    advice: Callable[[], str] = staticmethod(str)
    children: list[subprocess.Popen] = []  # noqa: RUF012 - of a process that starts none

    def _call_children_scripts(self) -> None:
        super()._call_children_scripts()
        self.children, self.procs = self.procs, []  # Lightning's observer finds nothing to observe
        atexit.register(self._wait)
        threading.Thread(target=self._observe, name="processes", daemon=True).start()

    def _observe(self) -> None:
        while True:
            time.sleep(0.5)
            for number, process in enumerate(self.children, 1):
                if code := process.poll():
                    time.sleep(1.0)  # it may have ended because this process is about to
                    rank = self.cluster_environment.node_rank() * self.num_processes + number
                    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                    print(f"\nssl-zoo: Rank {rank} {how}, so all ranks end. {self.advice()}", file=sys.stderr, flush=True)
                    self.end()
                    sys.stdout.flush()
                    os._exit(1)

    def end(self) -> None:
        for process in self.children:
            process.kill()

    def _wait(self) -> None:
        """At the end of the command: the others end by themselves, unless they cannot."""
        deadline = time.monotonic() + SLACK
        try:
            for process in self.children:
                process.wait(max(0.1, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            self.end()


def prepare(trainer: L.Trainer, timeout_s: float, advice: Callable[[], str]) -> None:
    """Settings of Lightning's that no argument of its Trainer takes where it chooses the strategy itself."""
    strategy, environment = trainer.strategy, getattr(trainer.strategy, "cluster_environment", None)
    if isinstance(strategy, DDPStrategy):
        strategy._timeout = timedelta(seconds=timeout_s + SLACK)
        # Queues, centers and global statistics are equal on all ranks, and evaluation sends the statistics that are not: a broadcast of
        # them at each forward would change nothing on rank 0, whose are judged and saved.
        strategy._ddp_kwargs.setdefault("broadcast_buffers", False)
    if isinstance(strategy.launcher, _SubprocessScriptLauncher):
        strategy._launcher = Launcher(environment, strategy.num_processes, trainer.num_nodes)  # type: ignore[attr-defined]
        strategy._launcher.advice = advice
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False  # this is callbacks/stop.py's
