"""`ssl-zoo -m`: one process and one run folder for each combination of values. Needs no torch."""

import re
import subprocess
import sys
import time
from pathlib import Path

from ssl_zoo.commands import command_line, config_dirs, show
from ssl_zoo.config import compose, expand, run_name
from ssl_zoo.errors import UserError


def multirun(words: list[str], options: dict[str, str]) -> int:
    """One process and one run folder per job, one after the other; a job that fails does not stop the others."""
    dirs = config_dirs(options)
    jobs = expand(words, dirs)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    commands = []
    for number, job in enumerate(jobs):  # every job's config is checked before the first one starts
        config = compose("train", job, dirs)
        if config.run and len(jobs) > 1:
            raise UserError("run=... would be shared by all jobs of -m: use out=... instead.")
        if "cfg" in options:
            print(f"--- # {command_line(job, options)}")
            show(config)
            continue
        folder = config.run or str(Path(config.out) / run_name(job, dirs) / f"{stamp}_{number}")
        extra = ["--config-dir", dirs[0]] if dirs else []
        place = [] if config.resume == "auto" else [override("run", folder)]  # auto looks for its run, or starts one
        commands.append([sys.executable, "-m", "ssl_zoo", "pretrain", *extra, *job, *place])
    codes = []
    for number, (job, command) in enumerate(zip(jobs, commands, strict=False), 1):
        print(f"[{number}/{len(jobs)}] {command_line(job, options)}", flush=True)
        codes.append(wait(subprocess.Popen(command)))
        if codes[-1] == 130:
            raise KeyboardInterrupt(f"Stopped in job {number} of {len(jobs)}.")
    if not codes:
        return 0
    failed = [number for number, code in enumerate(codes, 1) if code]
    print(f"{len(jobs) - len(failed)} of {len(jobs)} jobs finished" + (f"; failed: {', '.join(map(str, failed))}" if failed else ""))
    return 1 if failed else 0


def override(key: str, value: str | Path) -> str:
    """key=value as Hydra reads it back, whatever the value holds."""
    text = str(value)
    if "/" in text and re.fullmatch(r"[\w./+-]+", text, re.ASCII):
        return f"{key}={text}"
    quoted = re.sub(r"(\\+)(?='|$)", r"\1\1", text).replace("'", "\\'")  # elsewhere a backslash is one
    return f"{key}='{quoted}'"


def wait(job: subprocess.Popen) -> int:
    """The exit code of a job, 130 after Ctrl-C. That reaches the job too, which then saves: it is given the time it needs."""
    stopped = False
    while True:
        try:
            code = job.wait()
            return 130 if stopped else code
        except KeyboardInterrupt:
            stopped = True
