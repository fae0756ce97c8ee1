"""Runs a command as a whole process on given processors and takes the kernel's account of it."""

import os
import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Figures:
    """One run. Memory is that of the largest process of the run."""

    wall_s: float
    cpu_s: float
    memory_bytes: int
    load: float


class RunFailed(Exception):
    """A measured command that did not end well; its figures would mean nothing."""


def run(command: list[str], cpus: set[int], environment: dict[str, str], folder: Path, log: Path) -> Figures:
    """Runs `command` in `folder`, its output appended to `log`."""
    # What an earlier command left to be written back must not be charged to this one.
    os.sync()
    load = os.getloadavg()[0]
    with log.open("ab") as out:
        out.write(f"\n$ {' '.join(command)}\n".encode())
        out.flush()
        began = time.monotonic()
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
            stdout=out, stderr=out, preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RunFailed(f"{' '.join(command)} ended with {process.returncode}; see {log}")
    return Figures(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, load)


def medians(runs: list[Figures]) -> dict[str, float]:
    return {
        "wall_s": statistics.median(r.wall_s for r in runs),
        "wall_min_s": min(r.wall_s for r in runs),
        "wall_max_s": max(r.wall_s for r in runs),
        "cpu_s": statistics.median(r.cpu_s for r in runs),
        "memory_bytes": max(r.memory_bytes for r in runs),
    }


def size_of(folder: Path) -> int:
    """Bytes in the files below a folder."""
    total = 0
    for path, _, names in os.walk(folder):
        total += sum(os.lstat(os.path.join(path, name)).st_size for name in names)
    return total


def warm(folder: Path) -> None:
    """Reads everything once, so that every tool finds it in the page cache."""
    buffer = bytearray(1 << 20)
    for path, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(path, name), "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def empty(folder: Path) -> Path:
    """The folder, with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def differing(left: Path, right: Path) -> str:
    """What differs between two trees, by content; empty when nothing does."""
    outcome = subprocess.run(
        ["diff", "-rq", "--no-dereference", str(left), str(right)], capture_output=True, text=True, check=False
    )
    return (outcome.stdout + outcome.stderr)[:2000]


def forget_deleted() -> None:
    """What was deleted must not slow what comes next (see rows.py): the kernel forgets it with its caches."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        # Only root may; then the next rows come out slower where ext4 is.
        pass
