"""`ssl-zoo -m`: one process and one run folder for each combination of values. Needs no torch."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig

from ssl_zoo.command_line import command_line, config_dirs
from ssl_zoo.commands import show
from ssl_zoo.config import compose, expand, run_name
from ssl_zoo.continued import has_checkpoint
from ssl_zoo.errors import Ended, UserError
from ssl_zoo.launch import refuse_many
from ssl_zoo.overrides import override, parse
from ssl_zoo.slurm import job_id

PASSED_ON = [getattr(signal, n) for n in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, n)]


def multirun(words: list[str], options: dict[str, str]) -> int:
    """One process and one run folder per job, one after the other; a job that fails does not stop the others. A job of SLURM that is
    started again goes on where it was.
    """
    dirs = config_dirs(options)
    refuse_many("-m")
    sweep = [w for w in words if w.lstrip("+~").startswith(("sweep=", "sweep."))]
    jobs = expand([w for w in words if w not in sweep], dirs)
    settings = sweep_settings(sweep, dirs)
    stamp = job_id() or time.strftime("%Y%m%d-%H%M%S")
    commands, folders, configs, extra = [], [], [], ["--config-dir", dirs[0]] if dirs else []
    for number, job in enumerate(jobs):  # every job's config is checked before the first one starts
        config = compose("train", job, dirs)
        if config.run and len(jobs) > 1:
            raise UserError("run=... would be shared by all jobs of -m: use out=... instead.")
        if "cfg" in options:
            print(f"--- # {command_line(job, options)}")
            show(config)
            continue
        configs.append(config)
        place = Path(config.out) / run_name(job, dirs)
        folders.append(place if config.resume == "auto" and not config.run else Path(config.run or place / f"{stamp}_{number}"))
        commands.append([*extra, *job])
    if not commands:
        return 0
    if settings is not None and settings.name == "slurm":
        from ssl_zoo.submit import submit

        return submit(commands, configs, [command_line(job, options) for job in jobs], settings)
    codes = []
    for number, (job, command, folder) in enumerate(zip(jobs, commands, folders, strict=True), 1):
        print(f"[{number}/{len(jobs)}] {command_line(job, options)}", flush=True)
        codes.append(_run(command, folder, auto=configs[number - 1].resume == "auto"))
        if codes[-1] < 0:
            raise Ended(f"Stopped in job {number} of {len(jobs)}.", -codes[-1])
    failed = [number for number, code in enumerate(codes, 1) if code]
    print(f"{len(jobs) - len(failed)} of {len(jobs)} jobs finished" + (f"; failed: {', '.join(map(str, failed))}" if failed else ""))
    for number in failed:
        own = [w for w in jobs[number - 1] if not all(w in job for job in jobs)]  # what this job has and others have not
        print(f"  {number:>3}  exit code {codes[number - 1]:<3}  {folders[number - 1]}  {' '.join(own)}")
    return 1 if failed else 0


def sweep_settings(words: list[str], dirs: list[str]) -> DictConfig | None:
    """Where the jobs run; None where nothing is said of it."""
    if not words:
        return None
    words = [w.lstrip("+") for w in words]
    if several := [w for w, o in zip(words, parse(words), strict=True) if o.is_sweep_override()]:
        raise UserError(f"{several[0]} gives several values, but all jobs of -m run in one place: give one.")
    if not any(w.startswith("sweep=") for w in words):
        raise UserError(f"{words[0]} is said of jobs that run elsewhere: add sweep=slurm.")
    return compose("sweep", words, dirs).sweep


def _run(command: list[str], folder: Path, auto: bool) -> int:
    """A job of a sweep. auto: it looks for its run itself, or starts one. SLURM may have started it before."""
    if auto:
        return _start("pretrain", *command)
    if not folder.name.startswith(f"{job_id()}_"):
        return _start("pretrain", *command, override("run", folder))
    if (folder / "summary.json").is_file():
        return 0
    if has_checkpoint(folder):
        return _start("resume", override("run", folder), *(w for w in command if w.startswith("trust=")))
    (folder / "config.yaml").unlink(missing_ok=True)  # of a run that ended before its first checkpoint
    return _start("pretrain", *command, override("run", folder))


def _start(*words: str) -> int:
    return wait(subprocess.Popen([sys.executable, "-m", "ssl_zoo", *words]))


def wait(job: subprocess.Popen) -> int:
    """The exit code of a job; negative where this command was asked to stop, by Ctrl-C, which reaches the job too, or by a signal, which is
    passed on: the job then saves and is given the time it needs.
    """
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        job.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        while True:
            try:
                code = job.wait()
                break
            except KeyboardInterrupt:
                asked.append(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not asked and code != 130:
        return code if code >= 0 else 128 - code
    return -(code if code in (75, 143) else 130 if signal.SIGINT in asked or code == 130 else 143)
