"""What a restore of one tenant does to everybody else, and what it takes: other tenants' writes, locks, memory.

Each of the three is a context around the restore. They cost processor time themselves, so that runs that are
watched are not the ones that are timed.
"""

import os
import signal
import subprocess
import threading
import time
from collections import defaultdict
from pathlib import Path

import measure
from clusters import Server
from data import POSTGRES_BIN

LOOK_EVERY_SECONDS = 0.05
PROBES = 4
PROBES_PER_SECOND = 250
SAMPLER = "bench-locks"


class Probes:
    """Other tenants, all of them at random, at work: in each transaction a new order with a line and its event, a
    setting, and a change of an old order. pgbench notes how long each transaction took."""

    def __init__(self, server: Server, tenant: int, tenants: int):
        self.server, self.tenant, self.tenants = server, tenant, tenants
        # (begin, end), of the system's clock.
        self.transactions: list[tuple[float, float]] = []

    def __enter__(self) -> "Probes":
        script = self.server.folder / "probe.sql"
        script.write_text(
            f"\\set any random(1, {self.tenants - 1})\n"
            f"\\set tenant case when :any >= {self.tenant} then :any + 1 else :any end\n"
            "\\set value random(1, 1000000)\n"
            "begin;\n"
            "insert into sales_order (tenant_id, order_no, note) values (:tenant, gen_random_uuid()::text, 'probe');\n"
            "insert into order_line (order_id, line_no, quantity, unit_price) "
            "values (currval('sales_order_order_id_seq'), 1, 1, 10);\n"
            "update setting set value = jsonb_build_object('probe', :value) where tenant_id = :tenant and key = 'branding';\n"
            "update sales_order set note = 'probe' where tenant_id = :tenant and order_no = 'SO-0000001';\n"
            "commit;\n")
        self.prefix = self.server.folder / "probes"
        # Ended by the signal of its own clock, after which it finishes what it began and writes its notes out.
        self.pgbench = subprocess.Popen(
            [POSTGRES_BIN / "pgbench", "-h", self.server.folder, "-p", str(self.server.port), "-U", "postgres", "-n", "-f",
             script, "-c", str(PROBES), "-j", "1", "-R", str(PROBES_PER_SECOND), "-T", "36000", "-l", "--log-prefix",
             self.prefix, "postgres"],
            stdout=subprocess.DEVNULL, stderr=(self.server.folder / "probes.err").open("w"))
        return self

    def __exit__(self, *_: object) -> None:
        self.pgbench.send_signal(signal.SIGALRM)
        if self.pgbench.wait() != 0:
            raise SystemExit(f"error: the probes failed; see {self.server.folder / 'probes.err'}")
        notes = Path(f"{self.prefix}.{self.pgbench.pid}")
        for line in notes.read_text().splitlines():
            _, _, took, _, second, microsecond, late = line.split()[:7]
            end = int(second) + int(microsecond) / 1e6
            # How late it began is not its own time.
            self.transactions.append((end - (int(took) - int(late)) / 1e6, end))
        notes.unlink()

    def between(self, begin: float, end: float) -> list[float]:
        """How long those took that were under way then, in order."""
        return sorted(to - since for since, to in self.transactions if to >= begin and since <= end)


class Locks:
    """Locks on tables that sessions of `dr` hold, and how long probes wait for them, looked at every 50 ms."""

    def __init__(self, server: Server):
        self.server = server
        # (first sight, last sight) by begin of the transaction, table and mode.
        self.held: dict[tuple[float, str, str], tuple[float, float]] = {}
        self.longest_wait_s = 0.0

    def __enter__(self) -> "Locks":
        loop = (
            "do $$ declare line text; begin loop perform pg_stat_clear_snapshot(); for line in "
            "select concat_ws('|', 'held', extract(epoch from a.xact_start), c.relname, l.mode) from pg_stat_activity a "
            "join pg_locks l on l.pid = a.pid and l.granted and l.locktype = 'relation' "
            "join pg_class c on c.oid = l.relation and c.relkind in ('r', 'p') and c.relnamespace = 'public'::regnamespace "
            "where a.application_name = 'dr' and a.xact_start is not null "
            "union all select concat_ws('|', 'waits', extract(epoch from clock_timestamp() - a.query_start)) "
            "from pg_stat_activity a where a.application_name = 'pgbench' and case when a.wait_event_type = 'Lock' then "
            "pg_blocking_pids(a.pid) && array(select d.pid from pg_stat_activity d where d.application_name = 'dr') end "
            "loop raise notice '%|%', extract(epoch from clock_timestamp()), line; end loop; "
            f"perform pg_sleep({LOOK_EVERY_SECONDS}); end loop; end $$")
        self.seen = self.server.folder / "locks.seen"
        with self.seen.open("w") as seen:
            self.psql = subprocess.Popen(
                [POSTGRES_BIN / "psql", "-X", "-q", "-h", self.server.folder, "-p", str(self.server.port), "-U", "postgres",
                 "-c", loop, "postgres"],
                env={**os.environ, "PGAPPNAME": SAMPLER}, stdout=subprocess.DEVNULL, stderr=seen)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.psql(f"select pg_terminate_backend(pid) from pg_stat_activity where application_name = '{SAMPLER}'")
        self.psql.wait()
        lines = self.seen.read_text().splitlines()
        # It ends by being terminated, and not before.
        if not any("terminating connection" in line for line in lines):
            raise SystemExit(f"error: the locks could not be watched; see {self.seen}")
        for line in lines:
            at, *what = line.removeprefix("NOTICE:").strip().split("|")
            match what:
                case ["held", begun, table, mode]:
                    key = (float(begun), table, mode)
                    self.held[key] = (self.held.get(key, (float(at),))[0], float(at))
                case ["waits", seconds]:
                    self.longest_wait_s = max(self.longest_wait_s, float(seconds))

    def writing(self) -> tuple[float, float]:
        """Begin and last sight of the transaction that wrote."""
        wrote = [(key[0], last) for key, (_, last) in self.held.items() if key[2] == "RowExclusiveLock"]
        if not wrote:
            raise SystemExit("error: no transaction of dr was seen to write")
        return max(wrote)

    def longest(self) -> dict[str, dict[str, float]]:
        """By mode and table the longest time from first to last sight in one transaction."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for (_, table, mode), (first, last) in self.held.items():
            found[mode][table] = max(found[mode].get(table, 0.0), last - first)
        return found


class Memory:
    """The memory of `dr` and of the PostgreSQL that it starts, apart."""

    def __init__(self, heard: measure.Heard):
        self.heard = heard
        self.own_bytes = 0
        # When it had come up to nine tenths of that, of the system's clock.
        self.own_at = 0.0
        self.own_seen: list[tuple[float, int]] = []
        self.scratch_private_bytes = 0
        self.scratch_shared_bytes = 0
        self.other_bytes: dict[str, int] = {}
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look)

    def __enter__(self) -> "Memory":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        self.own_at = next((at for at, bytes_ in self.own_seen if bytes_ >= 0.9 * self.own_bytes), 0.0)

    def look(self) -> None:
        while not self.over.wait(LOOK_EVERY_SECONDS):
            if self.heard.pid:
                self.take()

    def take(self) -> None:
        private = shared = 0
        for pid, name in descendants(self.heard.pid):
            try:
                told = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                kib = {word: int(told[word].split()[0]) * 1024 for word in ("VmHWM", "RssAnon", "RssShmem")}
            except (OSError, KeyError, ValueError):
                # It ended meanwhile.
                continue
            match name:
                case "dr":
                    # The kernel's own account of the most so far.
                    self.own_bytes = max(self.own_bytes, kib["VmHWM"])
                    self.own_seen.append((time.time(), kib["VmHWM"]))
                case "postgres":
                    private += kib["RssAnon"]
                    shared = max(shared, kib["RssShmem"])
                case _:
                    self.other_bytes[name] = max(self.other_bytes.get(name, 0), kib["VmHWM"])
        self.scratch_private_bytes = max(self.scratch_private_bytes, private)
        self.scratch_shared_bytes = max(self.scratch_shared_bytes, shared)


def descendants(root: int) -> list[tuple[int, str]]:
    """A process and all below it, with their names."""
    children: dict[int, list[int]] = defaultdict(list)
    names: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            text = Path(f"/proc/{entry}/stat").read_text()
        except OSError:
            continue
        begin, end = text.index("("), text.rindex(")")
        pid = int(entry)
        names[pid] = text[begin + 1:end]
        children[int(text[end + 2:].split()[1])].append(pid)
    found, left = [], [root]
    while left:
        pid = left.pop()
        if pid in names:
            found.append((pid, names[pid]))
        left += children[pid]
    return found
