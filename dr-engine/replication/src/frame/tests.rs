use bytes::BufMut;
use proptest::prelude::*;

use super::*;

fn message(tag: u8, body: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::new();
    bytes.put_u8(tag);
    bytes.put_i32(i32::try_from(body.len() + 4).unwrap());
    bytes.put_slice(body);
    bytes
}

#[test]
fn messages_are_taken_one_by_one() {
    let mut input = message(b'W', &[0, 0, 0]);
    input.extend_from_slice(&message(b'd', b"log"));
    input.extend_from_slice(&message(b'c', b""));
    assert!(matches!(take(&mut input).unwrap(), Some(Frame::CopyBoth)));
    let Some(Frame::Message(Message::CopyData(body))) = take(&mut input).unwrap() else {
        panic!("no data");
    };
    assert_eq!(body.data(), b"log");
    let last = take(&mut input).unwrap().unwrap();
    assert_eq!(last.name(), "CopyDone");
    assert!(take(&mut input).unwrap().is_none());
    assert!(input.is_empty());
}

#[test]
fn a_message_that_is_cut_off_is_waited_for() {
    for whole in [message(b'W', &[0, 0, 0]), message(b'd', b"log")] {
        for length in 0..whole.len() {
            let mut input = BytesMut::from(&whole[..length]);
            assert!(take(&mut input).unwrap().is_none(), "{length}");
            assert_eq!(input.len(), length, "something was taken");
        }
    }
}

#[test]
fn no_memory_is_taken_for_what_is_too_large() {
    for length in [0, 3, 65 << 20, u32::MAX, 0x5454_502F] {
        let mut input = BytesMut::new();
        input.put_u8(b'd');
        input.put_u32(length);
        assert!(take(&mut input).is_err(), "{length}");
        assert!(input.capacity() < 1024);
    }
    // One that is just not too large is waited for without having room for it.
    let mut input = BytesMut::new();
    input.put_u8(b'd');
    input.put_u32(64 << 20);
    assert!(take(&mut input).unwrap().is_none());
    assert!(input.capacity() < 1024);
}

#[test]
fn an_unknown_message_is_an_error() {
    assert!(take(&mut message(b'?', b"")).is_err());
    assert!(take(&mut message(b'Z', b"")).is_err());
    assert!(take(&mut message(b'R', &[0, 0, 0, 99])).is_err());
}

proptest! {
    #[test]
    fn garbage_is_read_or_refused(
        tag in any::<u8>(),
        body in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        // With the right length, so that what is inside is read.
        let mut input = message(tag, &body);
        match take(&mut input) {
            Ok(Some(Frame::Message(Message::DataRow(row)))) => {
                let _ = crate::rows::Rows::default().add(&row);
            }
            Ok(Some(Frame::Message(Message::RowDescription(row)))) => {
                let _ = crate::rows::Rows::default().describe(&row);
            }
            Ok(Some(Frame::Message(Message::ErrorResponse(body)))) => {
                let _ = crate::rows::server_message(&body);
            }
            _ => {}
        }
    }
}
