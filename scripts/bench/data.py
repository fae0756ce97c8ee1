"""Makes the data of the benchmark, the same on every run.

`postgres` is the data directory of a cluster that was shut down cleanly: pgbench's tables (which
compress well) and text-rich ERP tables (which compress as business data does), 2 GiB together.
`tenants` is one with the demo's ERP (`dr-engine/demo/src/erp`), 2 GB of it for some hundred tenants.
`documents` is 1 GiB of mixed documents in some hundred files and 100,000 small files: text, tables,
XML, archives and pictures that do not compress, copies, and later versions of earlier files.

Rows and files are functions of a fixed seed. A cluster differs from another in its system
identifier and its clock only.
"""

import os
import random
import shutil
import subprocess
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
POSTGRES_BIN = Path("/usr/lib/postgresql/15/bin")
PSQL = [POSTGRES_BIN / "psql", "-X", "-U", "postgres", "-q", "-v", "ON_ERROR_STOP=1"]
SEED = 20250101

PGBENCH_SCALE = 64
ERP_ORDERS = 820_000
# The demo's sizes of tenants fall as rank^-0.9: of so many the largest has 10 % of everything.
TENANTS = 767
TENANT_ROWS = {"orders": 1_450_000, "customers": 200_000, "items": 150_000, "documents": 90_000, "shipments": 0}
DOCUMENT_BYTES = 1 << 30
SMALL_FILES = 100_000


def make(kind: str, folder: Path, scale: float = 1.0) -> Path:
    """Makes `kind` under `folder` unless it is there whole; returns its place."""
    target = folder / (kind if scale == 1.0 else f"{kind}-{scale:g}")
    done = target.with_name(target.name + ".whole")
    if done.exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    {"postgres": postgres, "tenants": tenants, "documents": documents}[kind](target, scale)
    subprocess.run(["sync", "-f", str(target)], check=True)
    done.touch()
    return target


def postgres(target: Path, scale: float) -> None:
    """pgbench's tables and the ERP's."""
    def fill(run) -> None:
        pgbench = [POSTGRES_BIN / "pgbench", "-U", "postgres"]
        run(*pgbench, "-i", "-q", "-s", max(1, round(PGBENCH_SCALE * scale)))
        # Pages that were written to, not only loaded.
        run(*pgbench, "-n", "-c", 1, "-t", round(20_000 * scale), f"--random-seed={SEED}")
        run(*PSQL, "-v", f"rows={round(ERP_ORDERS * scale)}", script=(HERE / "erp.sql").read_bytes())
        run(*PSQL, "-c", "vacuum (freeze)", "-c", "checkpoint")

    cluster(target, fill)


def tenants(target: Path, scale: float) -> None:
    """The demo's ERP for many tenants, by the demo's own scripts."""
    demo = HERE.parents[1] / "dr-engine/demo/src/erp"
    amounts = " ".join(f"when '{name}' then {round(rows * scale)}" for name, rows in TENANT_ROWS.items())
    codes = ", ".join(f"'T{number:04}'" for number in range(1, TENANTS + 1))
    # What the scripts draw their values from (`dr-engine/demo/src/erp.rs`).
    generator = (
        "create function pg_temp.pick(stream bigint, n bigint, m bigint) returns bigint language sql immutable as "
        f"'select (hashint8extended(n, {SEED} * 1000::bigint + stream) & 9223372036854775807) % m';\n"
        f"create function pg_temp.codes() returns text[] language sql immutable as $$ select array[{codes}] $$;\n"
        "create function pg_temp.parameter(name text) returns bigint language sql immutable as "
        f"$$ select case name when 'seed' then {SEED} {amounts} end::bigint $$;\n"
    )
    settings = ("begin; set local search_path = public, pg_catalog; set local timezone = 'UTC'; "
                "set local work_mem = '256MB';\n")
    schema, rows, constraints = ((demo / f"{name}.sql").read_text() for name in ("schema", "data", "constraints"))
    script = "\n".join([settings, schema, generator, rows, constraints, "commit;"])

    def fill(run) -> None:
        run(*PSQL, script=script.encode())
        run(*PSQL, "-c", "vacuum (freeze, analyze)", "-c", "checkpoint")

    cluster(target, fill)


def cluster(target: Path, fill) -> None:
    """A cluster, filled and shut down; then its files belong to who runs the benchmark."""
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    socket = target / "socket"
    cluster = target / "cluster"
    for path in (socket, cluster):
        path.mkdir()
        if as_postgres:
            shutil.chown(path, "postgres", "postgres")

    def run(*command: object, script: bytes | None = None) -> None:
        environment = {**os.environ, "PGHOST": str(socket), "PGPORT": "5999", "PGDATABASE": "postgres"}
        environment.pop("PGUSER", None)
        with (target.with_name(target.name + ".log")).open("a") as log:
            subprocess.run(
                [*as_postgres, *map(str, command)],
                check=True, cwd=cluster, env=environment, stdout=log, stderr=log,
                input=script,
            )

    run(POSTGRES_BIN / "initdb", "-D", cluster, "-A", "trust", "-E", "UTF8", "--locale=C", "-k")
    options = (
        f"-k {socket} -p 5999 -c listen_addresses= -c fsync=off -c autovacuum=off "
        "-c max_wal_size=256MB -c min_wal_size=64MB -c wal_level=minimal -c max_wal_senders=0 "
        "-c archive_mode=off -c maintenance_work_mem=256MB -c max_parallel_workers=0"
    )
    run(POSTGRES_BIN / "pg_ctl", "-D", cluster, "-w", "-o", options, "-l", cluster / "log", "start")
    try:
        fill(run)
    finally:
        run(POSTGRES_BIN / "pg_ctl", "-D", cluster, "-w", "-m", "fast", "stop")
    (cluster / "log").unlink()
    socket.rmdir()
    # The write-ahead log is backed up by other means.
    for segment in (cluster / "pg_wal").glob("0*"):
        segment.unlink()
    for path in [cluster, *cluster.rglob("*")]:
        os.chown(path, os.geteuid(), os.getegid())


class Words:
    """Text as people write it: few words often, many seldom."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        letters = "etaoinshrdlucmfwypvbgk"
        weights = [12, 9, 8, 8, 7, 7, 6, 6, 6, 4, 4, 3, 3, 2, 2, 2, 2, 2, 1, 1, 1, 1]
        self.words = ["".join(rng.choices(letters, weights, k=rng.randint(2, 10))) for _ in range(8000)]
        total = 0.0
        self.cumulative = [total := total + 1 / (rank + 3) for rank in range(len(self.words))]

    def text(self, size: int) -> bytes:
        words = self.rng.choices(self.words, cum_weights=self.cumulative, k=size // 6 + 12)
        lines = (" ".join(words[at:at + 12]) for at in range(0, len(words), 12))
        return ".\n".join(lines).encode()[:size]

    def csv(self, size: int) -> bytes:
        rng, rows, length = self.rng, [], 0
        names = self.rng.choices(self.words, cum_weights=self.cumulative, k=size // 40 + 2)
        for number, name in enumerate(names):
            draw = rng.getrandbits(64)
            row = f"{number};2025-{draw % 12 + 1:02}-{draw % 28 + 1:02};{name};{draw >> 44};{(draw >> 20) % 99999 / 100:.2f}"
            length += len(row) + 1
            rows.append(row)
            if length >= size:
                break
        return "\n".join(rows).encode()[:size]

    def xml(self, size: int) -> bytes:
        rng, parts, length = self.rng, ["<?xml version='1.0'?><orders>"], 0
        names = self.rng.choices(self.words, cum_weights=self.cumulative, k=size // 60 + 2)
        for number, name in enumerate(names):
            draw = rng.getrandbits(48)
            part = f"<order number='{number}'><item>{name}</item><amount>{draw % 10_000_000 / 100:.2f}</amount></order>\n"
            length += len(part)
            parts.append(part)
            if length >= size:
                break
        return "".join(parts).encode()[:size]

    def archive(self, size: int) -> bytes:
        """Something with text inside that was compressed already: an office file, a PDF."""
        head = b"%PDF-1.7\n" + self.text(min(size // 20, 20_000))
        body = zlib.compress(self.text(min(2 * size, 256_000)), 1)
        return (head + body + self.rng.randbytes(max(0, size - len(head) - len(body))))[:size]

    def picture(self, size: int) -> bytes:
        return b"\xff\xd8\xff\xe0" + self.rng.randbytes(size)


def documents(target: Path, scale: float) -> None:
    rng = random.Random(SEED)
    words = Words(rng)
    kinds = [(words.text, "txt", 22), (words.csv, "csv", 14), (words.xml, "xml", 12),
             (words.archive, "pdf", 28), (words.picture, "jpg", 14)]
    makers = [(maker, ending) for maker, ending, _ in kinds]
    weights = [weight for *_, weight in kinds]

    def content(size: int, earlier: list[bytes]) -> tuple[bytes, str]:
        if earlier and (draw := rng.random()) < 0.1:
            old = rng.choice(earlier)
            if draw < 0.06:
                return old, "copy"
            at = rng.randrange(len(old))
            return old[:at] + words.text(200) + old[at:], "later"
        maker, ending = rng.choices(makers, weights)[0]
        return maker(size), ending

    def remember(earlier: list[bytes], data: bytes) -> None:
        if len(earlier) < 24:
            earlier.append(data)
        else:
            earlier[rng.randrange(24)] = data

    written, number, earlier = 0, 0, []
    while written < DOCUMENT_BYTES * scale:
        data, ending = content(round(min(40e6, rng.lognormvariate(14.2, 1.3))), earlier)
        folder = target / "documents" / f"{number % 20:02}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05}.{ending}").write_bytes(data)
        remember(earlier, data)
        written += len(data)
        number += 1

    earlier = []
    for number in range(round(SMALL_FILES * scale)):
        folder = target / "small" / f"{number % 250:03}" / f"{number // 250 % 8}"
        if number < 2000:
            folder.mkdir(parents=True, exist_ok=True)
        data, ending = content(round(min(60e3, 40 + rng.lognormvariate(7.8, 1.1))), earlier)
        (folder / f"{number:06}.{ending}").write_bytes(data)
        remember(earlier, data)
