#!/usr/bin/env python3
"""How long a commit takes until it is durable in the repository, while the WAL is received.

pgbench commits at a fixed rate; every transaction notes its place in the WAL and the server's clock. Beside it
a session asks, every few milliseconds, how far the receiver has reported its WAL as flushed. A commit
counts as durable at the first answer that reaches the *next* transaction's place: so the figures are upper
bounds, by up to the polling interval and one transaction. All times are the server's clock.

Both sides flush their disks (`fsync = on`). Ends with a table for each kind of stream: asynchronous at the default
interval, and synchronous, where the rate without and with the receiver is compared.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from data import POSTGRES_BIN

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.004
SCRIPT = (
    "\\set aid random(1, 100000)\n"
    "begin;\n"
    "update pgbench_accounts set abalance = abalance + 1 where aid = :aid;\n"
    "insert into marks (place, at) values (pg_current_wal_insert_lsn(), clock_timestamp());\n"
    "commit;\n"
)


class Server:
    """A cluster with a first backup, in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.data = folder / "data"
        self.port = 5987
        self.as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self.as_postgres:
            shutil.chown(folder, "postgres", "postgres")
        self.run(POSTGRES_BIN / "initdb", "-D", self.data, "-A", "trust", "-U", "postgres", "-k", "--locale=C", "-E", "UTF8")
        options = (
            f"-k {folder} -p {self.port} -c listen_addresses= -c shared_buffers=256MB -c max_wal_size=4GB "
            "-c archive_mode=off -c max_slot_wal_keep_size=10GB"
        )
        self.run(POSTGRES_BIN / "pg_ctl", "-D", self.data, "-w", "-o", options, "-l", folder / "log", "start")

    def run(self, *command: object, **more: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*self.as_postgres, *map(str, command)], check=True, cwd=self.folder, capture_output=True,
            text=True, env={**os.environ, "HOME": str(self.folder)}, **more,
        )

    def psql(self, sql: str) -> str:
        done = self.run(POSTGRES_BIN / "psql", "-X", "-q", "-A", "-t", "-h", self.folder, "-p", self.port,
                        "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-c", sql)
        return done.stdout.strip()

    def dr(self, *command: object) -> list[str]:
        return [*self.as_postgres, str(self.folder / "dr"), "--config", str(self.folder / "dr.yaml"), *map(str, command)]

    def protect(self, every: str) -> None:
        shutil.copy(ROOT / "target/release/dr", self.folder / "dr")
        tiers = self.folder / "tiers"
        tiers.mkdir()
        (tiers / "gold.yaml").write_text(
            'tier: gold\nrto: 5m\nrpo: 1s\nbackup: { cron: "0 0 3 * * *" }\nretention: { daily: 7 }\n')
        (self.folder / "dr.yaml").write_text(
            "repositories:\n  main: { path: repository, key: { file: repository.key } }\n"
            "catalog: sqlite:catalog.db\ntiers: tiers\nworkloads:\n  erp:\n    tier: gold\n    repositories: [main]\n"
            f"    postgres: {{ url: \"postgres://postgres@localhost:{self.port}/postgres?host={self.folder}\", "
            f"data_directory: data, stream: {{ every: {every} }} }}\n")
        if self.as_postgres:
            for path in (tiers, self.folder / "dr.yaml"):
                shutil.chown(path, "postgres", "postgres")
        for command in (("init",), ("backup", "run", "erp")):
            subprocess.run(self.dr(*command), check=True, cwd=self.folder, capture_output=True)

    def stop(self) -> None:
        self.run(POSTGRES_BIN / "pg_ctl", "-D", self.data, "-w", "-m", "fast", "stop")


def place(lsn: str) -> int:
    high, low = lsn.split("/")
    return int(high, 16) << 32 | int(low, 16)


def load(server: Server, seconds: int, rate: int | None, clients: int) -> float:
    """Runs pgbench; the transactions a second it came to."""
    script = server.folder / "script.sql"
    script.write_text(SCRIPT)
    limit = ["-R", str(rate)] if rate else []
    done = server.run(POSTGRES_BIN / "pgbench", "-h", server.folder, "-p", server.port, "-U", "postgres", "-n",
                      "-M", "prepared", "-f", script, "-c", clients, "-j", 1, "-T", seconds, *limit, "postgres")
    return float(re.search(r"tps = ([0-9.]+)", done.stdout).group(1))


def latencies(server: Server, seconds: int, rate: int) -> tuple[float, list[float]]:
    server.psql("truncate marks")
    poll = (
        f"do $$ declare last pg_lsn := '0/0'; here pg_lsn; stop_at timestamptz := clock_timestamp() + interval '{seconds + 6} s'; "
        "begin while clock_timestamp() < stop_at loop "
        "perform pg_stat_clear_snapshot(); "
        "select flush_lsn into here from pg_stat_replication where application_name = 'dr_erp'; "
        "if here > last then raise notice '% %', here, extract(epoch from clock_timestamp()); last := here; end if; "
        f"perform pg_sleep({POLL_SECONDS}); end loop; end $$"
    )
    # A file, not a pipe: a full pipe would hold up the one who measures.
    heard = server.folder / "heard"
    with heard.open("w") as output:
        watching = subprocess.Popen(
            [*server.as_postgres, str(POSTGRES_BIN / "psql"), "-X", "-q", "-h", str(server.folder), "-p", str(server.port),
             "-U", "postgres", "-c", poll],
            cwd=server.folder, stderr=output, stdout=subprocess.DEVNULL,
        )
    tps = load(server, seconds, rate, 4)
    watching.wait()
    seen = [line.split("NOTICE:")[1].split() for line in heard.read_text().splitlines() if "NOTICE:" in line]
    seen = [(place(lsn), float(at)) for lsn, at in seen]
    marks = [line.split("|") for line in
             server.psql("select place, extract(epoch from at) from marks order by place").splitlines()]
    marks = [(place(lsn), float(at)) for lsn, at in marks]
    found, where = [], 0
    for (_, at), (following, _) in zip(marks, marks[1:]):
        while where < len(seen) and seen[where][0] < following:
            where += 1
        if where == len(seen):
            raise SystemExit(f"error: {len(marks) - len(found)} commits were not seen to become durable")
        found.append(max(0.0, seen[where][1] - at))
    return tps, sorted(found)


def measured(every: str, seconds: int, rate: int, synchronous: bool) -> None:
    folder = Path(tempfile.mkdtemp(prefix="dr-stream-", dir="/var/tmp"))
    server = Server(folder)
    receiver = None
    try:
        server.run(POSTGRES_BIN / "pgbench", "-h", folder, "-p", server.port, "-U", "postgres", "-i", "-q", "-s", 1, "postgres")
        server.psql("create table marks (place pg_lsn, at timestamptz)")
        server.protect(every)
        alone = load(server, seconds, None, 8) if synchronous else None
        with (folder / "receive.log").open("w") as log:
            receiver = subprocess.Popen(server.dr("wal", "receive"), cwd=folder, stdout=log, stderr=log)
        while server.psql("select count(*) from pg_stat_replication where state = 'streaming'") != "1":
            time.sleep(0.05)
        if synchronous:
            server.psql("alter system set synchronous_standby_names = 'dr_erp'")
            server.psql("select pg_reload_conf()")
            with_it = load(server, seconds, None, 8)
            print(f"synchronous, as fast as 8 clients can: {alone:.0f} transactions a second without, {with_it:.0f} with "
                  f"({with_it / alone:.2f})")
        tps, found = latencies(server, seconds, rate)
        at = lambda share: found[min(len(found) - 1, int(len(found) * share))] * 1000
        kind = "synchronous" if synchronous else "asynchronous"
        print(f"{kind}, every {every}, {tps:.0f} transactions a second, {len(found)} commits: durable after "
              f"p50 {at(0.5):.0f} ms, p99 {at(0.99):.0f} ms, max {found[-1] * 1000:.0f} ms "
              f"(mean {statistics.fmean(found) * 1000:.0f} ms)")
    finally:
        if receiver:
            server.psql("alter system reset synchronous_standby_names")
            server.psql("select pg_reload_conf()")
            receiver.terminate()
            receiver.wait()
        server.stop()
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--rate", type=int, default=500)
    chosen = parser.parse_args()
    measured("500ms", chosen.seconds, chosen.rate, synchronous=False)
    measured("0ms", chosen.seconds, chosen.rate, synchronous=True)


if __name__ == "__main__":
    main()
