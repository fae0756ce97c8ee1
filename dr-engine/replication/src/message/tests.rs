use bytes::Buf;
use proptest::prelude::*;

use super::*;

fn data(start: u64, clock: i64, bytes: &[u8]) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u8(b'w');
    body.put_u64(start);
    body.put_u64(start + 100);
    body.put_i64(clock);
    body.put_slice(bytes);
    body.freeze()
}

fn keepalive(reply: u8) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u8(b'k');
    body.put_u64(0x1_0000_0028);
    body.put_i64(0);
    body.put_u8(reply);
    body.freeze()
}

fn in_2000() -> DateTime<Utc> {
    "2000-01-01T00:00:00Z".parse().unwrap()
}

#[test]
fn data_is_read_with_its_positions_and_clock() {
    let event = decode(data(0x300_0000, 1_500_000, b"log")).unwrap();
    assert_eq!(
        event,
        Event::Data {
            start: Lsn(0x300_0000),
            server_end: Lsn(0x300_0064),
            server_clock: in_2000() + chrono::TimeDelta::milliseconds(1500),
            data: Bytes::from_static(b"log"),
        }
    );
}

#[test]
fn a_keepalive_may_ask_for_a_reply() {
    for (byte, reply_requested) in [(0, false), (1, true)] {
        assert_eq!(
            decode(keepalive(byte)).unwrap(),
            Event::Keepalive {
                server_end: Lsn(0x1_0000_0028),
                server_clock: in_2000(),
                reply_requested,
            }
        );
    }
}

#[test]
fn what_is_cut_off_is_an_error() {
    let (data, keepalive) = (data(1, 2, b""), keepalive(1));
    for length in 0..data.len() {
        assert!(decode(data.slice(..length)).is_err(), "{length} of data");
    }
    for length in 0..keepalive.len() {
        let error = decode(keepalive.slice(..length)).unwrap_err();
        assert!(error.contains("cut off"), "{length}: {error}");
    }
}

#[test]
fn what_cannot_be_is_an_error() {
    assert!(decode(Bytes::from_static(b"x1234567890")).is_err());
    for clock in [i64::MAX, i64::MIN] {
        let error = decode(data(1, clock, b"")).unwrap_err();
        assert!(error.contains("clock"), "{error}");
    }
    let mut body = BytesMut::new();
    body.put_u8(b'w');
    body.put_u64(u64::MAX - 1);
    body.put_u64(u64::MAX);
    body.put_i64(0);
    body.put_slice(b"log");
    let error = decode(body.freeze()).unwrap_err();
    assert!(error.contains("over the end"), "{error}");
}

#[test]
fn a_status_holds_its_positions_in_their_order() {
    let status = Status {
        written: Lsn(3),
        flushed: Lsn(2),
        applied: Lsn(1),
        clock: in_2000() + chrono::TimeDelta::microseconds(7),
        reply_wanted: true,
    };
    let mut body = status.encode();
    assert_eq!(body.len(), 34);
    assert_eq!(body.get_u8(), b'r');
    assert_eq!((body.get_u64(), body.get_u64(), body.get_u64()), (3, 2, 1));
    assert_eq!((body.get_i64(), body.get_u8()), (7, 1));
}

proptest! {
    #[test]
    fn garbage_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode(bytes.into());
    }
}
