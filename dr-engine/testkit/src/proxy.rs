//! An HTTP proxy that does to a client what networks, load balancers and overloaded servers do.
//!
//! It stands between a client and a server on loopback, understands as much HTTP/1.1 as it needs (one
//! request and answer for each connection, bodies with a length), and passes everything on unchanged
//! unless a rule says otherwise. Signatures stay valid, as they cover the name that the client called.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyFault {
    /// Answered with this status by the proxy; the server never sees it.
    Status(u16),
    /// Held back this long, then passed on.
    Slow(Duration),
    /// Passed on; the answer's body breaks off after so many bytes.
    CutAnswer(usize),
    /// Broken off after so many bytes of the request's body; the server sees no more.
    CutRequest(usize),
    /// Passed on; the answer names another ETag.
    WrongEtag,
    /// Passed on and done; the answer is lost.
    LoseAnswer,
    /// Passed on and done; the answer is 500 instead.
    HideAnswer,
    /// One byte in the middle of the request's body is changed.
    FlipRequest,
    /// One byte in the middle of the answer's body is changed.
    FlipAnswer,
    /// The answer's body is shorter than the server's, and its head says so too.
    ShortAnswer,
}

/// Which requests a fault is for.
#[derive(Debug, Clone)]
pub struct ProxyRule {
    /// `GET`, `PUT`, …; empty for all.
    pub method: &'static str,
    /// What the path and query contain; empty for all.
    pub target: &'static str,
    /// What happens.
    pub fault: ProxyFault,
    /// To how many requests.
    pub times: u32,
}

/// A request that came by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRequest {
    /// `GET`, `PUT`, …
    pub method: String,
    /// Path and query.
    pub target: String,
    /// What was done to it.
    pub fault: Option<ProxyFault>,
    /// The headers, as sent.
    pub headers: String,
}

#[derive(Debug, Default)]
struct State {
    rules: Mutex<Vec<ProxyRule>>,
    seen: Mutex<Vec<SeenRequest>>,
    latency: Mutex<Duration>,
    stopped: AtomicBool,
}

/// A running proxy; stops when dropped.
#[derive(Debug)]
pub struct FaultyProxy {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FaultyProxy {
    /// Starts a proxy before the server at this endpoint (`http://127.0.0.1:9000`).
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(server: &str) -> anyhow::Result<Self> {
        let server: SocketAddr = server
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .parse()
            .with_context(|| format!("`{server}` is no http://IP:PORT"))?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let accept = move || {
            for client in listener.incoming() {
                if shared.stopped.load(Ordering::SeqCst) {
                    break;
                }
                let (Ok(client), state) = (client, Arc::clone(&shared)) else {
                    continue;
                };
                std::thread::spawn(move || {
                    // A broken connection is what this is for.
                    let _ = serve(&client, server, &state);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        };
        let thread = std::thread::Builder::new()
            .name("proxy".to_owned())
            .spawn(accept)?;
        Ok(Self {
            address,
            state,
            thread: Some(thread),
        })
    }

    /// What a client calls.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Does this to the next requests that fit; the first rule that fits and is not used up counts.
    pub fn add(&self, rule: ProxyRule) {
        held(&self.state.rules).push(rule);
    }

    /// Takes all rules away and forgets what was seen.
    pub fn reset(&self) {
        held(&self.state.rules).clear();
        held(&self.state.seen).clear();
    }

    /// Holds every request back this long.
    pub fn set_latency(&self, latency: Duration) {
        *held(&self.state.latency) = latency;
    }

    /// Everything that came by, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<SeenRequest> {
        held(&self.state.seen).clone()
    }

    /// How many requests something was done to.
    #[must_use]
    pub fn faults(&self) -> usize {
        let seen = held(&self.state.seen);
        seen.iter()
            .filter(|request| request.fault.is_some())
            .count()
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for a connection.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A head and a body.
struct Message {
    head: String,
    body: Vec<u8>,
}

impl Message {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// Replaces a header, or takes it away.
    fn set(&mut self, name: &str, value: Option<&str>) {
        let mut lines: Vec<String> = self
            .head
            .lines()
            .filter(|line| {
                let key = line.split_once(':').map_or("", |(key, _)| key);
                !key.eq_ignore_ascii_case(name)
            })
            .map(str::to_owned)
            .collect();
        if let Some(value) = value {
            lines.push(format!("{name}: {value}"));
        }
        self.head = lines.join("\r\n");
    }

    fn flip(&mut self) {
        let middle = self.body.len() / 2;
        if let Some(byte) = self.body.get_mut(middle) {
            *byte ^= 0x10;
        }
    }

    fn send(&self, mut to: &TcpStream, body: &[u8]) -> io::Result<()> {
        to.write_all(format!("{}\r\n\r\n", self.head).as_bytes())?;
        to.write_all(body)?;
        to.flush()
    }
}

fn read_head(mut from: &TcpStream) -> io::Result<String> {
    const HEAD_MAX: usize = 64 << 10;
    let mut head = Vec::new();
    let mut byte = [0u8; 1];
    while !head.ends_with(b"\r\n\r\n") {
        if from.read(&mut byte)? == 0 || head.len() > HEAD_MAX {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.push(byte[0]);
    }
    head.truncate(head.len() - 4);
    String::from_utf8(head).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn read_request(mut client: &TcpStream) -> io::Result<Message> {
    let mut request = Message {
        head: read_head(client)?,
        body: Vec::new(),
    };
    if request.header("expect").is_some() {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        request.set("expect", None);
    }
    let length = request
        .header("content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    request.body = vec![0; length];
    client.read_exact(&mut request.body)?;
    Ok(request)
}

/// Sends a request on and reads the answer to its end, which is the connection's.
fn ask(server: &TcpStream, request: &Message) -> io::Result<Message> {
    request.send(server, &request.body)?;
    let mut answer = Vec::new();
    let mut from = server;
    from.read_to_end(&mut answer)?;
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    let body = answer.split_off(end + 4);
    answer.truncate(end);
    let head = String::from_utf8(answer).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(Message { head, body })
}

fn fault_for(state: &State, method: &str, target: &str) -> Option<ProxyFault> {
    let mut rules = held(&state.rules);
    let rule = rules.iter_mut().find(|rule| {
        rule.times > 0
            && (rule.method.is_empty() || rule.method == method)
            && target.contains(rule.target)
    })?;
    rule.times -= 1;
    Some(rule.fault)
}

fn own_answer(status: u16) -> Message {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>Code{status}</Code><Message>from the proxy</Message></Error>"
    );
    Message {
        head: format!(
            "HTTP/1.1 {status} From the proxy\r\ncontent-type: application/xml\r\n\
             content-length: {}\r\nconnection: close",
            body.len()
        ),
        body: body.into_bytes(),
    }
}

fn serve(client: &TcpStream, server: SocketAddr, state: &State) -> io::Result<()> {
    let mut request = read_request(client)?;
    let line = request.head.lines().next().unwrap_or_default().to_owned();
    let mut words = line.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    let fault = fault_for(state, &method, &target);
    held(&state.seen).push(SeenRequest {
        method: method.clone(),
        target,
        fault,
        headers: request.head.clone(),
    });
    let latency = *held(&state.latency);
    std::thread::sleep(latency);
    request.set("connection", Some("close"));
    match fault {
        Some(ProxyFault::Status(status)) => {
            let mut answer = own_answer(status);
            if method == "HEAD" {
                answer.body.clear();
            }
            return answer.send(client, &answer.body);
        }
        Some(ProxyFault::Slow(pause)) => std::thread::sleep(pause),
        Some(ProxyFault::CutRequest(after)) => {
            let server = TcpStream::connect(server)?;
            let after = after.min(request.body.len());
            request.send(&server, &request.body[..after])?;
            return server.shutdown(Shutdown::Both);
        }
        Some(ProxyFault::FlipRequest) => request.flip(),
        _ => {}
    }
    let mut answer = ask(&TcpStream::connect(server)?, &request)?;
    match fault {
        Some(ProxyFault::LoseAnswer) => return Ok(()),
        Some(ProxyFault::HideAnswer) => {
            let own = own_answer(500);
            return own.send(client, &own.body);
        }
        Some(ProxyFault::CutAnswer(after)) => {
            let after = after.min(answer.body.len());
            return answer.send(client, &answer.body[..after]);
        }
        Some(ProxyFault::WrongEtag) => {
            answer.set("etag", Some("\"00000000000000000000000000000000\""));
        }
        Some(ProxyFault::FlipAnswer) => answer.flip(),
        Some(ProxyFault::ShortAnswer) => {
            answer.body.truncate(answer.body.len() / 2);
            let length = answer.body.len().to_string();
            answer.set("content-length", Some(&length));
        }
        _ => {}
    }
    answer.send(client, &answer.body)
}
