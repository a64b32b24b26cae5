"""The code blocks of the documentation: found in a page, taken apart into steps, and run."""

import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT, command

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
HEREDOC = re.compile(r"<<-?\s*['\"]?(\w+)")
OURS = re.compile(r"^((?:[A-Z_]+=\S* )*)ssl-zoo(?= |$)")


@dataclass(frozen=True)
class Step:
    """What is run at once: a command of a bash block, a Python block, or a text block that shows what came before it."""

    kind: str  # ssl-zoo | bash | python | text
    text: str
    line: int

    @property
    def words(self) -> list[str]:
        """What follows ssl-zoo."""
        return shlex.split(OURS.sub("", self.text), comments=True)


def pages() -> dict[str, str]:
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {f.relative_to(ROOT).as_posix(): f.read_text(encoding="utf-8") for f in files}


def steps(page: str) -> list[Step]:
    """The steps of a page, in order."""
    found: list[Step] = []
    for block in FENCE.finditer(page):
        line = page.count("\n", 0, block.start()) + 2
        _, kind, text = block.groups()
        if kind == "bash":
            found += bash_steps(textwrap.dedent(text), line)
        elif kind in ("python", "text"):
            found.append(Step(kind, textwrap.dedent(text), line))
    return found


def bash_steps(block: str, line: int) -> list[Step]:
    """One step for each command: a line, with those that continue it and its here-document."""
    found, rest = [], block.splitlines()
    while rest:
        start, taken = line, [rest.pop(0)]
        while taken[-1].endswith("\\"):
            taken.append(rest.pop(0))
        if ends := HEREDOC.search(taken[0]):
            while taken[-1] != ends[1]:
                taken.append(rest.pop(0))
        line += len(taken)
        text = "\n".join(taken)
        if text.strip() and not text.startswith("#"):
            found.append(Step("ssl-zoo" if OURS.match(text) else "bash", text.replace("\\\n", ""), start))
    return found


def run_bash(text: str, cwd: Path) -> subprocess.CompletedProcess:
    """In bash, with the Python that runs the tests."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    return subprocess.run(["bash", "-euo", "pipefail", "-c", text], cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


def run_command(step: Step, words: list[str], cwd: Path, cache: Path) -> subprocess.CompletedProcess:
    """`ssl-zoo words...`, where it may import packages of the folder if the step says so."""
    said = dict(v.split("=", 1) for v in OURS.match(step.text)[1].split())
    env = {"PYTHONPATH": f"{cwd}{os.pathsep}{ROOT}"} if "PYTHONPATH" in said else {}
    return command(*words, cwd=cwd, anew=bool(said), SSL_ZOO_CACHE=str(cache), WANDB_MODE="offline", OMP_NUM_THREADS="1", **env)


def run_python(text: str, cwd: Path, cache: Path) -> subprocess.CompletedProcess:
    """In a process of its own, forked from the one that `command` forks from, where it can be."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return subprocess.run([sys.executable, "-c", text], cwd=cwd, capture_output=True, text=True, timeout=600)
    files = [cwd / name for name in (".out", ".err")]
    process = multiprocessing.get_context("forkserver").Process(target=_exec, args=(text, cwd, cache, files))
    process.start()
    process.join(600)
    process.kill()
    return subprocess.CompletedProcess("python", process.exitcode, *(f.read_text() for f in files))


def _exec(text: str, cwd: Path, cache: Path, files: list[Path]) -> None:
    import torch

    os.chdir(cwd)
    os.environ["SSL_ZOO_CACHE"] = str(cache)
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    torch.set_num_threads(1)
    exec(compile(text, "block", "exec"), {"__name__": "__main__"})
    sys.stdout.flush()
