//! TLS: who the server is, and who we are.

use std::path::{Path, PathBuf};
use std::process::Command;

use dr_replication::{Address, Connection, ReplicationError};

use crate::cluster::{Home, LIMIT, Server, run, text};

const HBA: &str = "local all all trust
hostssl replication postgres 127.0.0.1/32 trust
hostssl replication clear 127.0.0.1/32 password
hostssl replication guest 127.0.0.1/32 cert
";
/// Whose connections are encrypted.
const ENCRYPTED: &str = "select string_agg(ssl::text, ' ')
    from pg_stat_replication join pg_stat_ssl using (pid)";

/// An authority and what it has signed.
struct Authority {
    folder: PathBuf,
    name: &'static str,
}

impl Authority {
    fn new(folder: &Path, name: &'static str) -> Self {
        let authority = Self {
            folder: folder.to_owned(),
            name,
        };
        let subject = format!("/CN={name}");
        authority.openssl(&[
            "req",
            "-x509",
            "-nodes",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-days",
            "30",
            "-subj",
            &subject,
            "-keyout",
            &format!("{name}.key"),
            "-out",
            &format!("{name}.pem"),
        ]);
        authority
    }

    fn certificate(&self) -> PathBuf {
        self.folder.join(format!("{}.pem", self.name))
    }

    /// `<who>.pem` and `<who>.key`.
    fn sign(&self, who: &str, extension: &str) {
        let (key, request) = (format!("{who}.key"), format!("{who}.csr"));
        self.openssl(&[
            "req",
            "-nodes",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-subj",
            &format!("/CN={who}"),
            "-keyout",
            &key,
            "-out",
            &request,
        ]);
        std::fs::write(self.folder.join("extensions"), extension).unwrap();
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-days",
            "30",
            "-CAcreateserial",
            "-CA",
            &format!("{}.pem", self.name),
            "-CAkey",
            &format!("{}.key", self.name),
            "-extfile",
            "extensions",
            "-out",
            &format!("{who}.pem"),
        ]);
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(&self.folder)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "openssl {arguments:?}: {text}");
    }
}

struct Encrypted {
    server: Server,
    authority: Authority,
    stranger: Authority,
    _certificates: tempfile::TempDir,
}

/// A server whose certificate is made out to `localhost`, and which is talked to in no other way.
async fn server() -> Encrypted {
    let folder = tempfile::Builder::new()
        .prefix("dr-repl-tls")
        .tempdir()
        .unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let stranger = Authority::new(folder.path(), "stranger");
    authority.sign("server", "subjectAltName=DNS:localhost\n");
    authority.sign("guest", "extendedKeyUsage=clientAuth\n");

    let home = Home::new();
    let data = home.initdb("data");
    home.write(&data.join("pg_hba.conf"), HBA);
    let content = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    home.write(&data.join("server.crt"), &content("server.pem"));
    home.write(&data.join("server.key"), &content("server.key"));
    home.write(&data.join("root.crt"), &content("authority.pem"));
    let instance = home.start(&data, &[("ssl", "on"), ("ssl_ca_file", "root.crt")]);
    run(
        &instance,
        &[
            "create role clear replication login password 'geheim'",
            "create role guest replication login",
        ],
    )
    .await;
    Encrypted {
        server: Server { instance, home },
        authority,
        stranger,
        _certificates: folder,
    }
}

impl Encrypted {
    fn address(&self, user: &str, host: &str, query: &str) -> Address {
        let port = self.server.instance.port();
        let url = format!("postgres://{user}@{host}:{port}/?{query}");
        Address::from_url(&url, Some("geheim".to_owned())).unwrap()
    }

    async fn connect(&self, host: &str, query: &str) -> Result<Connection, ReplicationError> {
        Connection::connect(&self.address("postgres", host, query), LIMIT).await
    }
}

fn rooted(mode: &str, authority: &Authority) -> String {
    format!(
        "sslmode={mode}&sslrootcert={}",
        authority.certificate().display()
    )
}

fn is_tls(error: &ReplicationError, what: &str) -> bool {
    matches!(error, ReplicationError::Tls { source, .. } if format!("{source:?}").contains(what))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_right_server_is_talked_to() {
    let encrypted = server().await;
    let right = rooted("verify-full", &encrypted.authority);
    let mut receiver = encrypted.connect("localhost", &right).await.unwrap();
    receiver.identify_system().await.unwrap();
    let shown = text(&encrypted.server.instance, ENCRYPTED).await;
    assert_eq!(shown.as_deref(), Some("true"));

    let error = encrypted.connect("127.0.0.1", &right).await.unwrap_err();
    assert!(is_tls(&error, "NotValidForName"), "{error:?}");
    assert!(!error.is_down());
    assert!(error.hint().unwrap().contains("alternative names"));
    let wrong = rooted("verify-full", &encrypted.stranger);
    let error = encrypted.connect("localhost", &wrong).await.unwrap_err();
    assert!(is_tls(&error, "UnknownIssuer"), "{error:?}");
    // The public authorities have not signed it either.
    let error = encrypted
        .connect("localhost", "sslmode=verify-full")
        .await
        .unwrap_err();
    assert!(is_tls(&error, "UnknownIssuer"), "{error:?}");

    let any_name = rooted("verify-ca", &encrypted.authority);
    encrypted.connect("127.0.0.1", &any_name).await.unwrap();
    let wrong = rooted("verify-ca", &encrypted.stranger);
    let error = encrypted.connect("127.0.0.1", &wrong).await.unwrap_err();
    assert!(is_tls(&error, "UnknownIssuer"), "{error:?}");
    for mode in ["require", "prefer", "allow"] {
        encrypted
            .connect("127.0.0.1", &format!("sslmode={mode}"))
            .await
            .unwrap();
    }
    let error = encrypted
        .connect("127.0.0.1", "sslmode=disable")
        .await
        .unwrap_err();
    assert!(
        matches!(error, ReplicationError::Refused { .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_received_encrypted() {
    use crate::cluster::{Received, in_files, log_end, segment_start, write_log};
    let encrypted = server().await;
    let right = rooted("verify-full", &encrypted.authority);
    let mut receiver = encrypted.connect("localhost", &right).await.unwrap();
    let identity = receiver.identify_system().await.unwrap();
    let from = segment_start(identity.xlogpos);
    let mut stream = receiver
        .start_physical(None, from, identity.timeline)
        .await
        .unwrap();
    let mut received = Received::nothing(from);
    write_log(&encrypted.server.instance).await;
    received
        .until(&mut stream, log_end(&encrypted.server.instance).await)
        .await;
    let data = encrypted.server.instance.data_directory();
    let files = in_files(data, identity.timeline, from, received.end());
    assert!(received.bytes == files, "they are not the same");
    let end = received.end();
    stream.report(end, end, end, true).await.unwrap();
    received.until_answered(&mut stream).await;

    let Encrypted { server, .. } = encrypted;
    let Server { instance, home } = server;
    tokio::task::spawn_blocking(|| instance.kill_all())
        .await
        .unwrap();
    let error = loop {
        if let Err(error) = crate::cluster::next(&mut stream).await {
            break error;
        }
    };
    assert!(error.is_down(), "{error:?}");
    drop(home);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clear_password_goes_through_an_encrypted_connection() {
    let encrypted = server().await;
    let address = encrypted.address("clear", "127.0.0.1", "sslmode=require");
    Connection::connect(&address, LIMIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_says_who_we_are() {
    let encrypted = server().await;
    let folder = &encrypted.authority.folder;
    let own = format!(
        "sslmode=require&sslcert={0}/guest.pem&sslkey={0}/guest.key",
        folder.display()
    );
    let address = encrypted.address("guest", "127.0.0.1", &own);
    Connection::connect(&address, LIMIT).await.unwrap();

    let address = encrypted.address("guest", "127.0.0.1", "sslmode=require");
    let error = Connection::connect(&address, LIMIT).await.unwrap_err();
    assert!(
        matches!(error, ReplicationError::Refused { .. }),
        "{error:?}"
    );

    for bad in ["extensions", "no-such-file"] {
        for kind in ["sslrootcert", "sslcert", "sslkey"] {
            let own = own.replace("sslmode=require", "sslmode=verify-ca");
            let own = format!("{own}&{kind}={}", folder.join(bad).display());
            let address = encrypted.address("guest", "127.0.0.1", &own);
            let error = Connection::connect(&address, LIMIT).await.unwrap_err();
            let named = matches!(&error, ReplicationError::CertificateFile { path, .. }
                if path.ends_with(bad));
            assert!(named, "{kind}: {error:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_encryption_is_talked_to_only_where_it_may_be() {
    let server = Server::start(&[]);
    let port = server.instance.port();
    for (mode, may) in [
        ("disable", true),
        ("prefer", true),
        ("require", false),
        ("verify-ca", false),
        ("verify-full", false),
    ] {
        let url = format!("postgres://postgres@127.0.0.1:{port}/?sslmode={mode}");
        let address = Address::from_url(&url, None).unwrap();
        match Connection::connect(&address, LIMIT).await {
            Ok(_) => assert!(may, "{mode}"),
            Err(error) => {
                assert!(!may, "{mode}: {error:?}");
                assert!(
                    matches!(error, ReplicationError::TlsNotOffered { .. }),
                    "{error:?}"
                );
            }
        }
    }
}
