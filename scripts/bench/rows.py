"""The rows of the table: what is done, with which data, by whom."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import data
import measure
from tools import Dr, DrOnS3, Floor, FloorOnS3, Tool

# ext4 gives out no inode that was deleted within the last minutes, and looks at each of them again for every
# new file: after 100,000 deleted files the next restore is twice to five times as dear. So what was restored
# is kept until every program has restored for the last time.
KEPT_UNTIL_THE_END = ("documents",)
EXAMPLES = Path("target/release/examples").resolve()


def of(part: str, chosen: argparse.Namespace, tools: list[Tool], work: Path) -> Iterator[dict]:
    """Measures a part; each row is handed on as soon as it is whole."""
    if part in ("postgres", "documents"):
        yield from backups(part, chosen, tools, work)
    elif part == "s3":
        yield from s3(chosen, work)
    elif part == "prune":
        yield from prune(chosen, work)
    elif part == "index":
        yield from index(chosen, work)


def backups(kind: str, chosen: argparse.Namespace, tools: list[Tool], work: Path) -> Iterator[dict]:
    """First backup, second backup with nothing changed, and restore: the programs take turns at all three."""
    source = data.make(kind, chosen.folder / "data", chosen.scale)
    size = measure.size_of(source)
    figures = {what: {tool.name: [] for tool in tools} for what in ("first", "second", "restore")}
    stored: dict[str, int] = {}
    for number in range(chosen.runs):
        # Who begins changes, so that no program always follows the same one.
        turn = tools[number % len(tools):] + tools[:number % len(tools)]
        for tool in turn:
            tool.begin(source)
            measure.warm(source)
            figures["first"][tool.name].append(tool.back_up(source))
            stored[tool.name] = measure.size_of(tool.repository)
            figures["second"][tool.name].append(tool.back_up(source))
            into = measure.empty(work / "restored" / f"{number}-{tool.name}")
            figures["restore"][tool.name].append(tool.restore(into))
            if number == 0 and not chosen.no_check:
                difference = measure.differing(source, tool.restored(source, into))
                if difference:
                    print(f"warning: {tool.name} restored {kind} otherwise than it was:\n{difference}", file=sys.stderr)
            shutil.rmtree(tool.folder)
            if kind not in KEPT_UNTIL_THE_END:
                shutil.rmtree(into)
        print(f"{kind}: run {number + 1} of {chosen.runs} done", file=sys.stderr)
    shutil.rmtree(work / "restored")
    measure.forget_deleted()
    titles = {"first": "first backup", "second": "second backup, nothing changed", "restore": "restore"}
    for what, title in titles.items():
        row = {
            "part": kind, "what": what, "title": f"{title}, {kind}", "source_bytes": size,
            "tools": {name: measure.medians(runs) for name, runs in figures[what].items()},
            "raw": {name: [vars(run) for run in runs] for name, runs in figures[what].items()},
        }
        if what == "first":
            for name, count in stored.items():
                row["tools"][name]["stored_bytes"] = count
        yield row


def s3(chosen: argparse.Namespace, work: Path) -> Iterator[dict]:
    """The same backup to a folder and to a store that answers every request 20 ms late, and the floor there."""
    source = data.make("postgres", chosen.folder / "data", chosen.scale)
    server = subprocess.Popen(
        [EXAMPLES / "slow_s3", DrOnS3.bucket, "20"], env={**os.environ, "TMPDIR": str(work)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    try:
        # It says where it listens.
        DrOnS3.endpoint = FloorOnS3.endpoint = server.stdout.readline().strip()
        credentials = {"AWS_ACCESS_KEY_ID": "test-access", "AWS_SECRET_ACCESS_KEY": "test-secret"}
        tools = [Dr("local", work / "local", chosen.cpus), DrOnS3("s3", work / "s3", chosen.cpus, credentials), FloorOnS3("floor", work / "floor", chosen.cpus)]
        figures = {what: {tool.name: [] for tool in tools} for what in ("first", "second", "restore")}
        for number in range(chosen.runs):
            for tool in tools[number % len(tools):] + tools[:number % len(tools)]:
                tool.begin(source)
                measure.warm(source)
                figures["first"][tool.name].append(tool.back_up(source))
                figures["second"][tool.name].append(tool.back_up(source))
                into = measure.empty(work / "restored")
                figures["restore"][tool.name].append(tool.restore(into))
                shutil.rmtree(into)
                shutil.rmtree(tool.folder)
    finally:
        server.stdin.close()
        server.wait()
    for what, runs in figures.items():
        yield {
            "part": "s3", "what": what, "title": f"{what}, S3 with 20 ms a request", "source_bytes": measure.size_of(source),
            "tools": {name: measure.medians(each) for name, each in runs.items()},
            "raw": {name: [vars(run) for run in each] for name, each in runs.items()},
        }


def prune(chosen: argparse.Namespace, work: Path) -> Iterator[dict]:
    """Prune of 1,000 restore points; twice the chunks must take about twice the time."""
    tools = {}
    for chunks in (500_000, 1_000_000):
        chunks = round(chunks * chosen.scale)
        runs = []
        # Making them takes far longer than pruning them: one repository, copied for each run.
        made = Dr("made", work / "made", chosen.cpus)
        made.begin(work)
        subprocess.run([EXAMPLES / "big_repository", made.folder, "1000", str(chunks)], check=True)
        for _ in range(chosen.runs):
            tool = Dr("prune", work / "prune", chosen.cpus)
            shutil.rmtree(tool.folder, ignore_errors=True)
            shutil.copytree(made.folder, tool.folder)
            runs.append(tool.run(tool.program, "repo", "prune"))
            shutil.rmtree(tool.folder)
        shutil.rmtree(made.folder)
        tools[f"{chunks:,} chunks"] = measure.medians(runs)
    yield {"part": "prune", "what": "prune", "title": "prune, 1,000 restore points", "tools": tools}


def index(chosen: argparse.Namespace, work: Path) -> Iterator[dict]:
    """Opening the index as a backup does, by a process that does nothing else."""
    tools = {}
    program = EXAMPLES / "index_figures"
    for millions in (1, 10, 30):
        chunks = round(millions * 1_000_000 * chosen.scale)
        folder = measure.empty(work / "index")
        subprocess.run([program, folder, str(chunks)], check=True, stdout=subprocess.DEVNULL)
        runs = [
            measure.run([str(program), str(folder), "open"], chosen.cpus, {}, folder, work / "index.log")
            for _ in range(chosen.runs)
        ]
        tools[f"{chunks:,} chunks"] = {**measure.medians(runs), "stored_bytes": measure.size_of(folder)}
        shutil.rmtree(folder)
    yield {"part": "index", "what": "index", "title": "opening the index", "tools": tools}
