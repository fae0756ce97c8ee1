//! Where a server is and how to be let in.
//!
//! A URL means here what it means to `sqlx`, with which the rest of this product connects, so that one
//! URL serves both. Three things differ, each as in libpq: with `sslrootcert` only that file is trusted
//! and not the public authorities beside it, the default role is the account's name, and `sslmode=allow`
//! encrypts where the server can.

use std::fmt;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use url::Url;

use crate::password_file::{self, Purpose};
use crate::{ReplicationError, account};

/// PostgreSQL's port, unless it was told another one.
const DEFAULT_PORT: u16 = 5432;
/// What this client calls itself, unless it was told another name.
const DEFAULT_APPLICATION_NAME: &str = "dr";
/// Where servers put their sockets: Debian's, and as compiled without changes.
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A host's name or IP address.
    Tcp(String),
    /// The folder of its Unix socket.
    Socket(PathBuf),
}

/// How much is asked of the encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsMode {
    /// Nothing is encrypted.
    Disable,
    /// Encrypted where the server can; not checked who it is.
    #[default]
    Prefer,
    /// Encrypted; not checked who it is.
    Require,
    /// The server's certificate is signed by a trusted authority.
    VerifyCa,
    /// And is made out to the host that we connect to.
    VerifyFull,
}

/// A certificate that says who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, and those between it and the authority, in PEM.
    pub certificate: PathBuf,
    /// Its private key in PEM, not encrypted.
    pub key: PathBuf,
}

/// How the connection is encrypted. A Unix socket's never is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// How much is asked.
    pub mode: TlsMode,
    /// The authorities to trust, in PEM; none: the public ones.
    pub root_certificate: Option<PathBuf>,
    /// For servers that want to know who we are by a certificate.
    pub client: Option<ClientCertificate>,
}

/// Where a server is and how to be let in.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// Where it is.
    pub host: Host,
    /// Its port, also part of the socket's name.
    pub port: u16,
    /// The role; it needs REPLICATION.
    pub user: String,
    /// Its password.
    pub password: Option<String>,
    /// A walsender of physical replication has no database; poolers and logs may want one.
    pub database: Option<String>,
    /// What `pg_stat_replication` and `synchronous_standby_names` call this client.
    pub application_name: String,
    /// How the connection is encrypted.
    pub tls: Tls,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address")
            .field("place", &self.place())
            .field("user", &self.user)
            .field("application_name", &self.application_name)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

impl Address {
    /// Reads a connection URL: `postgres://user@host:port/database`, a socket folder as
    /// `?host=/run/postgresql`, and `sslmode`, `sslrootcert`, `sslcert`, `sslkey`, `application_name`.
    /// `password` beats one in the URL, which beats one in the file that `PGPASSFILE` names or in
    /// `~/.pgpass`. What is not known is ignored.
    ///
    /// # Errors
    /// [`ReplicationError::Url`] when it cannot be understood; it does not repeat the URL, which may
    /// hold a password.
    pub fn from_url(url: &str, password: Option<String>) -> Result<Self, ReplicationError> {
        let url = Url::parse(url).map_err(|error| bad(error.to_string()))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(bad("it does not begin with postgres://"));
        }
        let mut read = Read::begin(&url)?;
        for (key, value) in url.query_pairs() {
            read.pair(&key, &value)?;
        }
        read.finish(password)
    }

    /// Host and port or socket, for messages. Never a password.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.host {
            Host::Tcp(host) if host.contains(':') => format!("[{host}]:{}", self.port),
            Host::Tcp(host) => format!("{host}:{}", self.port),
            Host::Socket(folder) => format!("{} (port {})", folder.display(), self.port),
        }
    }

    /// The file of the socket in a folder, as PostgreSQL names it.
    pub(crate) fn socket(&self, folder: &Path) -> PathBuf {
        folder.join(format!(".s.PGSQL.{}", self.port))
    }
}

fn bad(what: impl Into<String>) -> ReplicationError {
    ReplicationError::Url { what: what.into() }
}

fn decoded(text: &str, what: &str) -> Result<String, ReplicationError> {
    let decoded = percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| bad(format!("its {what} is not UTF-8")))?;
    // The startup message ends each value with a zero.
    if decoded.contains('\0') {
        return Err(bad(format!("its {what} has a zero byte")));
    }
    Ok(decoded.into_owned())
}

fn host(text: &str) -> Host {
    if text.starts_with('/') {
        Host::Socket(PathBuf::from(text))
    } else {
        let text = text.strip_prefix('[').unwrap_or(text);
        Host::Tcp(text.strip_suffix(']').unwrap_or(text).to_owned())
    }
}

fn mode(text: &str) -> Result<TlsMode, ReplicationError> {
    Ok(match text {
        "disable" => TlsMode::Disable,
        "allow" | "prefer" => TlsMode::Prefer,
        "require" => TlsMode::Require,
        "verify-ca" => TlsMode::VerifyCa,
        "verify-full" => TlsMode::VerifyFull,
        _ => {
            return Err(bad(
                "its sslmode is none of disable, allow, prefer, require, verify-ca, verify-full",
            ));
        }
    })
}

/// What has been read of a URL.
#[derive(Default)]
struct Read {
    host: Option<Host>,
    port: Option<u16>,
    user: Option<String>,
    password: Option<String>,
    database: Option<String>,
    application_name: Option<String>,
    mode: TlsMode,
    root_certificate: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl Read {
    fn begin(url: &Url) -> Result<Self, ReplicationError> {
        let optional = |text: &str, what| match text {
            "" => Ok(None),
            _ => decoded(text, what).map(Some),
        };
        Ok(Self {
            host: optional(url.host_str().unwrap_or(""), "host")?.map(|text| host(&text)),
            port: url.port(),
            user: optional(url.username(), "user")?,
            password: optional(url.password().unwrap_or(""), "password")?,
            database: optional(url.path().trim_start_matches('/'), "database")?,
            ..Self::default()
        })
    }

    fn pair(&mut self, key: &str, value: &str) -> Result<(), ReplicationError> {
        if value.contains('\0') {
            return Err(bad(format!("its {key} has a zero byte")));
        }
        let path = || Some(PathBuf::from(value));
        let text = || Some(value.to_owned());
        match key {
            "host" => self.host = Some(host(value)),
            "hostaddr" => {
                let _: std::net::IpAddr = value
                    .parse()
                    .map_err(|_| bad("its hostaddr is no IP address"))?;
                self.host = Some(host(value));
            }
            "port" => {
                let port = value.parse().map_err(|_| bad("its port is no port"))?;
                self.port = Some(port);
            }
            "user" => self.user = text(),
            "password" => self.password = text(),
            "dbname" => self.database = text(),
            "application_name" => self.application_name = text(),
            "sslmode" | "ssl-mode" => self.mode = mode(value)?,
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" => self.root_certificate = path(),
            "sslcert" | "ssl-cert" => self.certificate = path(),
            "sslkey" | "ssl-key" => self.key = path(),
            _ => {}
        }
        Ok(())
    }

    fn finish(self, password: Option<String>) -> Result<Address, ReplicationError> {
        let client = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
            (None, None) => None,
            _ => return Err(bad("sslcert and sslkey have to be given together")),
        };
        let port = self.port.unwrap_or(DEFAULT_PORT);
        let user = match self.user.or_else(account::own_name) {
            Some(user) => user,
            None => return Err(bad("it names no user, and this account has no name")),
        };
        let host = self.host.unwrap_or_else(|| default_host(port));
        let password = password
            .or(self.password)
            .or_else(|| from_password_file(&host, port, self.database.as_deref(), &user));
        Ok(Address {
            host,
            port,
            user,
            password,
            database: self.database,
            application_name: (self.application_name)
                .unwrap_or_else(|| DEFAULT_APPLICATION_NAME.to_owned()),
            tls: Tls {
                mode: self.mode,
                root_certificate: self.root_certificate,
                client,
            },
        })
    }
}

fn from_password_file(
    host: &Host,
    port: u16,
    database: Option<&str>,
    user: &str,
) -> Option<String> {
    let hosts: Vec<&str> = match host {
        Host::Tcp(host) => vec![host],
        Host::Socket(folder) => folder.to_str().into_iter().chain(["localhost"]).collect(),
    };
    let databases: Vec<&str> = database.into_iter().chain(["replication"]).collect();
    password_file::password(&Purpose {
        hosts: &hosts,
        port,
        databases: &databases,
        user,
    })
}

/// The socket of this host, if there is one, as `psql` without a host does.
fn default_host(port: u16) -> Host {
    SOCKET_FOLDERS
        .iter()
        .map(Path::new)
        .find(|folder| folder.join(format!(".s.PGSQL.{port}")).exists())
        .map_or_else(
            || Host::Tcp("localhost".to_owned()),
            |folder| Host::Socket(folder.to_owned()),
        )
}

#[cfg(test)]
mod tests;
