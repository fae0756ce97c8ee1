//! Replication slots: made, used, dropped.

use dr_model::Timeline;
use dr_replication::{ReplicationError, SlotCreated};

use crate::cluster::{Server, text};

const FIRST: Timeline = Timeline(1);
const SLOT: &str = "select concat_ws(' ', slot_name, slot_type, restart_lsn is not null)
    from pg_replication_slots";

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_made_used_and_dropped() {
    let server = Server::start(&[]);
    let mut receiver = server.receiver().await;
    let from = receiver.identify_system().await.unwrap().xlogpos;

    let absent = receiver
        .start_physical(Some("dr"), from, FIRST)
        .await
        .unwrap_err();
    assert!(absent.is_slot_absent(), "{absent:?}");
    let absent = receiver.drop_slot("dr").await.unwrap_err();
    assert!(absent.is_slot_absent(), "{absent:?}");

    assert_eq!(receiver.create_slot("dr").await.unwrap(), SlotCreated::New);
    assert_eq!(
        receiver.create_slot("dr").await.unwrap(),
        SlotCreated::Existed
    );
    assert_eq!(text(&server.instance, SLOT).await.unwrap(), "dr physical t");

    let mut other = server.receiver().await;
    let stream = receiver
        .start_physical(Some("dr"), from, FIRST)
        .await
        .unwrap();
    let used = other
        .start_physical(Some("dr"), from, FIRST)
        .await
        .unwrap_err();
    assert!(used.is_slot_in_use(), "{used:?}");
    assert!(!used.is_slot_absent() && !used.is_down());
    let used = other.drop_slot("dr").await.unwrap_err();
    assert!(used.is_slot_in_use(), "{used:?}");
    drop(stream);

    // The connection still streams.
    let error = receiver.identify_system().await.unwrap_err();
    assert!(
        matches!(error, ReplicationError::Occupied { .. }),
        "{error}"
    );
    // When it is closed the slot is free, at once. Again and again, because there is a race to lose.
    receiver.close().await;
    for _ in 0..20 {
        other.drop_slot("dr").await.unwrap();
        other.create_slot("dr").await.unwrap();
        let mut receiver = server.receiver().await;
        let started = receiver.start_physical(Some("dr"), from, FIRST).await;
        started.unwrap();
        receiver.close().await;
    }
    other.drop_slot("dr").await.unwrap();
    assert_eq!(text(&server.instance, SLOT).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_too_many_says_what_to_raise() {
    let server = Server::start(&[("max_replication_slots", "1")]);
    let mut receiver = server.receiver().await;
    receiver.create_slot("one").await.unwrap();
    let error = receiver.create_slot("two").await.unwrap_err();
    assert_eq!(error.code(), Some("53400"), "{error:?}");
    assert!(error.hint().unwrap().contains("max_replication_slots"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_none_is_not_sent() {
    let server = Server::start(&[]);
    let mut receiver = server.receiver().await;
    let from = receiver.identify_system().await.unwrap().xlogpos;
    let bad = "a\" PHYSICAL; DROP_REPLICATION_SLOT \"b";
    for error in [
        receiver.create_slot(bad).await.unwrap_err(),
        receiver.drop_slot(bad).await.unwrap_err(),
        receiver
            .start_physical(Some(bad), from, FIRST)
            .await
            .unwrap_err(),
    ] {
        assert!(matches!(error, ReplicationError::Name { .. }), "{error}");
    }
    receiver.identify_system().await.unwrap();
}
