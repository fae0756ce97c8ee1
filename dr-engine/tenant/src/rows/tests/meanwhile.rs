//! What others do between the plan and the commit, and being asked to stop.

use super::erp::MISTAKE;
use super::*;

/// Four tables whose deferrable constraints span all tenants: by a key, without a key, with nulls that are
/// alike, and an exclusion.
const SHARED_KEYS: &str = "
    create table public.voucher (id int primary key, tenant_id int not null, code text not null,
      constraint voucher_code unique (code) deferrable);
    create table public.badge (tenant_id int not null, no int not null, label text,
      constraint badge_no unique (no) deferrable initially deferred);
    create table public.slot (id int primary key, tenant_id int not null, room text, hour int,
      constraint slot_room unique nulls not distinct (room, hour) deferrable);
    create table public.lease (id int primary key, tenant_id int not null, days int4range not null,
      constraint lease_days exclude using gist (days with &&) deferrable);
    insert into public.voucher select n, n % 3, 'V' || n from generate_series(1, 9) n;
    insert into public.badge select n % 3, n, 'b' from generate_series(1, 9) n;
    insert into public.slot select n, n % 3, case when n > 1 then 'R' || n end, 8 from generate_series(1, 9) n;
    insert into public.lease select n, n % 3, int4range(n * 10, n * 10 + 5) from generate_series(1, 9) n;";

/// A table, what another tenant takes, and what gives it back.
const TAKEN: [[&str; 3]; 4] = [
    [
        "voucher_code",
        "insert into public.voucher values (20, 2, 'V1')",
        "delete from public.voucher where id = 20",
    ],
    [
        "badge_no",
        "insert into public.badge values (2, 1, 'x')",
        "delete from public.badge where label = 'x'",
    ],
    [
        "slot_room",
        "insert into public.slot values (20, 2, null, 8)",
        "delete from public.slot where id = 20",
    ],
    [
        "lease_days",
        "insert into public.lease values (20, 2, int4range(13, 18))",
        "delete from public.lease where id = 20",
    ],
];

#[tokio::test]
async fn what_another_tenant_took_after_the_plan_is_named_for_every_kind_of_deferrable_constraint()
{
    let own = ["voucher", "badge", "slot", "lease"].map(|table| match table {
        "voucher" => ("public.voucher", "tenant_id = $"),
        "badge" => ("public.badge", "tenant_id = $"),
        "slot" => ("public.slot", "tenant_id = $"),
        _ => ("public.lease", "tenant_id = $"),
    });
    let bench = Bench::start(tenancy("tenant_id", &[]), &own);
    bench.sql("postgres", "create database live").await;
    bench.sql("live", SHARED_KEYS).await;
    bench.keep("then_").await;
    let mistake = "delete from public.voucher where tenant_id = 1;
        delete from public.badge where tenant_id = 1; delete from public.slot where tenant_id = 1;
        update public.lease set days = int4range(id * 10 + 200, id * 10 + 205) where tenant_id = 1";
    bench.sql("live", mistake).await;
    let (map, compared) = bench.compare("1", Mode::Replace).await;
    assert_eq!(compared.refused, Vec::<String>::new());
    for [constraint, take, give_back] in TAKEN {
        bench.sql("live", take).await;
        let before = bench.digests("live", "1", true).await;
        let error = bench
            .write(&map, &compared.set, "spool", "saved", Direction::Forward)
            .await
            .unwrap_err();
        let TenantError::CheckFailed { found, .. } = &error else {
            panic!("{constraint}: {error:?}")
        };
        assert!(
            found.iter().any(|line| line.contains(constraint)),
            "{constraint}: {found:#?}"
        );
        assert_eq!(
            bench.digests("live", "1", true).await,
            before,
            "{constraint}"
        );
        bench.sql("live", give_back).await;
    }
    bench.restore("1").await;
    let then = bench.digests("then_", "1", true).await;
    assert_eq!(bench.digests("live", "1", true).await, then);
}

/// The registry's row is locked, which keeps new rows out and no update: those are noticed.
#[tokio::test]
async fn a_held_tenant_whose_other_rows_change_after_the_plan_stops_the_restore() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench
        .sql("live", "delete from setting where tenant_id = 3")
        .await;
    let map = bench.tenancy_map().await;
    let tenant = bench.tenant("3").await;
    let late = "update item set description = 'later' where item_id = (select min(item_id) from item where tenant_id = 3)";
    for late in [Some(late), None] {
        let held = hold::begin(
            &bench.options("live"),
            &Writing::default(),
            Some((&map, &tenant)),
        )
        .await
        .unwrap();
        let (map, compared) = bench.compare("3", Mode::Replace).await;
        if let Some(late) = late {
            bench.sql("live", late).await;
        }
        let work = ("spool", "saved");
        let written = bench
            .write_held(&map, &compared.set, work, Direction::Forward, Some(held))
            .await;
        match (late, written) {
            (Some(_), Err(TenantError::Changed(lines))) => {
                assert!(
                    lines.iter().any(|line| line.contains("public.item")),
                    "{lines:?}"
                );
            }
            (None, Ok(_)) => {}
            (_, other) => panic!("{other:?}"),
        }
    }
    let then = bench.digests("then_", "3", true).await;
    assert_eq!(bench.digests("live", "3", true).await, then);
}

/// Stopped while a statement waits for somebody's lock: the statement ends at once, and nothing is left. The same
/// when it may not take longer, or wait longer.
#[tokio::test]
async fn a_restore_that_is_stopped_or_takes_too_long_ends_its_statement_and_changes_nothing() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench.sql("live", MISTAKE).await;
    let before = bench.digests("live", "3", true).await;
    let (map, compared) = bench.compare("3", Mode::Replace).await;
    let owner = Ownership {
        map: &map,
        tenant: &compared.set.tenant,
    };
    let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
    let short = Duration::from_millis(300);
    let limits = [
        (Duration::from_secs(60), Duration::from_secs(60)),
        (Duration::from_secs(60), short),
        (short, Duration::from_secs(60)),
    ];
    for (round, (lock_wait, time_max)) in limits.into_iter().enumerate() {
        let mut holder = bench.connect("live").await;
        let lock = "begin; lock table public.sales_order in access exclusive mode";
        sql::run(&mut holder, lock, "holding a table")
            .await
            .unwrap();
        let (spool, save) = (bench.folder.path().join("spool"), bench.work("saved"));
        let folders = Folders {
            spool: &spool,
            save: &save,
        };
        let (options, cancel) = (bench.options("live"), CancellationToken::new());
        let writing = Writing {
            lock_wait,
            time_max,
            refresh_views: false,
        };
        let live = Live {
            options: &options,
            cancel: &cancel,
            writing: &writing,
        };
        let stored = async |_| Ok(());
        let written = write(
            live,
            &owner,
            &compared.set,
            folders,
            Direction::Forward,
            None,
            stored,
        );
        let stop = async {
            while round == 0 && bench.value("live", waits).await == 0 {}
            if round == 0 {
                cancel.cancel();
            }
        };
        let (written, ()) = tokio::join!(written, stop);
        let error = written.unwrap_err();
        match round {
            0 => assert!(matches!(error, TenantError::Cancelled), "{error:?}"),
            1 => assert!(error.to_string().contains("within 300ms"), "{error}"),
            _ => assert!(error.hint().unwrap().contains("--lock-wait"), "{error:?}"),
        }
        assert_eq!(bench.value("live", waits).await, 0);
        holder.close().await.unwrap();
        let open = "select count(*) from pg_stat_activity where backend_xid is not null";
        assert_eq!(bench.value("live", open).await, 0);
        assert_eq!(bench.digests("live", "3", true).await, before);
    }
    bench.restore("3").await;
}

/// A large transaction outlasts checkpoints, after which the server removes WAL that nobody needs.
#[tokio::test]
async fn the_wal_of_a_restore_is_kept_until_it_was_looked_at_and_not_longer() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench.sql("live", MISTAKE).await;
    let (map, compared) = bench.compare("3", Mode::Replace).await;
    let mut committed = bench
        .write(&map, &compared.set, "spool", "saved", Direction::Forward)
        .await
        .unwrap();
    let slots = "select count(*) from pg_replication_slots";
    assert_eq!(bench.value("live", slots).await, 1);
    pass_checkpoints(&bench).await;
    bench.prove(&map, &compared.set, &committed).await;
    committed.kept = None;
    while bench.value("live", slots).await > 0 {
        tokio::task::yield_now().await;
    }
    pass_checkpoints(&bench).await;
    let data = bench.folder.path().join("data");
    let line = wal_agrees(&bench.options("live"), &data, None, &committed)
        .await
        .unwrap();
    assert_eq!(line.outcome, ProofOutcome::NotMeasured, "{line:?}");
}

async fn pass_checkpoints(bench: &Bench) {
    for _ in 0..3 {
        let fill = "select pg_logical_emit_message(false, 'test', 'x'); select pg_switch_wal()";
        bench.sql("live", fill).await;
        bench.sql("live", "checkpoint").await;
    }
}
