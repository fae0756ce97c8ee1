//! Whether a server may be asked what became of a transaction: only one in whose history it was.

use std::fs;

use dr_model::{RestorePointId, SystemId, Target, Timeline};

use super::*;
use crate::Purpose;
use crate::outcome::{Unasked, WalPlace, known_here, wal_place};
use crate::record::Record;

/// A transaction that was committed, with where the WAL stood just before.
async fn transaction(bench: &Bench, table: &str) -> (u64, WalPlace) {
    let mut session = bench.connect("postgres").await;
    let begin = format!("begin; create table {table} ()");
    sql::run(&mut session, &begin, "beginning").await.unwrap();
    let query = "select pg_current_xact_id()::text";
    let xid: String = sql::value(&mut session, query, "asking").await.unwrap();
    let mut other = bench.connect("postgres").await;
    let place = wal_place(&mut other).await.unwrap();
    sql::run(&mut session, "commit", "committing")
        .await
        .unwrap();
    (xid.parse().unwrap(), place)
}

async fn record(bench: &Bench, xid: u64, wal: Option<WalPlace>) -> Record {
    let now = Utc::now();
    let workload: WorkloadName = "erp".parse().unwrap();
    let mut session = bench.connect("postgres").await;
    let identity = dr_sources::postgres::identify(&mut session).await.unwrap();
    Record {
        version: Record::VERSION,
        id: TenantRestoreId::new(now),
        workload: workload.clone(),
        tenant: bench.tenant("1").await,
        mode: Mode::Replace,
        purpose: Purpose::Restore {
            target: Target::Latest,
            lsn: None,
            last_commit_time: None,
            note: None,
        },
        filter: Filter::default(),
        started: now,
        system_id: identity.system_id,
        transaction: Some(xid.to_string()),
        wal,
        point: RestorePointId::new(&workload, now),
    }
}

impl Bench {
    /// The cluster comes out of a recovery that found no more WAL: a new timeline of it.
    fn recover(&mut self) {
        let stop = dr_sources::instance::StopMode::Fast;
        self.server.take().unwrap().stop(stop).unwrap();
        let run_as = RunAs::for_postgres().unwrap();
        let data = self.folder.path().join("data");
        let signal = data.join("recovery.signal");
        fs::write(&signal, "").unwrap();
        give(&signal, run_as.as_ref()).unwrap();
        let bin = dr_sources::postgres::tools::bin_directory(None, 15).unwrap();
        let mut options = StartOptions::new(&bin, &data, run_as, free_port());
        let settings = [("fsync", "off"), ("restore_command", "false")];
        options.settings = settings.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec();
        options.wait_for = dr_sources::instance::WaitFor::ReadWrite;
        self.server = Some(PostgresInstance::start(options).unwrap());
    }
}

#[tokio::test]
async fn only_a_server_that_saw_a_transaction_is_asked_about_it() {
    let mut bench = Bench::start(tenancy("tenant_id", &[]), &[]);
    let (xid, place) = transaction(&bench, "one").await;
    let own = record(&bench, xid, Some(place)).await;
    let live = bench.options("postgres");
    assert_eq!(known_here(&live, &own).await, Ok(xid));
    assert_eq!(outcome_now(&live, xid).await.as_deref(), Some("committed"));

    let mut others = own.clone();
    others.system_id = SystemId(7);
    assert!(matches!(
        known_here(&live, &others).await,
        Err(Unasked::OtherCluster { .. })
    ));
    let earlier = record(&bench, xid, None).await;
    assert_eq!(known_here(&live, &earlier).await, Err(Unasked::NoPlace));

    // Restored, and this transaction was before the target.
    bench.recover();
    let live = bench.options("postgres");
    let mut session = bench.connect("postgres").await;
    assert_eq!(wal_place(&mut session).await.unwrap().timeline, Timeline(2));
    assert_eq!(known_here(&live, &own).await, Ok(xid));
    assert_eq!(outcome_now(&live, xid).await.as_deref(), Some("committed"));

    // Another transaction got the number of one that was behind the target: the server would say that it was
    // committed.
    let (reused, _) = transaction(&bench, "two").await;
    let behind = WalPlace {
        lsn: Lsn(place.lsn.0 + (1 << 30)),
        ..place
    };
    let lost = record(&bench, reused, Some(behind)).await;
    let said = outcome_now(&live, reused).await;
    assert_eq!(said.as_deref(), Some("committed"));
    let unasked = known_here(&live, &lost).await.unwrap_err();
    assert!(matches!(unasked, Unasked::OtherHistory { .. }), "{unasked}");
    assert!(unasked.to_string().contains("restored or promoted"));
}
