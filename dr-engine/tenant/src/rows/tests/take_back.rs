//! Whether what a restore wrote is still there.

use super::erp::MISTAKE;
use super::*;
use crate::undo::{self, State};

/// Dealt out to files, the rows are judged as they are in one piece: by key, without a key, gone, changed and back.
#[tokio::test]
async fn rows_changed_since_are_counted_alike_however_many_are_held_at_a_time() {
    let bench = Bench::erp().await;
    bench.keep("then_").await;
    bench.sql("live", MISTAKE).await;
    let compared = bench.restore("3").await;
    let map = bench.tenancy_map().await;
    let owner = Ownership {
        map: &map,
        tenant: &compared.set.tenant,
    };
    let saved = bench.folder.path().join("saved");
    let set = ChangeSet::read(&saved).unwrap();
    let standings = async |rows_at_a_time| {
        let mut live = session(&bench.options("live"), "live").await.unwrap();
        let standings = undo::compare_by(
            &mut live,
            &owner,
            &set,
            &saved,
            State::After,
            rows_at_a_time,
        )
        .await
        .unwrap();
        standings
            .iter()
            .map(|standing| (standing.wrong, standing.rows))
            .collect::<Vec<_>>()
    };
    let intact = standings(u64::MAX).await;
    assert!(intact.iter().all(|(wrong, _)| *wrong == 0), "{intact:?}");
    assert_eq!(standings(3).await, intact);
    let later = "update order_line set quantity = quantity + 1 where line_no = 1 and order_id in
          (select order_id from sales_order where tenant_id = 3 order by 1 limit 7);
        delete from outbox where outbox_id in (select outbox_id from outbox where tenant_id = 3 order by 1 limit 2);
        delete from setting where tenant_id = 3 and key = (select min(key) from setting where tenant_id = 3)";
    bench.sql("live", later).await;
    let whole = standings(u64::MAX).await;
    let wrong: u64 = whole.iter().map(|(wrong, _)| wrong).sum();
    assert!(wrong >= 7, "{whole:?}");
    for rows_at_a_time in [1, 3, 100] {
        assert_eq!(standings(rows_at_a_time).await, whole, "{rows_at_a_time}");
    }
    let left = std::fs::read_dir(&saved).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    let is_part = |name: &&std::ffi::OsString| name.to_string_lossy().contains('-');
    assert!(left.iter().find(is_part).is_none(), "{left:?}");
}
