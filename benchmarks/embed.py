"""Images per second and memory of `ssl-zoo embed`, and what a kill costs.

    python benchmarks/embed.py OUT --run runs/... --data PARQUET_FOLDER [--kill-after 10]

Three commands: one that is left alone, one that is killed (SIGKILL) after some seconds, and the same again. Both files must be equal, and
every image in them once.
"""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
from harness import arguments, facts, write_rows


def start(run: str, data: str, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "ssl_zoo", "embed", f"run={run}", f"data={data}", f"out={out}", "device=auto"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def finish(job: subprocess.Popen) -> str:
    said = job.communicate()[0]
    if job.returncode:
        raise SystemExit(f"ssl-zoo embed ended with {job.returncode}")
    return said


def main() -> int:
    args = arguments(__doc__, run="", data="", kill_after=10.0)
    whole, killed = args.out / "whole.parquet", args.out / "killed.parquet"
    for file in (whole, killed):
        file.unlink(missing_ok=True)
    began = time.perf_counter()
    said = finish(start(args.run, args.data, whole))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    speed = float(re.search(r"([\d,]+) images/s", said)[1].replace(",", ""))
    job = start(args.run, args.data, killed)
    time.sleep(args.kill_after)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    if killed.exists():
        raise SystemExit("It ended before the kill: choose a smaller --kill-after.")
    left = int(re.search(r"for ([\d,]+) images", finish(start(args.run, args.data, killed)))[1].replace(",", ""))
    one, other = pq.read_table(whole), pq.read_table(killed)
    rows = one["row"].to_pylist()
    row = {
        "images": len(rows),
        "images/s": round(speed),
        "s, whole command": round(seconds, 1),
        "MB at peak": round(peak),
        "file, MB": round(whole.stat().st_size / 1e6, 1),
        f"images left after a kill at {args.kill_after:g} s": left,
        "equal": one.equals(other),
        "each once": rows == sorted(set(rows)),
    }
    command = f"ssl-zoo embed run=... data={Path(args.data).name} out=..."
    write_rows(args.out, "embed", {"command": command, **facts(args.device)}, [row])
    return int(not (row["equal"] and row["each once"]))


if __name__ == "__main__":
    sys.exit(main())
