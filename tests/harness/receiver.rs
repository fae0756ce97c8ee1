//! A small HTTP server on loopback that keeps what it is sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// One request.
pub(crate) struct Received {
    /// Its first line and its headers.
    pub(crate) head: String,
    pub(crate) body: String,
}

/// The server; it ends with the test's process.
pub(crate) struct HttpReceiver {
    address: SocketAddr,
    received: Receiver<Received>,
}

impl HttpReceiver {
    /// Gives every request the same answer, status line and body; none: it never answers.
    pub(crate) fn start(answer: Option<(&'static str, &'static str)>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, received) = channel();
        std::thread::spawn(move || {
            let mut unanswered = Vec::new();
            for stream in listener.incoming().flatten() {
                serve(&stream, answer, &sender);
                if answer.is_none() {
                    unanswered.push(stream);
                }
            }
        });
        Self { address, received }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The next request.
    #[track_caller]
    pub(crate) fn next(&self) -> Received {
        self.received.recv_timeout(PATIENCE).expect("no request")
    }
}

fn serve(stream: &TcpStream, answer: Option<(&str, &str)>, sender: &Sender<Received>) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    let mut body = Vec::new();
    if header("transfer-encoding").is_some_and(|value| value == "chunked") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut piece = vec![0; size + 2];
            reader.read_exact(&mut piece).unwrap();
            body.extend_from_slice(&piece[..size]);
            if size == 0 {
                break;
            }
        }
    } else {
        let length = header("content-length").map_or(0, |value| value.parse().unwrap());
        body.resize(length, 0);
        reader.read_exact(&mut body).unwrap();
    }
    let body = String::from_utf8(body).unwrap();
    // Nobody listens any more when the test has seen enough.
    let _ = sender.send(Received { head, body });
    if let Some((status, said)) = answer {
        let length = said.len();
        let text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{said}");
        let mut stream = stream;
        let _ = stream.write_all(text.as_bytes());
    }
}
