# Two commands for a newcomer: `make demo` and `make test`. CI runs the second and nothing else.

CARGO ?= cargo
DEMO_DIR ?= /var/tmp/dr-demo

FUZZ_SECONDS ?= 60

.PHONY: demo test test-long test-s3 test-matrix test-public-schemas servers demo-servers fmt lint unit release-is-clean clean-demo fuzz bench bench-quick bench-memory bench-postgres bench-tenant bench-stream

demo: demo-servers
	$(CARGO) build --release --locked -p dr
	target/release/dr demo --dir $(DEMO_DIR)

clean-demo:
	target/release/dr demo --dir $(DEMO_DIR) --clean

test: servers fmt lint unit release-is-clean

# The store's tests against a real S3 server with versions and Object Lock: Ceph from Debian, started in
# a temporary folder on loopback as root, and removed again. Takes a few minutes.
test-s3:
	@sh scripts/install-ceph.sh
	$(CARGO) test -p dr-store --locked --no-run
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		scripts/with-ceph.sh $(CARGO) nextest run -p dr-store --locked --no-fail-fast \
			--test backend_contract --test object_lock --test s3_faults --test faulty; \
	else \
		scripts/with-ceph.sh $(CARGO) test -p dr-store --locked --no-fail-fast \
			--test backend_contract --test object_lock --test s3_faults --test faulty; \
	fi

# What reads PostgreSQL's own bytes, on every version that is supported: 14 to 18. Some minutes.
test-matrix: servers
	@sh scripts/test-matrix.sh

# One tenant restored in databases that other people designed, fetched from Debian and npm. Some minutes.
PUBLIC_SCHEMAS ?= target/public-schemas
test-public-schemas: servers
	@sh scripts/public-schemas.sh $(PUBLIC_SCHEMAS)
	DR_PUBLIC_SCHEMAS=$(abspath $(PUBLIC_SCHEMAS)) $(CARGO) test -p dr --locked --test e2e public_schemas:: -- \
		--test-threads 2 --nocapture

# PostgreSQL and NATS from Debian, for the tests also two packages of Python; asks before nothing, says
# what it installs and why.
servers:
	@sh scripts/install-servers.sh

demo-servers:
	@sh scripts/install-servers.sh demo

fmt:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

# The long variants too: 500 random schemas, a hundred kills, an outage of ten minutes; some two hours.
test-long: servers
	@DR_TEST_LONG=1 $(MAKE) unit

# nextest where it is installed (a process for each test), else cargo's own runner.
unit:
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		$(CARGO) nextest run --workspace --locked --no-fail-fast; \
	else \
		$(CARGO) test --workspace --locked --no-fail-fast; \
	fi

# Test hooks must not be in what people run: built without the test kit, the program says so.
release-is-clean:
	$(CARGO) build --locked -p dr
	@target/debug/dr version --json | grep -q '"testing": false' \
		|| { echo "error: the dr binary was built with test hooks"; exit 1; }

# Every decoder of stored bytes, FUZZ_SECONDS each, under libFuzzer. Not part of `make test`, where the
# same decoders run on some thousand inputs (dr-engine/store/src/fuzzing.rs).
fuzz:
	@sh scripts/fuzz.sh $(FUZZ_SECONDS)

# dr beside restic, borg and rustic, about an hour; see docs/PERFORMANCE.md. BENCH passes options on.
bench: servers
	python3 scripts/bench/bench.py $(BENCH)

bench-quick: servers
	python3 scripts/bench/bench.py --quick $(BENCH)

# The memory of a 10 GiB backup and its restore, under `/usr/bin/time -v`.
bench-memory:
	python3 scripts/bench/memory.py $(BENCH)

# Base backups of a running cluster of 2 and of 8 GB beside pgBackRest, pg_basebackup and barman; some fifty minutes.
bench-postgres: servers
	$(CARGO) build --release --locked -p dr
	$(CARGO) build --release --locked -p dr-testkit -p dr-store --features dr-store/testing --example floor
	python3 scripts/bench/postgres.py $(BENCH)

# One tenant put back, small and large, of a cluster of 2 and of 8 GB, beside a full restore by pgBackRest, extract and load.
bench-tenant: servers
	$(CARGO) build --release --locked -p dr
	python3 scripts/bench/tenant.py $(BENCH)

# How long a commit takes until it is in the repository, while the WAL is received.
bench-stream: servers
	cargo build --release --locked -p dr
	python3 scripts/bench/stream.py $(BENCH)
