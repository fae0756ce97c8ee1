//! What is received, and what is told of it.

use chrono::{TimeDelta, Utc};
use dr_model::{Lsn, Timeline, WalFileName};
use dr_replication::{Address, Connection, Event};

use crate::cluster::{
    LIMIT, Received, SEGMENT_BYTES, Server, address, in_files, log_end, next, run, segment_start,
    text, wait_for, write_log,
};

const FIRST: Timeline = Timeline(1);

#[tokio::test(flavor = "multi_thread")]
async fn the_server_says_what_it_is() {
    let server = Server::start(&[]);
    let mut receiver = server.receiver().await;
    let before = log_end(&server.instance).await;
    let identity = receiver.identify_system().await.unwrap();
    let after = log_end(&server.instance).await;
    let expected = text(
        &server.instance,
        "select system_identifier::text from pg_control_system()",
    );
    let expected: i64 = expected.await.unwrap().parse().unwrap();
    assert_eq!(identity.system_id.0, expected.cast_unsigned());
    assert_eq!(identity.timeline, FIRST);
    assert!(before <= identity.xlogpos && identity.xlogpos <= after);

    let version = text(&server.instance, "select current_setting('server_version')").await;
    assert_eq!(receiver.server_version(), version.unwrap());
    assert_eq!(receiver.show("wal_segment_size").await.unwrap(), "1MB");
    let error = receiver.show("no_such_thing").await.unwrap_err();
    assert_eq!(error.code(), Some("42704"), "{error}");
    assert!(receiver.show("a; drop").await.is_err());
    // It can be used after an error.
    assert_eq!(
        receiver.show("port").await.unwrap(),
        server.instance.port().to_string()
    );
    let error = receiver.timeline_history(Timeline(9)).await.unwrap_err();
    assert_eq!(error.code(), Some("58P01"), "{error}");
    assert!(!error.is_wal_removed(), "of a stream only");
    receiver.identify_system().await.unwrap();
}

/// Every wait for the next event loses against something else again and again, and nothing is lost.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_received_is_the_log_byte_for_byte() {
    let server = Server::start(&[]);
    let mut receiver = server.receiver().await;
    receiver.create_slot("dr").await.unwrap();
    let from = segment_start(receiver.identify_system().await.unwrap().xlogpos);
    let mut stream = receiver
        .start_physical(Some("dr"), from, FIRST)
        .await
        .unwrap();

    let writing = async {
        for _ in 0..3 {
            write_log(&server.instance).await;
            run(&server.instance, &["select pg_switch_wal()", "checkpoint"]).await;
        }
        log_end(&server.instance).await
    };
    tokio::pin!(writing);
    let mut received = Received::nothing(from);
    let (mut end, mut dropped) = (None, 0);
    while end.is_none_or(|end| received.end() < end) {
        let event = tokio::select! {
            event = next(&mut stream) => event.unwrap(),
            () = tokio::task::yield_now() => { dropped += 1; continue }
            written = &mut writing, if end.is_none() => { end = Some(written); continue }
        };
        let Event::Data {
            start,
            server_end,
            server_clock,
            data,
        } = event
        else {
            continue;
        };
        received.add(start, &data);
        assert!(received.end() <= server_end);
        assert!((Utc::now() - server_clock).abs() < TimeDelta::minutes(1));
    }
    let end = received.end();
    let segments = end.0 / SEGMENT_BYTES - from.0 / SEGMENT_BYTES;
    assert!(segments >= 6, "only {segments} segments");
    assert!(dropped > 100, "only {dropped} waits were given up");
    let files = in_files(server.instance.data_directory(), FIRST, from, end);
    assert!(received.bytes == files, "they are not the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_reported_is_what_the_server_believes() {
    let server = Server::start(&[]);
    let mut receiver = server.receiver().await;
    receiver.create_slot("dr").await.unwrap();
    let from = segment_start(receiver.identify_system().await.unwrap().xlogpos);
    let mut stream = receiver
        .start_physical(Some("dr"), from, FIRST)
        .await
        .unwrap();
    write_log(&server.instance).await;
    let end = log_end(&server.instance).await;
    let mut received = Received::nothing(from);
    received.until(&mut stream, end).await;

    let (written, flushed, applied) = (end, Lsn(end.0 - 8), Lsn(end.0 - 16));
    stream
        .report(written, flushed, applied, true)
        .await
        .unwrap();
    received.until_answered(&mut stream).await;
    let told = text(
        &server.instance,
        "select concat_ws(' ', application_name, write_lsn, flush_lsn, replay_lsn, reply_time < now())
           from pg_stat_replication",
    );
    assert_eq!(
        told.await.unwrap(),
        format!("dr {written} {flushed} {applied} t")
    );
    let kept = "select restart_lsn::text from pg_replication_slots where slot_name = 'dr'";
    assert_eq!(
        text(&server.instance, kept).await.unwrap(),
        flushed.to_string()
    );
    // Nothing of it after 2000 and a bit: the clock we sent is a real one.
    let sent = "select (reply_time > '2020-01-01')::text from pg_stat_replication";
    assert_eq!(text(&server.instance, sent).await.unwrap(), "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_until_its_log_is_reported() {
    let server = Server::start(&[("synchronous_standby_names", "dr_sync")]);
    let instance = &server.instance;
    let mut address = address(instance);
    address.application_name = "dr_sync".to_owned();
    let mut receiver = Connection::connect(&address, LIMIT).await.unwrap();
    let from = receiver.identify_system().await.unwrap().xlogpos;
    let mut stream = receiver
        .start_physical(None, segment_start(from), FIRST)
        .await
        .unwrap();
    let mut received = Received::nothing(segment_start(from));
    stream.report(from, from, from, true).await.unwrap();
    received.until_answered(&mut stream).await;
    wait_for(
        instance,
        "select count(*) = 1 from pg_stat_replication where sync_state = 'sync'",
    )
    .await;

    let commit = run(instance, &["create table waits (n int)"]);
    tokio::pin!(commit);
    let waiting = wait_for(
        instance,
        "select count(*) = 1 from pg_stat_activity where wait_event = 'SyncRep'",
    );
    tokio::select! {
        () = &mut commit => panic!("it did not wait"),
        () = waiting => {}
    }
    // Having it is not enough: it has to be on disk here.
    let end = log_end(instance).await;
    received.until(&mut stream, end).await;
    stream.report(end, from, from, true).await.unwrap();
    received.until_answered(&mut stream).await;
    let still = "select count(*)::text from pg_stat_activity where wait_event = 'SyncRep'";
    assert_eq!(text(instance, still).await.unwrap(), "1");

    stream.report(end, end, end, false).await.unwrap();
    tokio::time::timeout(LIMIT, commit)
        .await
        .expect("it waits for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_serves_as_well() {
    let server = Server::start(&[]);
    let address = Address::from_url(&server.instance.url("postgres"), None).unwrap();
    assert!(address.place().contains("dr-repl"), "{}", address.place());
    let mut receiver = Connection::connect(&address, LIMIT).await.unwrap();
    let from = receiver.identify_system().await.unwrap().xlogpos;
    let from = segment_start(from);
    let mut stream = receiver.start_physical(None, from, FIRST).await.unwrap();
    let mut received = Received::nothing(from);
    write_log(&server.instance).await;
    received
        .until(&mut stream, log_end(&server.instance).await)
        .await;
    let files = in_files(
        server.instance.data_directory(),
        FIRST,
        from,
        received.end(),
    );
    assert!(received.bytes == files, "they are not the same");
    let by_socket = "select (client_addr is null)::text from pg_stat_replication";
    assert_eq!(text(&server.instance, by_socket).await.unwrap(), "true");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_was_removed_is_missed() {
    let server = Server::start(&[("wal_keep_size", "0"), ("max_slot_wal_keep_size", "1MB")]);
    let mut receiver = server.receiver().await;
    receiver.create_slot("dr").await.unwrap();
    let from = segment_start(receiver.identify_system().await.unwrap().xlogpos);
    let name = WalFileName::containing(from, FIRST, SEGMENT_BYTES).to_string();
    let file = server.instance.data_directory().join("pg_wal").join(name);
    assert!(file.exists());
    for _ in 0..3 {
        write_log(&server.instance).await;
        run(&server.instance, &["select pg_switch_wal()", "checkpoint"]).await;
    }
    assert!(!file.exists(), "it is still there");
    for slot in [None, Some("dr")] {
        let error = match receiver.start_physical(slot, from, FIRST).await {
            Err(error) => error,
            Ok(mut stream) => loop {
                match next(&mut stream).await {
                    Err(error) => break error,
                    Ok(Event::Keepalive { .. }) => {}
                    Ok(other) => panic!("{other:?}"),
                }
            },
        };
        assert!(error.is_wal_removed(), "{error:?}");
        assert!(!error.is_down() && !error.is_slot_absent());
        assert!(error.hint().is_some());
        // The connection is as good as before.
        receiver.identify_system().await.unwrap();
    }
}
