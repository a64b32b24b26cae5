"""How much memory there is to take."""

import os
from pathlib import Path

import torch


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had: of a CUDA device its own, else of this machine and of the limit that this process runs under."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_of_machine(), _of_group(Path("/sys/fs/cgroup")))


def _of_machine() -> int:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):  # counts what the system would drop, as AVPHYS_PAGES does not
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # Windows
        return 1 << 32


def _of_group(root: Path) -> int:
    """What the control group of this process (version 2, or 1) leaves; files that the system keeps in memory can be dropped."""
    found = 1 << 62
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):
            names = ("memory.max", "memory.current") if not controllers else ("memory.limit_in_bytes", "memory.usage_in_bytes")
            top = root / controllers
            inner = top / group.strip("/")
            for folder in (inner, *inner.parents):
                found = min(found, _left(folder, *names))
                if folder == top:
                    break
    return found


def _left(folder: Path, most: str, used: str) -> int:
    limit, now = (next(iter(_lines(folder / name)), "max").strip() for name in (most, used))
    if not (limit.isdigit() and now.isdigit()):
        return 1 << 62
    kept = (line.split()[1] for line in _lines(folder / "memory.stat") if line.startswith(("inactive_file ", "total_inactive_file ")))
    return max(0, int(limit) - int(now) + max(map(int, kept), default=0))


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
