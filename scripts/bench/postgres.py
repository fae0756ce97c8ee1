#!/usr/bin/env python3
"""`make bench-postgres`: base backups of a running cluster, beside pgBackRest, pg_basebackup and barman.

One cluster of the benchmark's data (`data.py`, pgbench's and ERP tables), page checksums on, running, without
archiving: each program takes the WAL of its backup or leaves it. The programs take turns; quoted are medians.

* full: everything is read and stored. dr at zstd 3 as pgBackRest, and at its own default.
* nothing changed: the next backup at once.
* 0.1 % updated: one row in a thousand of the two largest tables, scattered, then a checkpoint; the next backup.
  Repeated with other rows, each program on its own chain of backups.
* same change: at a larger size, as many rows as at the smallest; what grows with the cluster is what is left over.
* restore: of a full backup, and of the last of that chain; durable when the command ends.
* floor (`testkit/examples/floor`): the files of the full backup, by the stages alone that nothing can do without.
* push: one WAL segment of 16 MiB as archive_command does it; the floor stores it as a file.
* cost: how many transactions of pgbench (two clients, 20 s) a full backup in the meantime takes, of those that
  there are without one.
* recover: restore, and replay some 1 GB of WAL from the repository to a time, until the server takes writes.

pgBackRest is Debian 13's, from a folder that debootstrap makes: bundles and block incrementals on, two processes,
zstd 3, archive check off, not encrypted; dr encrypts always.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import data
import measure
from clusters import AS_POSTGRES, ROOT, Dr, PgBackRest, Server, Tool, install_pgbackrest, judge, make_for_restore, removed
from data import POSTGRES_BIN

PORT = 5986


def install() -> None:
    if not Path("/usr/bin/barman").exists():
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "barman"], check=True, stdout=sys.stderr)
    install_pgbackrest()


class DrLevel3(Dr):
    name = "dr zstd 3"
    level = "compression: 3\n"

    def __init__(self, server: Server, cpus: set[int]):
        super().__init__(server, cpus)
        self.folder = server.folder / "dr3"
        self.repository = self.folder / "repository"


class Floor(Tool):
    """What the same files cost at least, by the stages alone that nothing can do without, on two threads."""

    name = "floor"
    incremental = False
    program = ROOT / "target/release/examples/floor"

    def measured(self, *command: object) -> measure.Figures:
        # The files that the server's were copied from need not belong to it.
        return measure.run(list(map(str, command)), self.cpus, {}, self.server.folder, self.log)

    def back_up(self, full: bool) -> measure.Figures:
        self.repository.rmdir()
        return self.measured(self.program, "backup", self.server.source, self.repository)

    def restore(self, into: Path) -> measure.Figures:
        return self.measured(self.program, "restore", self.repository, into)

    def push(self, segment: Path) -> measure.Figures:
        alone, into = self.folder / "segment", self.folder / "pushed"
        for folder in (alone, into):
            shutil.rmtree(folder, ignore_errors=True)
        alone.mkdir()
        shutil.copy(segment, alone)
        return self.measured(self.program, "backup", alone, into)


class PgBaseBackup(Tool):
    name = "pg_basebackup"
    incremental = False

    def back_up(self, full: bool) -> measure.Figures:
        return self.measured(POSTGRES_BIN / "pg_basebackup", "-h", self.server.folder, "-p", PORT, "-U", "postgres", "-D",
                             self.repository / "backup", "-Ft", "--compress=client-zstd:3", "-X", "none", "-c", "fast")


class Barman(Tool):
    """Debian's, by pg_basebackup, its files compressed by zstd 3; it wants the WAL to be received meanwhile."""

    name = "barman"
    incremental = False

    def command(self, *words: object) -> list[object]:
        return ["/usr/bin/barman", "-q", "-c", self.folder / "barman.conf", *words]

    def configure(self) -> None:
        for name in ("conf.d", "staging"):
            (self.folder / name).mkdir()
        reach = f"host={self.server.folder} port={PORT} user=postgres"
        (self.folder / "barman.conf").write_text(
            f"[barman]\nbarman_user = {'postgres' if AS_POSTGRES else os.environ['USER']}\nbarman_home = {self.repository}\n"
            f"configuration_files_directory = {self.folder}/conf.d\nlog_file = {self.folder}/barman.log\n"
            f"[erp]\ndescription = erp\nconninfo = {reach} dbname=postgres\nstreaming_conninfo = {reach}\n"
            f"backup_method = postgres\nstreaming_archiver = on\nslot_name = barman\npath_prefix = {POSTGRES_BIN}\n"
            "immediate_checkpoint = true\nbackup_compression = zstd\nbackup_compression_level = 3\n"
            "backup_compression_format = tar\n")

    def back_up(self, full: bool) -> measure.Figures:
        self.server.run(*self.command("receive-wal", "--create-slot", "erp"))
        receiver = subprocess.Popen([*AS_POSTGRES, *map(str, self.command("receive-wal", "erp"))], cwd=self.server.folder,
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while self.server.psql("select active from pg_replication_slots where slot_name = 'barman'") != "t":
                time.sleep(0.1)
            self.server.run(*self.command("switch-wal", "--force", "--archive", "erp"))
            return self.measured(*self.command("backup", "erp"))
        finally:
            self.server.run(*self.command("receive-wal", "--stop", "erp"))
            receiver.wait()
            self.server.run(*self.command("receive-wal", "--drop-slot", "erp"))

    def restore(self, into: Path) -> measure.Figures:
        command = self.command("recover", "--get-wal", "--recovery-staging-path", self.folder / "staging", "erp", "latest", into)
        return self.measured("sh", "-c", f"{' '.join(map(str, command))} && sync -f {into}")


def update(server: Server, number: int, one_of: int) -> None:
    """Changes one row of so many, scattered."""
    server.psql(f"update pgbench_accounts set abalance = abalance + 1 where aid % {one_of} = {number}")
    server.psql(f"update sales_order set total = total + 1 where order_id % {one_of} = {number}")
    server.psql("checkpoint")


def recover(server: Server, tools: list[Tool], runs: int, figures: dict[str, list[measure.Figures]]) -> None:
    """Some 1 GB of WAL that changes rows here and there, archived by both; then restored to a time near its end."""
    for tool in tools:
        if tool.name != "dr zstd 3":
            tool.back_up(full=False)
    begin = server.position()
    load = ("\\set aid random(1, 6400000)\n"
            "update pgbench_accounts set abalance = abalance + 1 where aid between :aid and :aid + 50;\n")
    while server.written_since(begin) < 1_000_000_000:
        server.pgbench(load, "-c", 4, "-T", 5)
    moment = server.moment()
    server.psql("create table after_the_moment (id int)")
    for segment in server.finished_segments():
        for tool in tools:
            if tool.name != "dr zstd 3":
                tool.push(segment)
    for number in range(runs):
        for tool in tools[number % len(tools):] + tools[:number % len(tools)]:
            if tool.name == "dr zstd 3":
                continue
            into = make_for_restore(server.folder / "recovered")
            figures[tool.name].append(tool.recover(into, moment))
            server.run(POSTGRES_BIN / "pg_ctl", "-D", into, "-w", "-m", "immediate", "stop")
    removed(server.folder / "recovered")


def transactions(server: Server, meanwhile) -> int:
    """What pgbench gets done in 20 s, of which `meanwhile` takes a part."""
    pgbench = subprocess.Popen(
        [*AS_POSTGRES, POSTGRES_BIN / "pgbench", "-h", server.folder, "-p", str(PORT), "-U", "postgres", "-n", "-N", "-c", "2",
         "-T", "20", "postgres"], cwd=server.folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    time.sleep(1)
    meanwhile()
    if pgbench.poll() is not None:
        print("the backup took longer than pgbench", file=sys.stderr)
    told = pgbench.communicate()[0]
    return next(int(line.split()[5]) for line in told.splitlines() if line.startswith("number of transactions actually"))


def cost(server: Server, tools: list[Tool], runs: int) -> dict[str, float]:
    """Transactions lost to a full backup, medians."""
    done: dict[str, list[int]] = {"nobody": [], **{tool.name: [] for tool in tools}}
    for number in range(runs):
        meanwhiles = [("nobody", lambda: None), *((tool.name, lambda tool=tool: tool.back_up(full=True)) for tool in tools)]
        for name, meanwhile in meanwhiles[number % len(meanwhiles):] + meanwhiles[:number % len(meanwhiles)]:
            server.psql("checkpoint")
            subprocess.run(["sync"], check=True)
            done[name].append(transactions(server, meanwhile))
    print("\n### transactions of pgbench beside a full backup\n\n| | transactions in 20 s, median (min to max) | lost |\n|---|---|---|")
    undisturbed = statistics.median(done["nobody"])
    lost = {name: undisturbed - statistics.median(counts) for name, counts in done.items()}
    for name, counts in done.items():
        print(f"| {name} | {statistics.median(counts):,.0f} ({min(counts):,} to {max(counts):,}) | {lost[name]:,.0f} |")
    print(flush=True)
    return lost


def table(title: str, figures: dict[str, list[measure.Figures]], stored: dict[str, list[int]]) -> dict[str, float]:
    print(f"\n### {title}\n\n| | wall, median (min to max) | CPU | peak memory | stored |\n|---|---|---|---|---|")
    medians = {}
    for name, runs in figures.items():
        if not runs:
            continue
        told = measure.medians(runs)
        medians[name] = told["wall_s"]
        bytes_ = f"{statistics.median(stored[name]) / 1e6:,.1f} MB" if stored.get(name) else ""
        print(f"| {name} | {told['wall_s']:.2f} s ({told['wall_min_s']:.2f} to {told['wall_max_s']:.2f}) | {told['cpu_s']:.2f} s | "
              f"{told['memory_bytes'] / (1 << 20):,.0f} MiB | {bytes_} |", flush=True)
    print()
    return medians


def push(server: Server, tools: list[Tool], runs: int, figures: dict[str, list[measure.Figures]]) -> None:
    server.psql("create table filler as select g, md5(g::text) from generate_series(1, 4000000) g")
    segments = sorted(path for path in (server.data / "pg_wal").iterdir() if len(path.name) == 24)
    current = server.psql("select pg_walfile_name(pg_current_wal_lsn())")
    segments = [path for path in segments if path.name < current][-runs:]
    pushing = [tool for tool in tools if tool.name in ("dr", "pgbackrest", "floor")]
    for number, segment in enumerate(segments):
        for tool in pushing[number % len(pushing):] + pushing[:number % len(pushing)]:
            figures[tool.name].append(tool.push(segment))


def judge_push(medians: dict[str, float]) -> None:
    print(judge("push", medians["dr"], medians["pgbackrest"], 0.6))
    print(judge("push, of its floor", medians["dr"], medians["floor"], 1.15), flush=True)


def measured(chosen: argparse.Namespace, scale: float, work: Path) -> float:
    """The time of an incremental after the change that is the same at each size."""
    source = data.make("postgres", chosen.folder / "data", scale)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if AS_POSTGRES:
        shutil.chown(work, "postgres", "postgres")
    server = Server(work, source, PORT)
    size = f"{measure.size_of(server.data / 'base') / 1e9:.1f} GB"
    cpus = os.sched_getaffinity(0)
    tools = [kind(server, cpus) for kind in (Dr, DrLevel3, PgBackRest, PgBaseBackup, Barman, Floor)]
    whats = ("full", "nothing", "restore full", "updated", "same", "restore", "push", "recover")
    figures = {what: {tool.name: [] for tool in tools} for what in whats}
    stored = {what: {tool.name: [] for tool in tools} for what in whats}

    def kept(tool: Tool, what: str, run) -> None:
        before = measure.size_of(tool.repository) if tool.repository.exists() else 0
        figures[what][tool.name].append(run())
        stored[what][tool.name].append(measure.size_of(tool.repository) - before)

    medians: dict[str, dict[str, float]] = {}

    def done(what: str, title: str) -> None:
        medians[what] = table(f"{title}, {size}", figures[what], stored[what])

    try:
        if chosen.push_only:
            for tool in tools:
                tool.begin()
            push(server, tools, chosen.runs, figures["push"])
            done("push", "push of one WAL segment")
            judge_push(medians["push"])
            return 0.0
        measure.warm(server.data)
        for number in range(chosen.runs):
            for tool in tools[number % len(tools):] + tools[:number % len(tools)]:
                tool.begin()
                kept(tool, "full", lambda: tool.back_up(full=True))
                if tool.incremental:
                    kept(tool, "nothing", lambda: tool.back_up(full=False))
            print(f"{size}: full backups, run {number + 1} of {chosen.runs} done", file=sys.stderr)
        done("full", "full backup")
        done("nothing", "nothing changed")
        chained = [tool for tool in tools if tool.incremental]
        into = work / "restored"

        def restored(tool: Tool) -> measure.Figures:
            return tool.restore(make_for_restore(into))

        def restore_all(what: str, title: str) -> None:
            restoring = [*chained, *(tool for tool in tools if tool.name in ("barman", "floor"))]
            for number in range(chosen.runs):
                for tool in restoring[number % len(restoring):] + restoring[:number % len(restoring)]:
                    figures[what][tool.name].append(restored(tool))
            shutil.rmtree(into)
            done(what, title)

        restore_all("restore full", "restore of a full backup")
        if chosen.full_only:
            return 0.0
        for number in range(chosen.runs):
            update(server, number + 1, 1000)
            for tool in chained[number % len(chained):] + chained[:number % len(chained)]:
                kept(tool, "updated", lambda: tool.back_up(full=False))
        done("updated", "0.1 % of the rows updated")
        larger = scale / chosen.scale[0]
        if larger > 1:
            for number in range(chosen.runs):
                update(server, number + 501, int(1000 * larger))
                for tool in chained[number % len(chained):] + chained[:number % len(chained)]:
                    kept(tool, "same", lambda: tool.back_up(full=False))
            done("same", "the same change as at the smallest size")
        restore_all("restore", "restore of the last of that chain")
        push(server, tools, chosen.runs, figures["push"])
        done("push", "push of one WAL segment")
        lost = {}
        if scale < 2:
            lost = cost(server, chained, chosen.runs)
            recover(server, chained, chosen.runs, figures["recover"])
            done("recover", "restore and recover to a time, 1 GB of WAL")
    finally:
        server.stop()
    amounts = {what: {name: statistics.median(all_) for name, all_ in by.items() if all_} for what, by in stored.items()}
    peer, small = "pgbackrest", scale < 2
    full, kept_full = medians["full"], amounts["full"]
    print(judge("full, zstd 3", full["dr zstd 3"], full[peer], 0.9))
    print(judge("full, zstd 3, stored", kept_full["dr zstd 3"], kept_full[peer], 1.03))
    print(judge("full, default level", full["dr"], full[peer], 0.7))
    print(judge("full, default level, of its floor", full["dr"], full["floor"], 1.15))
    print(judge("full, default level, stored", kept_full["dr"], kept_full[peer], 1.06))
    print(judge("nothing changed", medians["nothing"]["dr"], medians["nothing"][peer], 0.8 if small else 0.4))
    print(judge("0.1 % updated", medians["updated"]["dr"], medians["updated"][peer], 0.7 if small else 0.4))
    print(judge("0.1 % updated, stored", amounts["updated"]["dr"], amounts["updated"][peer], 1.0))
    print(judge("restore of a full backup", medians["restore full"]["dr"], medians["restore full"][peer], 0.8))
    print(judge("restore of a full backup, of its floor", medians["restore full"]["dr"], medians["restore full"]["floor"], 1.15))
    print(judge("restore of the chain", medians["restore"]["dr"], medians["restore"][peer], 0.8))
    judge_push(medians["push"])
    if lost:
        print(judge("transactions lost, default level", lost["dr"], lost[peer], 0.9), flush=True)
    if "recover" in medians:
        print(judge("restore and recover", medians["recover"]["dr"], medians["recover"][peer], 0.95), flush=True)
    shutil.rmtree(work)
    return medians["same"]["dr"] if "same" in medians else medians["updated"]["dr"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/dr-bench"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scale", type=float, nargs="+", default=[1.0, 4.0], help="1 is about 2 GB")
    parser.add_argument("--full-only", action="store_true", help="full backups and their restores, and nothing else")
    parser.add_argument("--push-only", action="store_true", help="pushes of WAL, and nothing else")
    chosen = parser.parse_args()
    install()
    began = time.monotonic()
    found = [measured(chosen, scale, chosen.folder / "postgres-work") for scale in chosen.scale]
    if len(found) > 1:
        print(judge(f"the same change at {chosen.scale[-1] / chosen.scale[0]:g} times the size", found[-1], found[0], 1.3))
    print(f"\n{time.monotonic() - began:.0f} s in all", file=sys.stderr)


if __name__ == "__main__":
    main()
