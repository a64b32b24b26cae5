"""`ssl-zoo -m sweep=slurm`: every job of a sweep is a job of SLURM, submitted by submitit. Needs no torch."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ssl_zoo.errors import UserError

LOGS = "submitit"  # below config.out


class Job:
    """What a task of a job runs: the command, with SLURM's signals left to it. ssl_zoo puts the job back into the queue, not submitit."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def __call__(self) -> int:
        for name in ("SIGUSR1", "SIGTERM"):  # which reach the command too; this process must not end before it
            signal.signal(getattr(signal, name), lambda number, frame: None)
        code = subprocess.run([sys.executable, "-m", "ssl_zoo", "pretrain", *self.words]).returncode
        if code:
            raise RuntimeError(f"ssl-zoo {' '.join(self.words)} ended with exit code {code}.")
        return code


def submit(commands: list[list[str]], configs: list[Any], shown: list[str], settings: Any) -> int:
    """Submit each of `commands`, with a task for each device of its config, and print the numbers of the jobs."""
    try:
        import submitit
    except ImportError as e:
        raise UserError("sweep=slurm needs the package submitit: pip install 'ssl-zoo[slurm]'.") from e
    if settings.cluster == "slurm" and shutil.which("sbatch") is None:
        raise UserError("sweep=slurm needs SLURM's sbatch, which is not here: run this on a login node.")
    if any(config.run for config in configs):
        raise UserError("sweep=slurm names the folder of a run by its job: use out=... in place of run=...")
    for words, config, line in zip(commands, configs, shown, strict=True):
        devices = config.trainer.devices
        if not isinstance(devices, int) or devices < 1:
            raise UserError(f"trainer.devices={devices} does not say how many devices a job of SLURM needs: give a number.")
        folder = Path(config.out).resolve() / LOGS
        executor = submitit.AutoExecutor(folder=folder / "%j", cluster=settings.cluster)
        executor.update_parameters(**parameters(settings, devices, config.trainer.num_nodes))
        job = executor.submit(Job(words))
        print(f"job {job.job_id}  {line}  # {folder / str(job.job_id)}", flush=True)
    return 0


def parameters(settings: Any, devices: int, nodes: int) -> dict[str, Any]:
    """What submitit is asked for: one task per device, and SIGUSR1 `signal_s` seconds before the end."""
    wanted: dict[str, Any] = {"name": "ssl-zoo", "timeout_min": settings.timeout_min}
    if settings.cluster != "slurm":  # a run starts its own processes there
        return wanted
    wanted |= {"nodes": nodes, "tasks_per_node": devices, "cpus_per_task": settings.cpus_per_task}
    wanted["gpus_per_node"] = devices if settings.gpus_per_node == "auto" else settings.gpus_per_node
    wanted |= {"mem_gb": settings.mem_gb} if settings.mem_gb is not None else {}
    wanted |= {f"slurm_{k}": settings[k] for k in ("partition", "account", "qos", "constraint") if settings[k] is not None}
    wanted["slurm_additional_parameters"] = {"signal": f"USR1@{settings.signal_s}", "requeue": True, **dict(settings.more or {})}
    return wanted
