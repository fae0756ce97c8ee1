//! A server that goes away.

use dr_model::{Lsn, Timeline};
use dr_replication::{Connection, Event, ReplicationError, Stream};
use dr_sources::instance::StopMode;

use crate::cluster::{
    LIMIT, Received, Server, address, log_end, next, run, segment_start, write_log,
};

const FIRST: Timeline = Timeline(1);

async fn failure(stream: &mut Stream<'_>) -> ReplicationError {
    loop {
        match next(stream).await {
            Err(error) => return error,
            Ok(Event::TimelineEnded { next }) => panic!("the timeline has ended: {next:?}"),
            Ok(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_is_down() {
    let server = Server::start(&[]);
    let address = address(&server.instance);
    let mut receiver = server.receiver().await;
    let from = segment_start(receiver.identify_system().await.unwrap().xlogpos);
    let mut stream = receiver.start_physical(None, from, FIRST).await.unwrap();
    write_log(&server.instance).await;
    let mut received = Received::nothing(from);
    received.until(&mut stream, Lsn(from.0 + 1)).await;

    let Server { instance, home } = server;
    let killed = tokio::task::spawn_blocking(|| instance.kill_all());
    let error = failure(&mut stream).await;
    assert!(error.is_down(), "{error:?}");
    assert!(!error.is_wal_removed());
    killed.await.unwrap();
    // There is no going on with it.
    assert!(stream.report(from, from, from, false).await.is_err());
    assert!(stream.next().await.is_err());

    let error = Connection::connect(&address, LIMIT).await.unwrap_err();
    assert!(error.is_down(), "{error:?}");
    let mut missing = address.clone();
    missing.host = dr_replication::Host::Socket(home.path("nowhere"));
    let error = Connection::connect(&missing, LIMIT).await.unwrap_err();
    assert!(error.is_down(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_sends_all_and_is_down() {
    let server = Server::start(&[]);
    let mut receiver = server.receiver().await;
    let from = segment_start(receiver.identify_system().await.unwrap().xlogpos);
    let mut stream = receiver.start_physical(None, from, FIRST).await.unwrap();
    write_log(&server.instance).await;
    let end = log_end(&server.instance).await;

    let Server { instance, home } = server;
    let stopped = tokio::task::spawn_blocking(move || instance.stop(StopMode::Fast));
    let mut received = Received::nothing(from);
    // It waits for us to have everything, its last checkpoint too.
    let error = loop {
        match next(&mut stream).await {
            Ok(Event::Data { start, data, .. }) => {
                received.add(start, &data);
                let end = received.end();
                stream.report(end, end, end, false).await.unwrap();
            }
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    stopped.await.unwrap().unwrap();
    assert!(error.is_down(), "{error:?}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "the server shuts down");
    assert!(received.end() > end);
    drop(home);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_an_administrator_ends_is_down() {
    let server = Server::start(&[]);
    let mut receiver = server.receiver().await;
    let from = receiver.identify_system().await.unwrap().xlogpos;
    let mut stream = receiver.start_physical(None, from, FIRST).await.unwrap();
    run(
        &server.instance,
        &["select pg_terminate_backend(pid) from pg_stat_replication"],
    )
    .await;
    let error = failure(&mut stream).await;
    assert!(error.is_down(), "{error:?}");
    assert_eq!(error.code(), Some("57P01"), "{error:?}");
}
