"""The job of SLURM that this process is part of: its folder, what goes on when it starts anew, and its way back into the queue.
Needs no torch.
"""

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from ssl_zoo.fingerprint import changes


def job_id() -> str | None:
    """As scontrol takes it; None outside SLURM and in an interactive shell."""
    if os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    array = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return "_".join(array) if all(array) else os.environ.get("SLURM_JOB_ID")  # type: ignore[arg-type]


def run_of_job(config: dict[str, Any], name: str) -> Path | None:
    """<out>/<name>/<job id>: the run of this config that the job began and has not finished, or the first such folder that is free.

    Every rank finds the same one, whether or not rank 0 has made it already.
    """
    job = job_id()
    if job is None or config["run"]:
        return None
    from ssl_zoo.reports.collect import read_config

    base, n = Path(config["out"]) / name / job, 0
    while True:
        run, n = base.with_name(f"{job}-{n}") if n else base, n + 1
        if not (run / "config.yaml").exists():
            return run
        with contextlib.suppress(ValueError):  # a config that cannot be read is another's
            if not (run / "summary.json").exists() and not changes(read_config(run), config):
                return run


def ending(run: Path, number: int) -> str:
    """What to say and do when a run has been stopped by signal `number` and is saved: SIGUSR1 sends a job back into the queue."""
    if number == getattr(signal, "SIGUSR1", None) and job_id() is not None:
        return requeue(run)
    return f"Continue with: ssl-zoo resume run={run}"


def requeue(run: Path) -> str:
    """Put this job back into the queue, which ends it; says in a sentence whether that worked."""
    job, by_hand = job_id(), f"Continue with: ssl-zoo resume run={run}"
    with contextlib.suppress(ValueError):  # another thread than the main one cannot
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which SLURM ends the job, perhaps before it has said what became of it
    try:
        done = subprocess.run(["scontrol", "requeue", str(job)], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"scontrol requeue {job} did not work ({e}). {by_hand}"
    if done.returncode:
        return f"scontrol requeue {job} did not work ({' '.join(done.stderr.split())[:200]}). {by_hand}"
    return f"Job {job} is in the queue again and goes on in {run}."
