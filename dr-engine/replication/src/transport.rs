//! Reaching the server: TCP or a Unix socket, encrypted or not.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::tls;
use crate::{Address, Host, ReplicationError, TlsMode};

const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(15);
const KEEPALIVE_TRIES: u32 = 4;

/// Something to read from and write to.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

/// An open connection on which nothing has been said yet.
pub(crate) struct Transport {
    pub(crate) socket: Box<dyn Duplex>,
    /// Whether nobody on the way can read what is sent.
    pub(crate) is_private: bool,
}

/// Connects, and encrypts the connection if that is wanted.
pub(crate) async fn open(address: &Address) -> Result<Transport, ReplicationError> {
    match &address.host {
        Host::Socket(folder) => {
            let socket = UnixStream::connect(address.socket(folder)).await;
            Ok(Transport {
                socket: Box::new(socket.map_err(|source| down(address, source))?),
                is_private: true,
            })
        }
        Host::Tcp(host) => {
            let connected = TcpStream::connect((host.as_str(), address.port)).await;
            let socket = connected.map_err(|source| down(address, source))?;
            // A status update is small and somebody's commit may wait for it.
            let set = socket.set_nodelay(true);
            set.and_then(|()| notice_a_lost_peer(&socket))
                .map_err(|source| down(address, source))?;
            encrypt(socket, host, address).await
        }
    }
}

/// A host that vanishes without a word is missed within two minutes, also by who only waits.
fn notice_a_lost_peer(socket: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_PAUSE)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_TRIES)?;
    Ok(())
}

async fn encrypt(
    mut socket: TcpStream,
    host: &str,
    address: &Address,
) -> Result<Transport, ReplicationError> {
    if address.tls.mode == TlsMode::Disable {
        return Ok(plain(socket));
    }
    // The files first: what is wrong with them is not the server's fault.
    let client = tls::Client::new(host, address).await?;
    let asked = ask_for_tls(&mut socket).await;
    match asked.map_err(|source| down(address, source))? {
        b'S' => Ok(Transport {
            socket: Box::new(client.handshake(socket).await?),
            is_private: true,
        }),
        b'N' if address.tls.mode == TlsMode::Prefer => Ok(plain(socket)),
        b'N' => Err(ReplicationError::TlsNotOffered {
            place: address.place(),
        }),
        other => Err(ReplicationError::Protocol {
            place: address.place(),
            what: format!("it answers {other} when asked for TLS"),
        }),
    }
}

/// Reads the one byte of the answer and no more: what comes unencrypted behind it may be somebody
/// else's, and must not be taken for the server's.
async fn ask_for_tls(socket: &mut TcpStream) -> io::Result<u8> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await?;
    socket.read_u8().await
}

fn plain(socket: TcpStream) -> Transport {
    Transport {
        socket: Box::new(socket),
        is_private: false,
    }
}

fn down(address: &Address, source: io::Error) -> ReplicationError {
    ReplicationError::Down {
        place: address.place(),
        source,
    }
}
