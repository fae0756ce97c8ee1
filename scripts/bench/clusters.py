"""A running cluster and the programs that back it up: what the benchmarks of PostgreSQL share.

pgBackRest is Debian 13's, from a folder that debootstrap makes, beside this system and without touching it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import measure
from data import POSTGRES_BIN

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path("/var/tmp/dr-bench-tools")
DEBIAN_13 = TOOLS / "trixie"
AS_POSTGRES = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []


def install_pgbackrest() -> None:
    if not (DEBIAN_13 / "usr/bin/pgbackrest").exists():
        print("Installing Debian 13's pgBackRest into a folder, some minutes.", file=sys.stderr)
        subprocess.run(["apt-get", "install", "-y", "-qq", "debootstrap"], check=True, stdout=sys.stderr)
        subprocess.run(["debootstrap", "--variant=minbase", "--include=pgbackrest", "trixie", str(DEBIAN_13),
                        "http://deb.debian.org/debian"], check=True, stdout=sys.stderr)
    wrapper = TOOLS / "pgbackrest"
    libraries = f"{DEBIAN_13}/usr/lib/x86_64-linux-gnu"
    wrapper.write_text(f"#!/bin/sh\nexec {libraries}/ld-linux-x86-64.so.2 --library-path {libraries} "
                       f"{DEBIAN_13}/usr/bin/pgbackrest \"$@\"\n")
    wrapper.chmod(0o755)


def give(path: Path) -> None:
    """To the user that servers run as."""
    if AS_POSTGRES:
        subprocess.run(["chown", "-R", "postgres:postgres", path], check=True)


def make_for_restore(folder: Path) -> Path:
    """An empty folder that a cluster can be restored into."""
    removed(folder)
    folder.mkdir(mode=0o700)
    give(folder)
    return folder


def spread(folder: Path) -> None:
    """Has ext4 place each new folder in it anew. Else the files of one restore go to where those of the one before were just
    removed, and for five minutes each of their inodes is looked at and passed over: up to half of a program's time."""
    subprocess.run(["chattr", "+T", folder], check=False, capture_output=True)


def removed(folder: Path) -> None:
    """Removes a cluster that was just stopped: what fetched ahead for it clears away at the same time."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


class Server:
    """The benchmark's cluster, running: a copy of what `source` holds, or that itself."""

    def __init__(self, folder: Path, source: Path, port: int, options: str = "", take: bool = False):
        self.folder, self.data, self.source, self.port = folder, folder / "data", source / "cluster", port
        if take:
            self.source.rename(self.data)
        else:
            subprocess.run(["cp", "-a", self.source, self.data], check=True)
        give(folder)
        # The data comes without its WAL.
        self.run(POSTGRES_BIN / "pg_resetwal", "-f", "-D", self.data)
        # Of two equal settings the last one counts.
        options = (f"-k {folder} -p {port} -c listen_addresses= -c shared_buffers=256MB -c max_wal_size=8GB "
                   f"-c autovacuum=off -c archive_mode=off -c wal_level=replica -c wal_keep_size=4GB {options}")
        self.run(POSTGRES_BIN / "pg_ctl", "-D", self.data, "-w", "-o", options, "-l", folder / "log", "start")

    def run(self, *command: object) -> str:
        done = subprocess.run([*AS_POSTGRES, *map(str, command)], cwd=self.folder, capture_output=True, text=True,
                              env={**os.environ, "HOME": str(self.folder)})
        if done.returncode != 0:
            raise SystemExit(f"error: {' '.join(map(str, command))}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def psql(self, sql: str) -> str:
        return self.run(POSTGRES_BIN / "psql", "-X", "-q", "-A", "-t", "-h", self.folder, "-p", self.port, "-U", "postgres",
                        "-v", "ON_ERROR_STOP=1", "-c", sql)

    def pgbench(self, script: str, *options: object) -> None:
        file = self.folder / "load.sql"
        file.write_text(script)
        self.run(POSTGRES_BIN / "pgbench", "-h", self.folder, "-p", self.port, "-U", "postgres", "-n", "-f", file, *options,
                 "postgres")

    def position(self) -> str:
        return self.psql("select pg_current_wal_lsn()")

    def written_since(self, position: str) -> int:
        """Bytes of WAL."""
        return int(self.psql(f"select pg_wal_lsn_diff(pg_current_wal_lsn(), '{position}')"))

    def moment(self) -> str:
        """The time in UTC, to the microsecond."""
        return self.psql("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US')")

    def finished_segments(self) -> list[Path]:
        """The WAL so far, up to and with the segment that is begun."""
        last = self.psql("select pg_walfile_name(pg_switch_wal())")
        return sorted(path for path in (self.data / "pg_wal").iterdir() if len(path.name) == 24 and path.name <= last)

    def stop(self) -> None:
        self.run(POSTGRES_BIN / "pg_ctl", "-D", self.data, "-w", "-m", "fast", "stop")


class Tool:
    """A program under test, with a folder of its own."""

    name: str
    incremental = True

    def __init__(self, server: Server, cpus: set[int]):
        self.server, self.cpus = server, cpus
        self.folder = server.folder / self.name
        self.repository = self.folder / "repository"
        self.log = server.folder / f"{self.name}.log"

    def begin(self) -> None:
        measure.empty(self.folder)
        spread(self.folder)
        self.repository.mkdir()
        (self.folder / "log").mkdir()
        self.configure()
        give(self.folder)

    def measured(self, *command: object, heard: measure.Heard | None = None) -> measure.Figures:
        return measure.run([*AS_POSTGRES, *map(str, command)], self.cpus, self.environment(), self.server.folder, self.log, heard)

    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.folder)}

    def configure(self) -> None: ...
    def back_up(self, full: bool) -> measure.Figures: raise NotImplementedError
    def restore(self, into: Path) -> measure.Figures: raise NotImplementedError
    def push(self, segment: Path) -> measure.Figures: raise NotImplementedError
    def recover(self, into: Path, time_: str) -> measure.Figures: raise NotImplementedError


class Dr(Tool):
    name = "dr"
    # More lines of the tier, and of the workload.
    level = ""
    tenancy = ""

    def command(self, *words: object) -> list[object]:
        return [self.folder / "dr", "--config", self.folder / "dr.yaml", *words]

    def configure(self) -> None:
        self.repository.rmdir()
        shutil.copy(ROOT / "target/release/dr", self.folder / "dr")
        tiers = self.folder / "tiers"
        tiers.mkdir()
        (tiers / "gold.yaml").write_text(
            f'tier: gold\nrto: 5m\nrpo: 1h\nbackup: {{ cron: "0 0 3 * * *" }}\nretention: {{ daily: 7 }}\n{self.level}')
        (self.folder / "dr.yaml").write_text(
            "repositories:\n  main: { path: repository, key: { file: repository.key } }\n"
            "catalog: sqlite:catalog.db\ntiers: tiers\nworkloads:\n  erp:\n    tier: gold\n    repositories: [main]\n"
            f"    postgres: {{ url: \"postgres://postgres@localhost:{self.server.port}/postgres?host={self.server.folder}\", "
            f"data_directory: {self.server.data} }}\n{self.tenancy}")

    def begin(self) -> None:
        super().begin()
        self.server.run(*self.command("init"))

    def back_up(self, full: bool) -> measure.Figures:
        return self.measured(*self.command("backup", "run", "erp", *(["--full"] if full else [])))

    def restore(self, into: Path) -> measure.Figures:
        return self.measured(*self.command("restore", "erp", "--into", into, "--to", "latest"))

    def push(self, segment: Path) -> measure.Figures:
        return self.measured(*self.command("wal", "push", segment))

    def recover(self, into: Path, time_: str) -> measure.Figures:
        return self.measured(*self.command("restore", "erp", "--into", into, "--to", f"{time_}Z", "--start"))


class PgBackRest(Tool):
    name = "pgbackrest"

    def command(self, verb: str, *words: object) -> list[object]:
        return [TOOLS / "pgbackrest", f"--cmd={TOOLS / 'pgbackrest'}", "--stanza=erp", f"--repo1-path={self.repository}",
                f"--pg1-path={self.server.data}", f"--pg1-port={self.server.port}", f"--pg1-socket-path={self.server.folder}",
                "--pg1-user=postgres", f"--lock-path={self.folder}/lock", f"--log-path={self.folder}/log",
                "--log-level-console=warn", "--config=/dev/null", *words, verb]

    def begin(self) -> None:
        super().begin()
        self.server.run(*self.command("stanza-create"))

    def back_up(self, full: bool) -> measure.Figures:
        return self.measured(*self.command(
            "backup", f"--type={'full' if full else 'incr'}", "--process-max=2", "--repo1-bundle", "--repo1-block",
            "--compress-type=zst", "--compress-level=3", "--no-archive-check", "--start-fast"))

    def restore(self, into: Path) -> measure.Figures:
        # The last --pg1-path counts.
        command = [word for word in self.command("restore", "--process-max=2") if not str(word).startswith("--pg1-")]
        return self.measured(*command[:-1], f"--pg1-path={into}", command[-1])

    def push(self, segment: Path) -> measure.Figures:
        command = self.without_server(self.command("archive-push", "--compress-type=zst", "--compress-level=3"))
        return self.measured(*command, segment)

    @staticmethod
    def without_server(command: list[object]) -> list[object]:
        """Commands about WAL do not take what says where the server is."""
        return [word for word in command if not str(word).startswith(("--pg1-port", "--pg1-socket", "--pg1-user"))]

    def recovery(self, into: Path, time_: str) -> tuple[str, str]:
        """Two commands for a shell: restore; recover to a time and wait until the server takes writes."""
        command = [str(word) for word in self.command("restore", "--process-max=2") if not str(word).startswith("--pg1-")]
        get = " ".join([*command[:-2], f"--pg1-path={into}", "archive-get", "%f", "%p"])
        restore = [*command[:-1], f"--pg1-path={into}", "--type=time", f"'--target={time_.replace('T', ' ')}+00'",
                   "--target-action=promote", f"'--recovery-option=restore_command={get}'", command[-1]]
        start = (f"{POSTGRES_BIN}/pg_ctl -D {into} -w -s -t 600 -l {into}.log -o '-p {self.server.port + 1} "
                 f"-k {self.server.folder} -c listen_addresses= -c archive_mode=off -c shared_buffers=256MB' start")
        ready = (f"until [ \"$({self.psql_there()} -A -t -c 'select pg_is_in_recovery()')\" = f ]; do sleep 0.05; done")
        return " ".join(restore), f"{start} && {ready}"

    def psql_there(self) -> str:
        """psql to the recovered server."""
        return f"{POSTGRES_BIN}/psql -X -q -h {self.server.folder} -p {self.server.port + 1} -U postgres -v ON_ERROR_STOP=1"

    def recover(self, into: Path, time_: str) -> measure.Figures:
        return self.measured("sh", "-c", " && ".join(self.recovery(into, time_)))


def judge(text: str, ours: float, theirs: float, most: float) -> str:
    ratio = ours / theirs
    return f"* {text}: {ratio:.2f}, at most {most}: {'met' if ratio <= most else 'missed'}"
