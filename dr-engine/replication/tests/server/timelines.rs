//! A standby that becomes a primary of its own.

use dr_model::{Lsn, Timeline};
use dr_replication::Event;

use crate::cluster::{
    Received, Server, in_files, log_end, next, receiver, run, segment_start, text, wait_for,
    write_log,
};

const FIRST: Timeline = Timeline(1);
const SECOND: Timeline = Timeline(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_ends_the_timeline_and_the_next_one_is_received() {
    let primary = Server::start(&[]);
    let copy = primary.home.path("standby");
    let port = primary.instance.port().to_string();
    primary.home.run(
        "pg_basebackup",
        &[
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            "postgres",
            "-D",
            copy.to_str().unwrap(),
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
            "--no-sync",
        ],
    );
    let standby = primary.home.start(&copy, &[]);
    let mut receiver = receiver(&standby).await;
    let identity = receiver.identify_system().await.unwrap();
    assert_eq!(identity.timeline, FIRST);
    let from = segment_start(identity.xlogpos);
    let mut stream = receiver.start_physical(None, from, FIRST).await.unwrap();

    write_log(&primary.instance).await;
    let end = log_end(&primary.instance).await;
    let mut received = Received::nothing(from);
    received.until(&mut stream, end).await;
    let replayed = "select pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn()";
    wait_for(&standby, replayed).await;

    run(&standby, &["select pg_promote()"]).await;
    let switch = loop {
        match next(&mut stream).await.unwrap() {
            Event::Data { start, data, .. } => received.add(start, &data),
            Event::Keepalive { .. } => {}
            Event::TimelineEnded { next } => break next,
        }
    };
    let (timeline, at) = switch.expect("it names the next");
    assert_eq!(timeline, SECOND);
    assert_eq!(received.end(), at, "everything of the timeline was sent");
    let again = next(&mut stream).await.unwrap();
    assert_eq!(again, Event::TimelineEnded { next: switch });
    // A report comes too late, and does no harm.
    stream.report(at, at, at, true).await.unwrap();

    // The server's own account of it.
    let (name, history) = receiver.timeline_history(SECOND).await.unwrap();
    assert_eq!(name, "00000002.history");
    assert_eq!(
        history,
        std::fs::read(copy.join("pg_wal").join(&name)).unwrap()
    );
    let line = String::from_utf8(history.to_vec()).unwrap();
    assert!(line.starts_with(&format!("1\t{at}\t")), "{line}");

    // There is no more of the old one: that is told at once.
    let mut stream = receiver.start_physical(None, at, FIRST).await.unwrap();
    assert_eq!(
        next(&mut stream).await.unwrap(),
        Event::TimelineEnded { next: switch }
    );
    drop(stream);

    let mut stream = receiver.start_physical(None, at, SECOND).await.unwrap();
    run(&standby, &["create table after_promotion (n int)"]).await;
    let end = log_end(&standby).await;
    let mut more = Received::nothing(at);
    more.until(&mut stream, end).await;
    assert!(
        more.bytes == in_files(&copy, SECOND, at, more.end()),
        "they are not the same"
    );
    let old = in_files(&copy, SECOND, segment_start(at), at);
    assert!(
        received.bytes.ends_with(&old),
        "the new segment begins with the old one's bytes"
    );
    assert_eq!(
        text(&standby, "select count(*)::text from pg_stat_replication")
            .await
            .unwrap(),
        "1"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_that_never_was_is_refused() {
    let server = Server::start(&[]);
    let mut receiver = server.receiver().await;
    let from = receiver.identify_system().await.unwrap().xlogpos;
    let error = receiver
        .start_physical(None, from, Timeline(7))
        .await
        .unwrap_err();
    assert!(!error.is_down() && !error.is_wal_removed(), "{error:?}");
    assert!(error.server_message().is_some(), "{error:?}");
    // A position is looked at after the stream has begun.
    let ahead = Lsn(from.0 + (1 << 30));
    let mut stream = receiver.start_physical(None, ahead, FIRST).await.unwrap();
    let error = next(&mut stream).await.unwrap_err();
    assert!(!error.is_down() && !error.is_wal_removed(), "{error:?}");
    let said = error.server_message().unwrap().to_string();
    assert!(said.contains(&ahead.to_string()), "{said}");
    receiver.identify_system().await.unwrap();
}
