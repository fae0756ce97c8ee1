"""`make bench`: dr beside restic, rustic and borg, and beside the floor, on the same data in one run.

Every row is measured several times, the programs taking turns, each as a whole process on the same
processors. What is compared are medians. `--help` names the parts; docs/PERFORMANCE.md keeps a run.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import data
import measure
import rows
import table
from tools import PEERS, TOOLS, Dr, Floor, Tool

HERE = Path(__file__).resolve().parent
PARTS = ["postgres", "documents", "s3", "prune", "index"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each program (default 5)")
    parser.add_argument("--quick", action="store_true", help="two runs: to see whether a change helped")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be repeated")
    parser.add_argument("--tool", action="append", choices=["dr", "floor", *PEERS], help="only this program; may be repeated")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the data, 1 being the real one")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/dr-bench"), help="where data and repositories go")
    parser.add_argument("--cpus", default="0,1", help="processors for every program (default 0,1)")
    parser.add_argument("--no-check", action="store_true", help="do not compare what was restored with the source")
    chosen = parser.parse_args()
    chosen.runs = 2 if chosen.quick else chosen.runs
    chosen.cpus = {int(cpu) for cpu in chosen.cpus.split(",")} & os.sched_getaffinity(0)
    chosen.part = chosen.part or PARTS
    chosen.folder = chosen.folder.resolve()
    return chosen


def install_peers(wanted: list[str]) -> None:
    """Debian's restic and borg, and rustic from its source; only what is missing."""
    packages = {"restic": "restic", "borg": "borgbackup"}
    missing = [packages[name] for name in wanted if name in packages and not table.which(name)]
    if missing:
        print(f"Installing {' '.join(missing)} with apt, to compare with.", file=sys.stderr)
        sudo = [] if os.geteuid() == 0 else ["sudo"]
        subprocess.run([*sudo, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True)
    if "rustic" in wanted and not (TOOLS / "bin/rustic").exists():
        print("Building rustic, to compare with; that takes some ten minutes.", file=sys.stderr)
        subprocess.run(["cargo", "install", "rustic-rs", "--no-default-features", "--root", str(TOOLS)], check=True)


def build(parts: list[str]) -> None:
    """The release as people run it, and the programs that only the benchmark has."""
    subprocess.run(["cargo", "build", "--release", "--locked", "-p", "dr"], check=True)
    examples = ["floor"]
    examples += ["slow_s3"] if "s3" in parts else []
    examples += ["big_repository"] if "prune" in parts else []
    examples += ["index_figures"] if "index" in parts else []
    # These have test hooks: built on their own, so that none gets into `dr`.
    subprocess.run(
        ["cargo", "build", "--release", "--locked", "-p", "dr-testkit", "-p", "dr-store", "--features", "dr-store/testing",
         *(word for name in examples for word in ("--example", name))],
        check=True,
    )


def main() -> int:
    chosen = arguments()
    names = chosen.tool or ["dr", *PEERS, "floor"]
    install_peers(names)
    build(chosen.part)
    work = measure.empty(chosen.folder / "work")
    classes: dict[str, type[Tool]] = {"dr": Dr, **PEERS, "floor": Floor}
    tools = [classes[name](name, work / name, chosen.cpus) for name in names]
    results: dict[str, object] = {
        "machine": measure.machine(),
        "command": "make bench" if len(sys.argv) == 1 else f"scripts/bench/bench.py {' '.join(sys.argv[1:])}",
        "runs": chosen.runs,
        "cpus": sorted(chosen.cpus),
        "versions": {tool.name: tool.version() for tool in tools},
        "rows": [],
    }
    out = chosen.folder / "results.json"
    for part in chosen.part:
        for row in rows.of(part, chosen, tools, work):
            results["rows"].append(row)
            out.write_text(json.dumps(results, indent=1))
            print(table.row(row), file=sys.stderr)
    results["machine"]["load_at_end"] = os.getloadavg()[0]
    out.write_text(json.dumps(results, indent=1))
    markdown = table.document(results)
    out.with_suffix(".md").write_text(markdown)
    print(markdown)
    print(f"raw figures: {out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
