use bytes::BufMut;
use futures_poll::poll_once;
use postgres_protocol::message::backend::Message;
use tokio::io::{AsyncWriteExt, DuplexStream};

use super::*;

mod futures_poll {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    /// Polls a future once and drops it, as `tokio::select!` does with the one that lost.
    pub(super) fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }
}

/// A connection whose other side takes only so many bytes before it reads.
fn pair(bytes: usize) -> (Wire, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(bytes);
    (Wire::new("test".to_owned(), Box::new(ours)), theirs)
}

fn copy_data(body: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::new();
    bytes.put_u8(b'd');
    bytes.put_i32(i32::try_from(body.len() + 4).unwrap());
    bytes.put_slice(body);
    bytes
}

fn is_data(frame: Frame, expected: &[u8]) -> bool {
    matches!(frame, Frame::Message(Message::CopyData(body)) if body.data() == expected)
}

#[tokio::test]
async fn a_receive_that_is_dropped_at_any_byte_loses_nothing() {
    let (mut wire, mut server) = pair(1024);
    for round in 0..3_u8 {
        let sent = copy_data(&[round; 10]);
        for byte in &sent[..sent.len() - 1] {
            server.write_all(&[*byte]).await.unwrap();
            assert!(poll_once(wire.receive()).is_none());
        }
        server.write_all(&sent[sent.len() - 1..]).await.unwrap();
        let frame = wire.receive().await.unwrap();
        assert!(is_data(frame, &[round; 10]), "round {round}");
    }
}

#[tokio::test]
async fn a_flush_that_is_dropped_goes_on_later_where_it_stopped() {
    let (mut wire, mut server) = pair(4);
    let sent: Vec<u8> = (0..64).collect();
    wire.output().extend_from_slice(&sent);
    let mut received = Vec::new();
    for round in 0.. {
        // Either of the two sends.
        let done = match round % 2 {
            0 => poll_once(wire.flush()).is_some(),
            _ => {
                assert!(poll_once(wire.receive()).is_none());
                wire.output.is_empty()
            }
        };
        let mut part = [0; 3];
        let bytes = poll_once(server.read(&mut part)).unwrap_or(Ok(0)).unwrap();
        received.extend_from_slice(&part[..bytes]);
        if done && bytes == 0 {
            break;
        }
    }
    assert_eq!(received, sent);
}

#[tokio::test]
async fn the_end_of_the_connection_is_told_apart_from_nonsense() {
    let (mut wire, mut server) = pair(1024);
    server.write_all(b"d\0\0").await.unwrap();
    drop(server);
    let error = wire.receive().await.err().unwrap();
    assert!(error.is_down(), "{error}");

    let (mut wire, mut server) = pair(1024);
    server.write_all(b"HTTP/1.1 400 Bad Request").await.unwrap();
    let error = wire.receive().await.err().unwrap();
    assert!(
        matches!(error, ReplicationError::Protocol { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn what_the_server_said_last_is_read_although_nothing_can_be_sent() {
    let (mut wire, mut server) = pair(1024);
    server.write_all(&copy_data(b"last")).await.unwrap();
    drop(server);
    wire.output().extend_from_slice(b"to nobody");
    assert!(is_data(wire.receive().await.unwrap(), b"last"));
    assert!(wire.receive().await.err().unwrap().is_down());
}
