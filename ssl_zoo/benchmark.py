"""`ssl-zoo benchmark`: the runs of a suite one after the other, each in a process of its own; what is finished is not repeated.
Needs no torch.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_zoo.command_line import command_line, config_dirs
from ssl_zoo.continued import has_checkpoint
from ssl_zoo.errors import Ended, UserError
from ssl_zoo.files import locked
from ssl_zoo.fingerprint import ABSENT, changes, config_hash, decides, leaves
from ssl_zoo.launch import LOCK, refuse_many
from ssl_zoo.multirun import wait
from ssl_zoo.overrides import override
from ssl_zoo.saved import RESUMABLE
from ssl_zoo.suite import Cell, Suite, load_suite

RESUME, RUN, FINISHED, BUSY = "to resume", "to run", "finished", "being trained by another process"


@dataclass(frozen=True)
class Plan:
    """What there is to do for a cell, and the run folders of the same name and seed that were trained by another config."""

    cell: Cell
    folder: Path
    state: str
    stale: dict[Path, dict[str, tuple[Any, Any]]]

    @property
    def label(self) -> str:
        return f"{self.cell.name} seed {self.cell.seed}"


def benchmark(words: list[str], options: dict[str, str]) -> int:
    """Run what the suite lacks, judge it, and render the report. Exit code 1 when something failed; it is tried again next time."""
    names = [w.partition("=")[2] for w in words if w.startswith("suite=")]
    if len(names) != 1 or not names[0]:
        raise UserError("benchmark needs one suite: ssl-zoo benchmark suite=shapes, or a file as in suite=mine.yaml.")
    rest = [w for w in words if not w.startswith("suite=")]
    suite = load_suite(names[0], rest, config_dirs(options))
    root = Path(suite.cells[0].config["out"]) / suite.name
    refuse_many("benchmark")
    if "cfg" in options:
        return _listing(suite, root, {k: v for k, v in options.items() if k != "cfg"})
    failed, busy, command = [], [], command_line(words, options, "benchmark")
    before = [plan_of(cell, root) for cell in suite.cells]
    took, left = [_seconds(p.folder) for p in before if p.state == FINISHED], sum(p.state != FINISHED for p in before)
    for number, cell in enumerate(suite.cells, 1):
        plan = plan_of(cell, root)
        doing = plan.state in (RUN, RESUME)
        print(f"[{number}/{len(suite.cells)}] {plan.label}: {plan.state}{_left(took, left) if doing else ''}", flush=True)
        for what, job in _jobs(plan, suite.protocols, options):
            code = wait(subprocess.Popen(job))
            if code < 0:
                raise Ended(f"Stopped in run {number} of {len(suite.cells)}. Continue with: {command}", -code)
            if code:
                failed.append(f"{plan.label}{what}")
                if not what:
                    break
        busy += [plan.label] * (plan.state == BUSY)
        if doing:
            left -= 1
            took.append(_seconds(plan.folder))
    plans = [plan_of(cell, root) for cell in suite.cells]
    if any(p.state == FINISHED for p in plans):
        from ssl_zoo.stale import report  # after a slip in the suite is told: it imports matplotlib

        report([root], root / "report", title=suite.name, stale=_stale(plans, root))
    done = sum(p.state == FINISHED for p in plans)
    told = "".join(f"; {what}: {', '.join(which)}" for what, which in (("failed", failed), (BUSY, busy)) if which)
    print(f"{done} of {len(plans)} runs finished{told}" + (f". Try again with: {command}" if told else ""))
    return 1 if told else 0


def _left(took: list[float], runs: int) -> str:
    """How long so many runs may take, by the seconds of those that are finished (0 where they are not known)."""
    known = [s for s in took if s]
    if not known or not runs:
        return ""
    minutes = max(1, round(runs * sum(known) / len(known) / 60))
    return f" (about {f'{minutes // 60} h ' if minutes >= 60 else ''}{minutes % 60} min left for {runs} run{'s' * (runs > 1)})"


def _seconds(run: Path) -> float:
    """What a finished run took, 0 where its summary does not say."""
    try:
        return float(json.loads((run / "summary.json").read_text(encoding="utf-8"))["seconds"]["total"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0.0


def _listing(suite: Suite, root: Path, options: dict[str, str]) -> int:
    for plan in (plan_of(cell, root) for cell in suite.cells):
        lacks = [p for p in suite.protocols if plan.state == FINISHED and not _judged(plan.folder, p)]
        print(f"{plan.state + (', to evaluate' if lacks else ''):22} {plan.folder}  # {command_line(list(plan.cell.words), options)}")
        for folder, keys in plan.stale.items():
            print(f"{'stale':22} {folder}  # {', '.join(keys) or 'its config cannot be read'}")
    return 0


def plan_of(cell: Cell, root: Path) -> Plan:
    """Where a cell is trained and what is left to do. A run of another config is left as it is, and the cell gets a folder beside it."""
    from ssl_zoo.reports.collect import read_config

    base = root / cell.name / f"seed{cell.seed}"
    stale: dict[Path, dict[str, tuple[Any, Any]]] = {}
    mine = None
    for folder in sorted(base.parent.glob("seed*")):
        if (folder.name == base.name or folder.name.startswith(f"{base.name}-")) and (folder / "config.yaml").exists():
            try:
                found = changes(read_config(folder), cell.config)
            except ValueError:
                stale[folder] = {}
                continue
            if found:
                stale[folder] = found
            else:
                mine = folder
    if mine:
        return Plan(cell, mine, _state(mine, cell.config), stale)
    free = (base, *(base.with_name(f"{base.name}-{config_hash(cell.config)[:n]}") for n in range(6, 17)))
    return Plan(cell, next(f for f in free if f not in stale), RUN, stale)


def _state(run: Path, config: dict[str, Any]) -> str:
    """What is left to do in a folder that holds the config of the cell."""
    try:
        done = int(json.loads((run / "summary.json").read_text(encoding="utf-8"))["epochs"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        done = 0
    whole = done >= config["epochs"] or (done and config["trainer"]["max_steps"] > 0)
    if whole and (run / "backbone.safetensors").is_file():
        return FINISHED
    return BUSY if _held(run) else RESUME if has_checkpoint(run) else RUN


def _held(run: Path) -> bool:
    """Whether a process that trains holds the folder."""
    if not (run / LOCK).is_file():
        return False
    try:
        lock = locked(run / LOCK)
    except OSError:  # not ours to write
        return False
    if lock is not None:
        lock.close()
    return lock is None


def _judged(run: Path, protocol: str) -> bool:
    file, weights = run / "eval" / f"{protocol}.json", run / "backbone.safetensors"
    return file.is_file() and file.stat().st_mtime_ns >= weights.stat().st_mtime_ns


def _jobs(plan: Plan, protocols: list[str], options: dict[str, str]) -> Any:
    """(what it is, command) of what is left to do; the evaluations once there is something to evaluate."""
    folder, start = plan.folder, [sys.executable, "-m", "ssl_zoo"]
    extra = ["--config-dir", options["config-dir"]] if "config-dir" in options else []
    trust = [w for w in plan.cell.words if w.startswith("trust=")]
    if plan.state == BUSY:
        return
    if plan.state == RESUME:
        yield "", [*start, "resume", f"run={folder}", *_anew(plan), *trust]
    elif plan.state == RUN:
        (folder / "config.yaml").unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        yield "", [*start, "pretrain", *extra, *plan.cell.words, override("run", folder)]
    for protocol in protocols:
        if not _judged(folder, protocol):
            yield f" (eval {protocol})", [*start, "eval", *extra, override("run", folder), f"protocol={protocol}", *trust]


def _anew(plan: Plan) -> list[str]:
    """Words that decide no result, such as data.resident=false after a shortage, and that a run to be resumed was not started with."""
    from ssl_zoo.reports.collect import read_config

    saved, now = (dict(leaves(c)) for c in (read_config(plan.folder), plan.cell.config))
    keys = {w: w.partition("=")[0] for w in plan.cell.words}
    free = {w: k for w, k in keys.items() if k.startswith(RESUMABLE) and k != "trust" and not decides(k)}
    return [w for w, key in free.items() if saved.get(key) != now.get(key, ABSENT)]


def _stale(plans: list[Plan], root: Path) -> dict[Path, dict[str, tuple[Any, Any]]]:
    """Runs below `root` that the suite would train by another config; also those of seeds that were not chosen this time."""
    from ssl_zoo.reports.collect import read_config

    found = {folder: keys for plan in plans for folder, keys in plan.stale.items()}
    cells = {plan.cell.name: plan.cell for plan in plans}
    for folder in {file.parent for file in root.rglob("config.yaml")} - {plan.folder for plan in plans} - set(found):
        if folder.parent.name in cells:
            try:
                saved = read_config(folder)
            except ValueError:  # the report says so
                continue
            keys = changes(saved, {**cells[folder.parent.name].config, "seed": saved.get("seed")})
            found |= {folder: keys} if keys else {}
    return found
