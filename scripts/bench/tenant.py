#!/usr/bin/env python3
"""`make bench-tenant`: one tenant of many put back, beside what people do today with pgBackRest.

The demo's ERP for 767 tenants (`data.py`, `tenants`) on a running cluster with page checksums. Both programs take a full
backup; then some 300 MB of WAL are written; then comes the moment, and after it one transaction that deletes all orders,
lines and invoices of a tenant and changes its settings, documents and some of its customers. Both archive the WAL. Two
tenants: one with 0.1 % of the rows, one with 10 %. The programs take turns; quoted are medians. Before each run the
mistake is made again, and what it left is vacuumed; after each run the tenant's rows are compared with those of the
moment, every one.

* dr: `dr tenant restore NAME --to MOMENT --yes`, from the command to the proof; clearing away what it used is shown apart.
* pgbackrest: the whole cluster restored beside the server, two processes; started and recovered to the moment; the
  tenant's rows of every table extracted by the server's own COPY; then, counted apart, loaded: in one transaction, with
  triggers and foreign keys off, the tenant's rows are deleted and the extracted ones copied in. Nothing is compared, kept
  for an undo, checked or proven. The restored server runs with 256 MB of shared buffers, as the live one, and writes its
  files durably; the scratch instance of dr has up to 512 MB and does not, since nobody keeps it.

Then dr once more for each tenant, watched and not timed: its memory and that of the PostgreSQL it starts; the locks it
holds on tables, looked at every 50 ms; and how long the transactions of all other tenants take, 250 a second. For the first
tenant also the timeline of all that WAL, with the mistake at its end.

The data of the larger size is not kept, so that the disk holds it only once: some 25 GB are in use at most.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

import data
import measure
from clusters import ROOT, TOOLS, Dr, PgBackRest, Server, Tool, give, install_pgbackrest, judge, make_for_restore, removed, spread
from data import POSTGRES_BIN
from watch import PROBES_PER_SECOND, Locks, Memory, Probes

PORT = 5976
MIB = 1 << 20
WAL_BYTES = 300_000_000
MEMORY_MAX = 256 * MIB
WAIT_MAX_SECONDS = 1.0
UNDISTURBED_SECONDS = 10
SHARES = {"small": 0.001, "large": 0.1}
SHARED_TABLES = ("country", "currency")
# What belongs to the cluster as a whole, whoever of its tenants is wanted.
OF_THE_CLUSTER = ("restore beside the server", "recover to the moment")
PARTS = ("find out what to do", *OF_THE_CLUSTER, "extract the tenant; dr compares it too", "write them", "prove",
         "clear away")
BEFORE, RESTORE, RECOVER, ROWS, WRITE, PROVE, AFTER = PARTS


@dataclass(frozen=True)
class Tenant:
    kind: str
    id: int
    code: str
    rows: int
    share: float


class Erp(Server):
    """The demo's ERP on a server, as far as it is one tenant's."""

    def __init__(self, folder: Path, source: Path, take: bool):
        super().__init__(folder, source, PORT, "-c max_wal_size=4GB -c wal_keep_size=2GB -c track_commit_timestamp=on", take)
        told = self.psql(
            "select c.relname, bool_or(a.attname = 'tenant_id'), "
            "string_agg(quote_ident(a.attname), ', ' order by a.attnum) filter (where a.attgenerated = '') "
            "from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped "
            "where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition "
            "group by 1 order by 2, 1")
        tables = [line.split("|") for line in told.splitlines()]
        # Those without the column first: they belong to the tenant through its orders.
        self.tables = {name: (has_column == "t", columns) for name, has_column, columns in tables if name not in SHARED_TABLES}

    def of(self, table: str, tenant: int, word: str = "join") -> tuple[str, str]:
        """What stands after the table, named t, and the condition."""
        if self.tables[table][0]:
            return "", f"t.tenant_id = {tenant}"
        return f"{word} sales_order o " + ("using (order_id)" if word == "join" else ""), (
            f"o.tenant_id = {tenant}" + ("" if word == "join" else " and o.order_id = t.order_id"))

    def tenants(self, kinds: list[str]) -> list[Tenant]:
        shares = [line.split("|") for line in self.psql(
            "select tenant_id, code, count(*)::float8 / sum(count(*)) over () from tenant join sales_order using (tenant_id) "
            "group by 1, 2").splitlines()]
        total = int(self.psql("select sum(reltuples)::bigint from pg_class where relnamespace = 'public'::regnamespace "
                              "and relkind = 'r'"))
        found = []
        for kind in kinds:
            id_, code, _ = min(shares, key=lambda line: abs(float(line[2]) - SHARES[kind]))
            rows = sum(int(line.split("|")[1]) for line in self.digest(int(id_)))
            found.append(Tenant(kind, int(id_), code, rows, rows / total))
        return found

    def digest(self, tenant: int) -> list[str]:
        """Of each table: its rows and a sum over all they hold."""
        queries = []
        for table in self.tables:
            more, condition = self.of(table, tenant)
            queries.append(f"select '{table}', count(*), coalesce(sum(hashtextextended(t::text, 0)), 0) "
                           f"from {table} t {more} where {condition}")
        return sorted(self.psql(" union all ".join(queries)).splitlines())

    def read_whole(self) -> dict[str, int]:
        """Rows that were read by reading tables from end to end, ever, by table."""
        told = self.psql("select relname, seq_tup_read from pg_stat_user_tables where schemaname = 'public'")
        return {name: int(rows) for name, rows in (line.split("|") for line in told.splitlines())}

    def mistake(self, tenant: Tenant) -> None:
        """The demo's: a clean-up with its condition on the wrong column. Without triggers, to be over sooner."""
        id_ = tenant.id
        self.psql(
            "begin; set local session_replication_role = replica; "
            f"update edi_document set order_id = null where tenant_id = {id_}; "
            f"delete from invoice where tenant_id = {id_}; "
            f"delete from order_line l using sales_order o where o.order_id = l.order_id and o.tenant_id = {id_}; "
            f"delete from sales_order where tenant_id = {id_}; "
            f"update customer set credit_limit = 0 where tenant_id = {id_} and customer_id % 10 = 0; "
            f"update setting set value = '{{}}' where tenant_id = {id_}; commit")

    def settle(self) -> None:
        """Room for the next versions of rows, so that no run finds larger tables than the one before."""
        self.psql("vacuum (analyze)")
        self.psql("checkpoint")

    def load(self, bytes_: int) -> None:
        """Orders of all tenants change."""
        orders = self.psql("select max(order_id) from sales_order")
        begin = self.position()
        while self.written_since(begin) < bytes_:
            self.pgbench(f"\\set order random(1, {orders})\n"
                         "update sales_order set total = total + 1 where order_id between :order and :order + 5;\n", "-T", 1)


@dataclass
class Run:
    """One restore: what the kernel says, and the seconds that each part took."""

    figures: measure.Figures
    parts: dict[str, float]
    report: dict | None = None
    # Rows of the live server that were read by reading tables from end to end.
    read_whole: dict[str, int] = field(default_factory=dict)

    def until(self, last: str) -> float:
        """From the begin to the end of a part."""
        return sum(seconds for part, seconds in self.parts.items() if PARTS.index(part) <= PARTS.index(last))

    def part_at(self, seconds: float) -> str:
        return next((part for part in self.parts if seconds <= self.until(part)), AFTER)


class TenantDr(Dr):
    tenancy = ("    tenancy:\n      column: tenant_id\n      tenants: \"select tenant_id::text as id, code as name from tenant\"\n"
               "      tables: { public.currency: shared, public.country: shared }\n")

    def configure(self) -> None:
        super().configure()
        (self.folder / "tmp").mkdir()
        spread(self.folder / "tmp")

    def environment(self) -> dict[str, str]:
        # Where the scratch instance goes.
        return {**super().environment(), "TMPDIR": str(self.folder / "tmp")}

    def bring_back(self, tenant: Tenant, moment: str, heard: measure.Heard | None = None) -> Run:
        heard = heard or measure.Heard()
        figures = self.measured(*self.command("tenant", "restore", tenant.code, "--to", f"{moment}Z", "--yes", "--json"),
                                heard=heard)
        report = json.loads(heard.out)
        committed = float(self.server.psql(
            f"select extract(epoch from pg_xact_commit_timestamp('{report['transaction']}'::xid))"))
        proven = datetime.fromisoformat(report["finished"]).timestamp()
        # The plan is printed when the comparison is over.
        begins = [first(heard, "restoring the files"), first(heard, "recovering"), first(heard, "comparing "),
                  first(heard, f"tenant {tenant.code} (id {tenant.id})"), committed, proven, heard.ended]
        ends = dict(zip(PARTS, begins))
        since, parts = heard.began, {}
        for part, end in ends.items():
            parts[part], since = end - since, end
        return Run(figures, parts, report)


class Procedure(PgBackRest):
    """What people do today, as one script; it says on stderr how far it is."""

    def bring_back(self, tenant: Tenant, moment: str) -> Run:
        into = make_for_restore(self.folder / "restored")
        extracted = make_for_restore(self.folder / "extracted")
        extract, load = self.folder / "extract.sql", self.folder / "load.sql"
        extract.write_text("\n".join(self.extraction(tenant, extracted)))
        load.write_text("\n".join(["begin;", "set local session_replication_role = replica;", *self.loading(tenant, extracted),
                                   "commit;"]))
        restore, recover = self.recovery(into, moment)
        psql = self.psql_there().replace(f"-p {self.server.port + 1}", f"-p {self.server.port}")
        steps = {RESTORE: restore, RECOVER: recover, ROWS: f"{self.psql_there()} -f {extract}", WRITE: f"{psql} -f {load}"}
        script = " && ".join(f"{{ {command}; }} && echo 'done: {part}' >&2" for part, command in steps.items())
        heard = measure.Heard()
        try:
            figures = self.measured("sh", "-c", script, heard=heard)
        finally:
            if (into / "postmaster.pid").exists():
                self.server.run(POSTGRES_BIN / "pg_ctl", "-D", into, "-w", "-m", "immediate", "stop")
        removed(into)
        removed(extracted)
        since, parts = heard.began, {}
        for part in steps:
            end = first(heard, f"done: {part}")
            parts[part], since = end - since, end
        return Run(figures, parts)

    def extraction(self, tenant: Tenant, folder: Path) -> list[str]:
        lines = []
        for table, (_, columns) in self.server.tables.items():
            more, condition = self.server.of(table, tenant.id)
            wanted = ", ".join(f"t.{column}" for column in columns.split(", "))
            lines.append(f"copy (select {wanted} from {table} t {more} where {condition}) to '{folder / table}';")
        return lines

    def loading(self, tenant: Tenant, folder: Path) -> list[str]:
        deletes, copies = [], []
        for table, (_, columns) in self.server.tables.items():
            more, condition = self.server.of(table, tenant.id, "using")
            deletes.append(f"delete from {table} t {more} where {condition};")
            copies.append(f"copy {table} ({columns}) from '{folder / table}';")
        return deletes + copies


def first(heard: measure.Heard, beginning: str) -> float:
    """When the first line that begins so was said."""
    for at, line in heard.lines:
        if line.strip().startswith(beginning):
            return at
    raise SystemExit(f"error: nothing began with `{beginning}` in:\n" + "\n".join(line for _, line in heard.lines))


def rounds(server: Erp, tools: list[Tool], tenant: Tenant, then: list[str], moment: str, runs: int, reports: Path) -> dict[str, list[Run]]:
    """The mistake has been made; each program takes it back in turn."""
    found: dict[str, list[Run]] = {tool.name: [] for tool in tools}
    for number in range(runs):
        for tool in tools[number % len(tools):] + tools[:number % len(tools)]:
            server.settle()
            before = server.read_whole()
            run = tool.bring_back(tenant, moment)
            run.read_whole = {table: rows - before[table] for table, rows in server.read_whole().items() if rows > before[table]}
            same(server, tenant, then, tool.name)
            found[tool.name].append(run)
            if run.report:
                (reports / f"{tenant.kind}-{number + 1}.json").write_text(json.dumps(run.report, indent=1))
            server.mistake(tenant)
        print(f"{tenant.kind} tenant, run {number + 1} of {runs} done: "
              + ", ".join(f"{name} {all_[-1].figures.wall_s:.1f} s" for name, all_ in found.items()), file=sys.stderr)
    return found


def same(server: Erp, tenant: Tenant, then: list[str], by: str) -> None:
    now = server.digest(tenant.id)
    if now != then:
        differing = [f"{a}, and now {b}" for a, b in zip(then, now) if a != b]
        raise SystemExit(f"error: {by} did not bring {tenant.code} back as it was: {'; '.join(differing)}")


def cells(*words: object) -> str:
    return "| " + " | ".join(map(str, words)) + " |"


def of_runs(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


def show(tenant: Tenant, size: str, found: dict[str, list[Run]]) -> dict[str, float]:
    """The tables of a tenant at a size; the medians of each part of dr."""
    ours, theirs = found["dr"], found["pgbackrest"]
    walls = {
        "dr, from the command to the proof": [run.until(PROVE) for run in ours],
        "dr, until the command ends": [run.until(AFTER) for run in ours],
        "pgbackrest, restore, recover and extract": [run.until(ROWS) for run in theirs],
        "pgbackrest, with the load": [run.until(WRITE) for run in theirs],
    }
    print(f"\n### {tenant.kind} tenant, {size}\n\n{tenant.rows:,} rows, {tenant.share:.2%} of all\n")
    print(cells("", "wall, median (min to max)"), cells("---", "---"), sep="\n")
    for name, all_ in walls.items():
        print(cells(name, of_runs(all_)))
    median = {name: statistics.median(all_) for name, all_ in walls.items()}
    own, other, loaded = (median[name] for name in walls if name != "dr, until the command ends")
    print(f"\n{cells('part, median', 'dr', 'pgbackrest')}\n{cells('---', '---', '---')}")
    parts = {part: statistics.median(run.parts[part] for run in ours) for part in PARTS}
    for part in PARTS:
        there = [run.parts[part] for run in theirs if part in run.parts]
        print(cells(part, f"{parts[part]:.2f} s", f"{statistics.median(there):.2f} s" if there else ""))
    print()
    text = f"{tenant.kind} tenant, {size}, dr to the proof of pgBackRest's restore-and-extract"
    print(judge(text, own, other, 0.9) if tenant.kind == "small" else f"* {text}: {own / other:.2f}")
    print(f"* {tenant.kind} tenant, {size}, of pgBackRest's with the load: {own / loaded:.2f}")
    whole = sum(parts[part] for part in OF_THE_CLUSTER)
    print(f"* {tenant.kind} tenant, {size}, restored and recovered whatever the tenant's size: {whole:.2f} s of dr's {own:.2f} s, "
          f"{whole / own:.0%}")
    for name, run in (("dr", ours[-1]), ("pgbackrest with its load", theirs[-1])):
        most = sorted(run.read_whole.items(), key=lambda line: -line[1])
        print(f"* tables of the live server that {name} read from end to end, rows: "
              + (", ".join(f"{table} {rows:,}" for table, rows in most) or "none"))
    for run in ours:
        for line in run.report["proof"]:
            if line["outcome"] != "agrees":
                print(f"* {line['what']}: {line['outcome']}: {line['detail']}")
    print(f"* the largest process of dr's runs, scratch PostgreSQL included: "
          f"{max(run.figures.memory_bytes for run in ours) / MIB:,.0f} MiB", flush=True)
    return parts


def watched(server: Erp, tool: TenantDr, tenant: Tenant, then: list[str], moment: str, size: str) -> None:
    """Once more, with other tenants at work."""
    server.settle()
    heard = measure.Heard()
    with Probes(server, tenant.id, data.TENANTS) as probes, Locks(server) as locks, Memory(heard) as memory:
        began = time.time()
        time.sleep(UNDISTURBED_SECONDS)
        run = tool.bring_back(tenant, moment, heard)
        ended = time.time()
    same(server, tenant, then, "dr, beside other tenants' writes,")
    begin, _ = locks.writing()
    commit = heard.began + run.until(WRITE)
    print(f"\n### others meanwhile, {tenant.kind} tenant, {size}\n")
    print(f"{PROBES_PER_SECOND} transactions a second of {data.TENANTS - 1} other tenants; the apply took {commit - begin:.2f} s\n")
    print(cells("other tenants' transactions", "how many", "p50", "p99", "longest"), cells(*["---"] * 5), sep="\n")
    longest = 0.0
    for what, since, until in (("before", began, began + UNDISTURBED_SECONDS), ("while dr runs", heard.began, heard.ended),
                               ("while it applies", begin, commit)):
        took = probes.between(since, until)
        if not took:
            raise SystemExit(f"error: no other tenant did anything {what}")
        at = lambda share: took[min(len(took) - 1, int(len(took) * share))] * 1000
        print(cells(what, f"{len(took):,}", f"{at(0.5):.1f} ms", f"{at(0.99):.1f} ms", f"{took[-1] * 1000:.0f} ms"))
        longest = took[-1]
    print(f"\n{cells('lock of dr on a table', 'longest, first to last sight', 'on')}\n{cells('---', '---', '---')}")
    for mode, tables in sorted(locks.longest().items()):
        most = max(tables, key=tables.__getitem__)
        print(cells(mode, f"{tables[most]:.2f} s on {most}", ", ".join(sorted(tables))))
    print(f"\n* longest wait of another tenant for a lock of dr's that was seen: {locks.longest_wait_s * 1000:.0f} ms")
    print(f"* longest transaction of another tenant while dr applies: {longest:.2f} s, at most {WAIT_MAX_SECONDS:g}: "
          f"{'met' if longest <= WAIT_MAX_SECONDS else 'missed'}")
    limit = f", at most {MEMORY_MAX // MIB}: {'met' if memory.own_bytes <= MEMORY_MAX else 'missed'}"
    print(f"* memory of dr itself: {memory.own_bytes / MIB:,.0f} MiB{limit if tenant.kind == 'large' else ''}; nine tenths of it were "
          f"reached in the part: {run.part_at(memory.own_at - heard.began)}")
    others = ", ".join(f"{name} {bytes_ / MIB:,.0f} MiB" for name, bytes_ in sorted(memory.other_bytes.items()))
    print(f"* the PostgreSQL it starts: {memory.scratch_private_bytes / MIB:,.0f} MiB in all processes together and "
          f"{memory.scratch_shared_bytes / MIB:,.0f} MiB shared; other programs: {others or 'none'}", flush=True)


def timeline(server: Erp, tool: TenantDr, tenant: Tenant, since: str, until: str, log_bytes: int, parts: dict[str, float],
             runs: int, size: str) -> None:
    """What touched the tenant from before the load until after the mistake."""
    server.settle()
    figures, told = [], {}
    for _ in range(runs):
        heard = measure.Heard()
        figures.append(tool.measured(*tool.command("tenant", "timeline", tenant.code, "--from", f"{since}Z", "--to", f"{until}Z",
                                                   "--json"), heard=heard))
        told = json.loads(heard.out)
    transactions = told["transactions"]
    most = max(transactions, key=lambda transaction: transaction["removed"])
    whole = sum(parts[part] for part in OF_THE_CLUSTER)
    wall = statistics.median(figure.wall_s for figure in figures)
    print(f"\n### timeline, {tenant.kind} tenant, {size}\n")
    print(f"* `dr tenant timeline` over {log_bytes / 1e6:.0f} MB of WAL: {of_runs([figure.wall_s for figure in figures])}; "
          f"{wall / whole:.2f} of the {whole:.2f} s in which a restore of the tenant restores and recovers the cluster")
    print(f"* {len(transactions):,} transactions of the tenant; the mistake is number {transactions.index(most) + 1}, with "
          f"{most['removed']:,} rows removed of {most['rows_before']:,}")
    print(f"* not attributed: {told['unattributed']['rows']:,} rows; the largest process, scratch PostgreSQL included: "
          f"{max(figure.memory_bytes for figure in figures) / MIB:,.0f} MiB", flush=True)


def measured(chosen: argparse.Namespace, scale: float, results: dict) -> tuple[str, dict[str, dict[str, float]]]:
    """All of one size; its name, and by tenant the parts of dr."""
    folder: Path = chosen.folder
    work, reports = folder / "tenant-work", folder / "tenant-reports" / f"scale-{scale:g}"
    shutil.rmtree(work, ignore_errors=True)
    measure.empty(reports)
    free, needed = shutil.disk_usage(folder).free, (6 * scale + 3) * 1e9
    if free < needed:
        raise SystemExit(f"error: scale {scale:g} needs {needed / 1e9:.0f} GB below {folder}, and {free / 1e9:.0f} are free")
    source = data.make("tenants", folder / "data", scale)
    work.mkdir(parents=True)
    give(work)
    take = scale >= 2 and not chosen.keep
    if take:
        source.with_name(source.name + ".whole").unlink()
    server = Erp(work, source, take)
    cpus = os.sched_getaffinity(0)
    ours, theirs = TenantDr(server, cpus), Procedure(server, cpus)
    tools = [ours, theirs]
    try:
        bytes_ = int(server.psql("select pg_database_size('postgres')"))
        size = f"{bytes_ / 1e9:.1f} GB" if bytes_ >= 1e9 else f"{bytes_ / 1e6:.0f} MB"
        print(f"\n## {size}\n\n{len(server.tables)} tables of {data.TENANTS} tenants, {len(SHARED_TABLES)} shared ones", flush=True)
        measure.warm(server.data)
        for tool in tools:
            tool.begin()
            tool.back_up(full=True)
        since, begin = server.moment(), server.position()
        server.load(round(WAL_BYTES * min(1, scale)))
        tenants = server.tenants(chosen.tenant)
        thens = {tenant: server.digest(tenant.id) for tenant in tenants}
        moment = server.moment()
        server.mistake(tenants[0])
        until, log_bytes = server.moment(), server.written_since(begin)
        segments = server.finished_segments()
        for segment in segments:
            for tool in tools:
                tool.push(segment)
        parts = {}
        for number, tenant in enumerate(tenants):
            if number > 0:
                server.mistake(tenant)
            found = rounds(server, tools, tenant, thens[tenant], moment, chosen.runs, reports)
            parts[tenant.kind] = show(tenant, size, found)
            results[f"{size}, {tenant.kind}"] = {
                name: [{**asdict(run.figures), "parts": run.parts, "read_whole": run.read_whole} for run in runs] for name, runs in found.items()}
            watched(server, ours, tenant, thens[tenant], moment, size)
            if number == 0:
                timeline(server, ours, tenant, since, until, log_bytes, parts[tenant.kind], chosen.runs, size)
    finally:
        server.stop()
    shutil.rmtree(work)
    if take:
        shutil.rmtree(source)
    return size, parts


def growth(found: list[tuple[str, dict[str, dict[str, float]]]]) -> None:
    """What a larger cluster costs, part by part."""
    (size, before), (larger, after) = found[0], found[-1]
    for kind in before:
        print(f"\n### {kind} tenant, dr at {size} and at {larger}\n")
        print(cells("part, median", size, larger, "more", "times"), cells(*["---"] * 5), sep="\n")
        for part in PARTS:
            a, b = before[kind][part], after[kind][part]
            print(cells(part, f"{a:.2f} s", f"{b:.2f} s", f"{b - a:.2f} s", f"{b / a:.1f}" if a > 0.01 else ""))
        more = sum(after[kind].values()) - sum(before[kind].values())
        whole = sum(after[kind][part] - before[kind][part] for part in OF_THE_CLUSTER)
        print(f"\n* {kind} tenant: of the {more:.2f} s more, {whole:.2f} s are restoring and recovering the cluster; what the other "
              "parts work on, the tenant's own rows, are as many times more as the cluster is larger", flush=True)


def versions() -> dict[str, str]:
    def said(*command: object) -> str:
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    return {"dr": said(ROOT / "target/release/dr", "version"), "pgbackrest": said(TOOLS / "pgbackrest", "version"),
            "PostgreSQL": said(POSTGRES_BIN / "postgres", "--version")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/dr-bench"))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scale", type=float, nargs="+", default=[1.0, 4.0], help="1 is about 2 GB")
    parser.add_argument("--tenant", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--keep", action="store_true", help="keep the data of the larger size too, for the next time")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    install_pgbackrest()
    began = time.monotonic()
    machine, told = measure.machine(), versions()
    command = "make bench-tenant" + (f' BENCH="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else "")
    print(f"{datetime.now():%Y-%m-%d}, {machine['processor']}, {machine['processors']} processors, {machine['memory_gib']} GiB of "
          f"memory, {machine['system']}. Commit {machine['commit']}. {chosen.runs} runs each, in turn; warm page cache. Load of the "
          f"machine {machine['load_at_start']:.1f} at the start.\n\nCommand: `{command}`\n")
    for name, version in told.items():
        print(f"* {name}: {version}")
    results: dict = {"machine": machine, "versions": told, "command": command}
    found = [measured(chosen, scale, results) for scale in chosen.scale]
    if len(found) > 1:
        growth(found)
    (chosen.folder / "tenant-results.json").write_text(json.dumps(results, indent=1))
    print(f"\n{time.monotonic() - began:.0f} s in all; single runs: {chosen.folder / 'tenant-results.json'}", file=sys.stderr)


if __name__ == "__main__":
    main()
