"""`make bench-memory`: a backup and a restore of 10 GiB under `/usr/bin/time -v`; memory must stay below its limit.

The data is 24 large files and 40,000 small ones. Nothing of a size may be held in memory: neither a
file nor the list of what is stored.
"""

import argparse
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import measure
from tools import Dr

LIMIT_BYTES = 256 << 20
GIB = 1 << 30
BLOCK = 1 << 20


def make(folder: Path, gib: float) -> Path:
    """Half of every mebibyte does not compress, half is text that does; no two are alike."""
    target = folder / f"large-{gib:g}"
    done = target.with_name(target.name + ".whole")
    if done.exists():
        return target
    rng = random.Random(10)
    words = [rng.randbytes(rng.randint(1, 5)).hex().encode() for _ in range(5000)]
    blocks = [b" ".join(rng.choices(words, k=BLOCK // 10))[: BLOCK // 2] for _ in range(200)]
    measure.empty(target)
    for number in range(24):
        with (target / f"{number:02}.data").open("wb") as file:
            for at in range(round(gib * 1000 / 24)):
                text = blocks[(number * 31 + at) % len(blocks)]
                cut = rng.randrange(len(text))
                file.write(rng.randbytes(BLOCK // 2) + text[cut:] + text[:cut])
    for number in range(40_000):
        place = target / "small" / f"{number % 200:03}"
        if number < 200:
            place.mkdir(parents=True)
        (place / f"{number:05}").write_bytes(rng.randbytes(300) + rng.choice(blocks)[: rng.randrange(1000)])
    done.touch()
    return target


def timed(tool: Dr, *command: object) -> int:
    """Runs under `time -v`, prints its account, returns the peak memory in bytes."""
    outcome = subprocess.run(
        ["/usr/bin/time", "-v", *map(str, command)], cwd=tool.folder, stderr=subprocess.PIPE, text=True, check=False
    )
    print(outcome.stderr, file=sys.stderr)
    if outcome.returncode != 0:
        sys.exit(f"error: {' '.join(map(str, command))} ended with {outcome.returncode}")
    return int(re.search(r"Maximum resident set size \(kbytes\): (\d+)", outcome.stderr)[1]) * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=10.0, help="how much data (default 10)")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/dr-bench"), help="where it goes")
    parser.add_argument("--keep", action="store_true", help="leave the data for the next time")
    chosen = parser.parse_args()
    subprocess.run(["cargo", "build", "--release", "--locked", "-p", "dr"], check=True)
    source = make(chosen.folder.resolve() / "data", chosen.gib)
    tool = Dr("large", chosen.folder.resolve() / "large", set())
    tool.cpus = {0, 1}
    tool.begin(source)
    peaks = {
        "first backup": timed(tool, tool.program, "backup", "run", "data"),
        "second backup": timed(tool, tool.program, "backup", "run", "data"),
        "restore": timed(tool, tool.program, "restore", "data", "--into", tool.folder / "restored"),
    }
    difference = measure.differing(source, tool.folder / "restored")
    shutil.rmtree(tool.folder)
    if not chosen.keep:
        shutil.rmtree(source)
        source.with_name(source.name + ".whole").unlink()
    for what, peak in peaks.items():
        print(f"{what} of {chosen.gib:g} GiB: {peak / (1 << 20):.0f} MiB at most, of {LIMIT_BYTES >> 20} allowed")
    if difference:
        sys.exit(f"error: what was restored differs:\n{difference}")
    return 0 if max(peaks.values()) <= LIMIT_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
