"""Runs a command as a whole process on given processors and takes the kernel's account of it."""

import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Figures:
    """One run. Memory is that of the largest process of the run."""

    wall_s: float
    cpu_s: float
    memory_bytes: int
    load: float


@dataclass
class Heard:
    """What a command said: all of stdout, and each line of stderr with the time of the system's clock when it came."""

    pid: int = 0
    began: float = 0.0
    ended: float = 0.0
    out: str = ""
    lines: list[tuple[float, str]] = field(default_factory=list)


class RunFailed(Exception):
    """A measured command that did not end well; its figures would mean nothing."""


def run(command: list[str], cpus: set[int], environment: dict[str, str], folder: Path, log: Path,
        heard: Heard | None = None) -> Figures:
    """Runs `command` in `folder`, its output appended to `log`; with `heard` that gets stdout, and stderr too."""
    # What an earlier command left to be written back must not be charged to this one.
    os.sync()
    load = os.getloadavg()[0]
    with log.open("ab") as out, tempfile.TemporaryFile() as answer:
        out.write(f"\n$ {' '.join(command)}\n".encode())
        out.flush()
        began, began_at = time.monotonic(), time.time()
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
            stdout=answer if heard else out, stderr=subprocess.PIPE if heard else out,
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )
        listener = listen(process, heard, out) if heard else None
        _, status, used = os.wait4(process.pid, 0)
        wall = time.monotonic() - began
        if heard and listener:
            heard.began, heard.ended = began_at, began_at + wall
            listener.join()
            answer.seek(0)
            heard.out = answer.read().decode()
            out.write(heard.out.encode())
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RunFailed(f"{' '.join(command)} ended with {process.returncode}; see {log}")
    return Figures(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, load)


def listen(process: subprocess.Popen, heard: Heard, log) -> threading.Thread:
    """Notes what comes from a process's stderr, until it is closed."""
    heard.pid = process.pid

    def note() -> None:
        for line in process.stderr:
            heard.lines.append((time.time(), line.decode(errors="replace").rstrip("\n")))
            log.write(line)

    listener = threading.Thread(target=note)
    listener.start()
    return listener


def medians(runs: list[Figures]) -> dict[str, float]:
    return {
        "wall_s": statistics.median(r.wall_s for r in runs),
        "wall_min_s": min(r.wall_s for r in runs),
        "wall_max_s": max(r.wall_s for r in runs),
        "cpu_s": statistics.median(r.cpu_s for r in runs),
        "memory_bytes": max(r.memory_bytes for r in runs),
    }


def machine() -> dict[str, object]:
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?")
    memory = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    return {
        "processor": cpu,
        "processors": os.cpu_count(),
        "memory_gib": round(memory / 2**20),
        "system": f"{platform.system()} {platform.release()}, {platform.freedesktop_os_release().get('PRETTY_NAME', '?')}",
        "commit": subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "load_at_start": os.getloadavg()[0],
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
