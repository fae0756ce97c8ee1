"""The programs that are compared, each driven by its command line.

All of them encrypt and compress with what they do by default, write to a local folder, and have their
own state (caches, catalogs) in a folder of their own that begins empty with the repository.

Durability is the same on all sides. restic and rustic flush every pack, borg every segment, before a
backup ends, and so does `dr`. None of the peers flushes what it restores, `dr restore` does: a peer's
restore includes flushing the file system that holds the restored folder.
"""

import os
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import measure

TOOLS = Path(os.environ.get("DR_BENCH_TOOLS", "/var/tmp/dr-bench-tools"))
SECRET = "not a secret, only as long as one"


@dataclass
class Tool:
    """A program with a repository and a place for its state below `folder`."""

    name: str
    folder: Path
    cpus: set[int]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def log(self) -> Path:
        return self.folder.parent / f"{self.name}.log"

    def begin(self, source: Path) -> None:
        """An empty repository; not measured."""
        measure.empty(self.folder)

    def back_up(self, source: Path) -> measure.Figures:
        raise NotImplementedError

    def restore(self, into: Path) -> measure.Figures:
        raise NotImplementedError

    def restored(self, source: Path, into: Path) -> Path:
        """Where the source's content lies in the restored folder."""
        return into

    def version(self) -> str:
        raise NotImplementedError

    def run(self, *command: object, folder: Path | None = None) -> measure.Figures:
        return measure.run([str(part) for part in command], self.cpus, self.environment, folder or self.folder, self.log)

    def run_then_flush(self, flushed: Path, *command: object, folder: Path | None = None) -> measure.Figures:
        line = shlex.join(map(str, command)) + " && exec sync -f " + shlex.quote(str(flushed))
        return self.run("sh", "-c", line, folder=folder)


def _first_line(*command: object) -> str:
    outcome = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    return (outcome.stdout or outcome.stderr or "?").strip().splitlines()[0]


class Dr(Tool):
    program = Path("target/release/dr").resolve()

    def begin(self, source: Path) -> None:
        super().begin(source)
        (self.folder / "tiers").mkdir()
        (self.folder / "tiers/bench.yaml").write_text(
            "tier: bench\nrto: 1h\nrpo: 1d\nbackup: { cron: \"0 0 1 * * *\" }\nretention: { daily: 7 }\n"
        )
        (self.folder / "dr.yaml").write_text(
            f"repositories:\n  main: {{ {self.place()}, key: {{ file: key }} }}\n"
            "catalog: sqlite:catalog.db\ntiers: tiers/\n"
            f"workloads:\n  data:\n    tier: bench\n    repositories: [main]\n    files: {{ path: {source} }}\n"
        )
        self.run(self.program, "init")

    def place(self) -> str:
        return "path: repository"

    def back_up(self, source: Path) -> measure.Figures:
        return self.run(self.program, "backup", "run", "data")

    def restore(self, into: Path) -> measure.Figures:
        return self.run(self.program, "restore", "data", "--into", into)

    def version(self) -> str:
        return _first_line(self.program, "version")


class DrOnS3(Dr):
    """The same, with its repository behind the S3 protocol; `endpoint` is set by who starts the server."""

    endpoint = ""
    bucket = "bench"

    def place(self) -> str:
        return f"s3: {{ bucket: {self.bucket}, prefix: r{os.urandom(4).hex()}, region: us-east-1, endpoint: \"{self.endpoint}\" }}"


class Restic(Tool):
    def begin(self, source: Path) -> None:
        super().begin(source)
        self.environment = {
            "RESTIC_PASSWORD": SECRET,
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_CACHE_DIR": str(self.folder / "cache"),
        }
        self.run("restic", "init", "-q")

    def back_up(self, source: Path) -> measure.Figures:
        return self.run("restic", "backup", "-q", ".", folder=source)

    def restore(self, into: Path) -> measure.Figures:
        return self.run_then_flush(into, "restic", "restore", "-q", "latest", "--target", into)

    def version(self) -> str:
        return _first_line("restic", "version")


class Rustic(Tool):
    program = TOOLS / "bin/rustic"

    def begin(self, source: Path) -> None:
        super().begin(source)
        self.environment = {
            "RUSTIC_PASSWORD": SECRET,
            "RUSTIC_REPOSITORY": str(self.repository),
            "RUSTIC_CACHE_DIR": str(self.folder / "cache"),
            "RUSTIC_NO_PROGRESS": "true",
            # No profile of the user's may change what is measured.
            "HOME": str(self.folder),
            "XDG_CONFIG_HOME": str(self.folder),
        }
        self.run(self.program, "init")

    def back_up(self, source: Path) -> measure.Figures:
        return self.run(self.program, "backup", ".", folder=source)

    def restore(self, into: Path) -> measure.Figures:
        return self.run_then_flush(into, self.program, "restore", "latest", into)

    def version(self) -> str:
        return _first_line(self.program, "--version")


class Borg(Tool):
    def begin(self, source: Path) -> None:
        super().begin(source)
        self.environment = {
            "BORG_PASSPHRASE": SECRET,
            "BORG_REPO": str(self.repository),
            "BORG_BASE_DIR": str(self.folder / "base"),
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        self.backups = 0
        self.run("borg", "init", "-e", "repokey-blake2")

    def back_up(self, source: Path) -> measure.Figures:
        self.backups += 1
        return self.run("borg", "create", f"::b{self.backups}", ".", folder=source)

    def restore(self, into: Path) -> measure.Figures:
        return self.run_then_flush(into, "borg", "extract", "::b1", folder=into)

    def version(self) -> str:
        return _first_line("borg", "--version")


class Floor(Tool):
    """Only the stages nothing can do without, on two threads; no index, no listing, no catalog."""

    program = Path("target/release/examples/floor").resolve()

    def back_up(self, source: Path) -> measure.Figures:
        if self.repository.exists():
            return self.run(self.program, "scan", source)
        return self.run(self.program, "backup", source, self.repository)

    def restore(self, into: Path) -> measure.Figures:
        return self.run(self.program, "restore", self.repository, into)

    def version(self) -> str:
        return "dr-engine/testkit/examples/floor"


class FloorOnS3(Floor):
    """The same, with its packs put and got by the bare client of the S3 protocol."""

    endpoint = ""

    def begin(self, source: Path) -> None:
        super().begin(source)
        self.place = f"{self.endpoint}/{DrOnS3.bucket}/f{os.urandom(4).hex()}"
        self.backed_up = False

    def back_up(self, source: Path) -> measure.Figures:
        if self.backed_up:
            return self.run(self.program, "scan", source)
        self.backed_up = True
        return self.run(self.program, "backup", source, self.place)

    def restore(self, into: Path) -> measure.Figures:
        return self.run(self.program, "restore", self.place, into)


PEERS: dict[str, type[Tool]] = {"restic": Restic, "rustic": Rustic, "borg": Borg}
