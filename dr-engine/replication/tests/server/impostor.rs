//! Servers that are none, or that do not do what a server does.

use std::time::Duration;

use dr_model::{Lsn, Timeline};
use dr_replication::{Address, Connection, Event, ReplicationError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::cluster::LIMIT;

/// A message of a server.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn let_in() -> Vec<u8> {
    [message(b'R', &[0; 4]), message(b'Z', b"I")].concat()
}

fn error(severity: &str, code: &str) -> Vec<u8> {
    let fields = format!("S{severity}\0V{severity}\0C{code}\0Mmessage\0Ddetail\0Hhint\0\0");
    message(b'E', fields.as_bytes())
}

/// Answers what is received with one reply after the other; keeps the connection open then, until the
/// other side closes it.
async fn serve(replies: Vec<Vec<u8>>) -> (Address, JoinHandle<()>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut replies = replies.into_iter();
        let mut received = [0; 4096];
        while !matches!(socket.read(&mut received).await, Ok(0) | Err(_)) {
            if let Some(reply) = replies.next() {
                let _ = send(&mut socket, &reply).await;
            }
        }
    });
    let url = format!("postgres://dr@127.0.0.1:{port}/?sslmode=disable");
    let address = Address::from_url(&url, Some("geheim".to_owned())).unwrap();
    (address, served)
}

async fn send(socket: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    socket.write_all(bytes).await?;
    socket.flush().await
}

async fn refused(reply: Vec<u8>) -> ReplicationError {
    let (address, served) = serve(vec![reply]).await;
    let error = Connection::connect(&address, LIMIT).await.unwrap_err();
    served.await.unwrap();
    error
}

#[tokio::test]
async fn what_is_no_postgresql_is_an_error() {
    for garbage in [
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        message(b'R', &[0, 0, 0, 99]),
        message(b'R', &[0, 0]),
        message(b'W', b""),
        message(b'Z', b"I"),
        message(b'E', b"Cgarbage"),
        message(b'R', &[0, 0, 0, 12]),
        [vec![b'd'], u32::MAX.to_be_bytes().to_vec()].concat(),
        [message(b'R', &[0; 4]), message(b'D', &[0; 2])].concat(),
    ] {
        let shown = String::from_utf8_lossy(&garbage).into_owned();
        let error = refused(garbage).await;
        let told = matches!(
            error,
            ReplicationError::Protocol { .. } | ReplicationError::Authentication { .. }
        );
        assert!(told, "{shown:?}: {error:?}");
        assert!(!error.is_down(), "{shown:?}");
    }
}

#[tokio::test]
async fn a_server_that_starts_or_stops_is_down() {
    for code in ["57P01", "57P02", "57P03"] {
        let error = refused(error("FATAL", code)).await;
        assert!(error.is_down(), "{error:?}");
        let said = error.server_message().unwrap();
        assert_eq!(said.code, code);
        assert_eq!(said.message, "message");
        assert_eq!(said.detail.as_deref(), Some("detail"));
        assert_eq!(said.hint.as_deref(), Some("hint"));
    }
    // Also behind the authentication, where a standby says it.
    let late = [message(b'R', &[0; 4]), error("FATAL", "57P03")].concat();
    assert!(refused(late).await.is_down());
    assert!(!refused(error("FATAL", "53300")).await.is_down());
}

#[tokio::test]
async fn who_does_not_know_the_password_is_not_believed() {
    let sasl = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    // Lets us in without a proof of its own.
    let (address, served) = serve(vec![sasl.clone(), let_in()]).await;
    let error = Connection::connect(&address, LIMIT).await.unwrap_err();
    assert!(
        matches!(error, ReplicationError::Authentication { .. }),
        "{error:?}"
    );
    served.await.unwrap();
    // Knows not even what we have said.
    let wrong = message(b'R', b"\0\0\0\x0br=other,s=AAAA,i=4096");
    let (address, served) = serve(vec![sasl, wrong]).await;
    let error = Connection::connect(&address, LIMIT).await.unwrap_err();
    assert!(
        matches!(error, ReplicationError::Authentication { .. }),
        "{error:?}"
    );
    served.await.unwrap();
    // Offers only what we do not do.
    let error = refused(message(b'R', b"\0\0\0\x0aOAUTHBEARER\0\0")).await;
    assert!(
        matches!(error, ReplicationError::Authentication { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_server_that_says_nothing_is_down() {
    let limit = Duration::from_millis(50);
    let (address, served) = serve(vec![]).await;
    let error = Connection::connect(&address, limit).await.unwrap_err();
    assert!(error.is_down(), "{error:?}");
    served.await.unwrap();

    let (address, served) = serve(vec![let_in()]).await;
    let mut receiver = Connection::connect(&address, limit).await.unwrap();
    let error = receiver.identify_system().await.unwrap_err();
    assert!(error.is_down(), "{error:?}");
    // Whatever comes now is not the answer to the next command.
    let error = receiver.identify_system().await.unwrap_err();
    assert!(
        matches!(error, ReplicationError::Occupied { .. }),
        "{error:?}"
    );
    receiver.close().await;
    served.await.unwrap();
}

/// The answer to a command.
async fn answered(reply: Vec<u8>) -> (Connection, JoinHandle<()>) {
    let (address, served) = serve(vec![let_in(), reply]).await;
    let receiver = Connection::connect(&address, LIMIT).await.unwrap();
    (receiver, served)
}

#[tokio::test]
async fn an_answer_that_is_none_is_an_error() {
    let complete = [message(b'C', b"X\0"), message(b'Z', b"I")].concat();
    // One column named as asked for, with a value that cannot be.
    let column = message(
        b'T',
        b"\0\x01systemid\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0",
    );
    let value = message(b'D', b"\0\x01\0\0\0\x01x");
    let null = message(b'D', b"\0\x01\xff\xff\xff\xff");
    for reply in [
        complete.clone(),
        [column.clone(), value.clone(), complete.clone()].concat(),
        [column.clone(), null, complete.clone()].concat(),
        [
            column.clone(),
            value.clone(),
            value.clone(),
            complete.clone(),
        ]
        .concat(),
        [column.clone(), column, complete.clone()].concat(),
        [value, complete.clone()].concat(),
        [message(b'D', b"\0\x09\0\0\0\x01x"), complete].concat(),
        message(b'W', b"\0\0\0"),
    ] {
        let (mut receiver, served) = answered(reply.clone()).await;
        let error = receiver.identify_system().await.unwrap_err();
        let shown = String::from_utf8_lossy(&reply);
        assert!(
            matches!(error, ReplicationError::Protocol { .. }),
            "{shown:?}: {error:?}"
        );
        drop(receiver);
        served.await.unwrap();
    }
}

#[tokio::test]
async fn endless_rows_end() {
    let row = [message(b'D', &[0; 2]).repeat(2 << 20), message(b'Z', b"I")].concat();
    let (mut receiver, served) = answered(row).await;
    let error = receiver.identify_system().await.unwrap_err();
    assert!(error.to_string().contains("too large"), "{error:?}");
    drop(receiver);
    served.await.unwrap();
}

#[tokio::test]
async fn a_stream_with_nonsense_in_it_is_over() {
    for nonsense in [
        message(b'd', b"?"),
        message(b'd', b""),
        message(b'd', b"w1234"),
        message(b'Z', b"I"),
        message(b'T', b"\0\0"),
        message(b'W', b"\0\0\0"),
    ] {
        let (mut receiver, served) = answered([message(b'W', b"\0\0\0"), nonsense].concat()).await;
        let mut stream = receiver
            .start_physical(None, Lsn(0), Timeline(1))
            .await
            .unwrap();
        let error = stream.next().await.unwrap_err();
        assert!(
            matches!(error, ReplicationError::Protocol { .. }),
            "{error:?}"
        );
        let error = stream.next().await.unwrap_err();
        assert!(
            matches!(error, ReplicationError::Occupied { .. }),
            "{error:?}"
        );
        drop(receiver);
        served.await.unwrap();
    }
}

/// A slot that lost what it held says so from version 18 on.
#[tokio::test]
async fn a_slot_that_lost_its_log_has_lost_it() {
    let fields = b"SERROR\0VERROR\0C55000\0Mcan no longer access replication slot \"dr\"\0\0";
    let reply = [message(b'E', fields), message(b'Z', b"I")].concat();
    let (mut receiver, served) = answered(reply).await;
    let start = receiver
        .start_physical(Some("dr"), Lsn(0), Timeline(1))
        .await;
    assert!(start.unwrap_err().is_wal_removed());
    drop(receiver);
    served.await.unwrap();
}

/// Between the end of the copy stream and what follows it, the wait may be given up too.
#[tokio::test]
async fn the_end_of_a_timeline_is_waited_for_in_parts() {
    let (ask, mut asked) = tokio::sync::mpsc::channel::<Vec<u8>>(1);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut received = [0; 4096];
        for reply in [
            let_in(),
            [message(b'W', b"\0\0\0"), message(b'c', b"")].concat(),
        ] {
            assert!(socket.read(&mut received).await.unwrap() > 0);
            send(&mut socket, &reply).await.unwrap();
        }
        // The client ends the copy stream too, though nobody waits for what follows any more.
        let mut done = [0; 5];
        socket.read_exact(&mut done).await.unwrap();
        assert_eq!(done.to_vec(), message(b'c', b""));
        while let Some(reply) = asked.recv().await {
            send(&mut socket, &reply).await.unwrap();
        }
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        rest
    });
    let url = format!("postgres://dr@127.0.0.1:{port}/?sslmode=disable");
    let address = Address::from_url(&url, None).unwrap();
    let mut receiver = Connection::connect(&address, LIMIT).await.unwrap();
    let mut stream = receiver
        .start_physical(None, Lsn(0), Timeline(1))
        .await
        .unwrap();
    let columns = message(
        b'T',
        b"\0\x02next_tli\0\0\0\0\0\0\0\0\0\0\x14\0\x08\xff\xff\xff\xff\0\0\
          next_tli_startpos\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0",
    );
    let row = message(b'D', b"\0\x02\0\0\0\x012\0\0\0\x090/3000028");
    let parts = [
        columns,
        row,
        message(b'C', b"START_STREAMING\0"),
        message(b'Z', b"I"),
    ];
    let mut ended = None;
    for byte in parts.concat() {
        ask.send(vec![byte]).await.unwrap();
        tokio::select! {
            event = stream.next() => ended = Some(event.unwrap()),
            () = tokio::task::yield_now() => {}
        }
    }
    drop(ask);
    let ended = match ended {
        Some(event) => event,
        None => stream.next().await.unwrap(),
    };
    let next = Some((Timeline(2), Lsn(0x300_0028)));
    assert_eq!(ended, Event::TimelineEnded { next });
    drop(receiver);
    assert_eq!(served.await.unwrap(), Vec::<u8>::new());
}
