"""What started this process, and what follows from it: which rank it is, how many devices there are, what torch must find set.
Needs no torch.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from ssl_zoo.config import plain
from ssl_zoo.continued import has_checkpoint
from ssl_zoo.errors import UserError
from ssl_zoo.slurm import job_id, run_of_job


def rank() -> int:
    """The rank of this process; where only nodes are numbered, not 0 for all but one process."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    if _by_srun():
        return int(os.environ.get("SLURM_PROCID", 0))
    return int(os.environ.get("LOCAL_RANK", 0)) or int(os.environ.get("NODE_RANK", 0))


def _by_srun() -> bool:
    return "SLURM_NTASKS" in os.environ and job_id() is not None


def launcher() -> tuple[str, int, int] | None:
    """(what started the processes, how many on each node, on how many nodes); None where this process starts them."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return "torchrun (--nproc-per-node, --nnodes)", local, int(os.environ["WORLD_SIZE"]) // local
    if _by_srun():
        tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", 1))
        return "SLURM (--ntasks-per-node, --nodes)", int(os.environ.get("SLURM_NTASKS_PER_NODE", tasks // nodes)), nodes
    return None


def refuse_taken(run: Path, resume: str | None) -> None:
    """A folder that holds a run is never written over."""
    begun = resume == "auto" and not list(run.glob("checkpoints/*.ckpt"))  # by the same config, and nothing saved yet
    if (run / "config.yaml").exists() and not begun:
        raise UserError(f"run={run} already holds a run: choose another folder, or continue it with ssl-zoo resume run={run}.")


LOCK = ".lock"  # of a run folder, held by the process that trains into it


def prepare(config: DictConfig, fixed: Iterable[str]) -> None:
    """Take the number of devices from torchrun or SLURM where one of them has started the processes, and set what torch reads once.

    fixed: keys that were given in so many words, and must agree.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a store that a lost rank held is warned of in pages; a sentence says it
    if config.trainer.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else CUDA refuses to be deterministic
    found = launcher()
    if found is None:
        return
    if _by_srun() and found[1] * found[2] > 1 and not os.environ.keys() & {"SLURM_STEP_ID", "SLURM_STEPID"}:
        raise UserError(f"SLURM was asked for {os.environ['SLURM_NTASKS']} tasks, but this is one process: start it with srun ssl-zoo ...")
    who, local, nodes = found
    for key, count in (("devices", local), ("num_nodes", nodes)):
        now = config.trainer[key]
        counted = len(now) if isinstance(now, (list, ListConfig)) else now
        if f"trainer.{key}" in fixed and counted not in (count, "auto", -1):
            raise UserError(
                f"trainer.{key}={now}, but {who} started {local} process{'es' * (local > 1)} on each of {nodes} node{'s' * (nodes > 1)}: "
                "one for each device is needed, so let both say the same."
            )
        if counted != count:
            config.trainer[key] = count


def begun(config: DictConfig, name: str) -> Path | None:
    """The run that this job of SLURM has begun and can go on with; else None, and a job's new run gets the folder of its number."""
    run = run_of_job(plain(config), name)
    if run is None or has_checkpoint(run):
        return run
    config.run = str(run)
    if rank() == 0:
        (run / "config.yaml").unlink(missing_ok=True)  # of a run that ended before its first checkpoint
    return None


def refuse_many(verb: str) -> None:
    """What starts processes itself must not be started many times."""
    found = launcher()
    if found and found[1] * found[2] > 1:
        raise UserError(
            f"{verb} starts the processes of each run itself: start it once, with trainer.devices={found[1]}, not by {found[0]}."
        )
