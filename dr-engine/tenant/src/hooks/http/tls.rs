//! A request over TLS: only to a server that is signed by somebody the system trusts.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;

/// Where a process of this test sends its request.
const URL: &str = "DR_TEST_HOOK_URL";

fn openssl(folder: &Path, line: &str) {
    let output = Command::new("openssl")
        .args(line.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {line}: {said}");
}

/// Two authorities; the first has signed `server.pem`, made out to `localhost`.
fn certificates(folder: &Path) {
    let key = "-nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256";
    for name in ["authority", "stranger"] {
        let line =
            format!("req -x509 {key} -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem");
        openssl(folder, &line);
    }
    let request = format!("req {key} -subj /CN=server -keyout server.key -out server.csr");
    openssl(folder, &request);
    fs::write(folder.join("extensions"), "subjectAltName=DNS:localhost\n").unwrap();
    openssl(
        folder,
        "x509 -req -in server.csr -days 2 -CA authority.pem -CAkey authority.key -CAcreateserial \
         -extfile extensions -out server.pem",
    );
}

/// Answers every request whose body is `null`, until the process ends.
fn serve(folder: &Path) -> SocketAddr {
    let certificate = CertificateDer::from_pem_file(folder.join("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = StreamOwned::new(connection, stream);
            let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
            // Who does not trust us hangs up.
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                heard.extend_from_slice(&buffer[..length]);
                if heard.ends_with(b"null\n") {
                    let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
                    let _ = stream.flush();
                    break;
                }
            }
        }
    });
    address
}

#[tokio::test]
async fn a_request_over_tls_is_made_to_whom_the_system_trusts_only() {
    if let Ok(url) = std::env::var(URL) {
        let hook = HttpHook {
            url,
            method: None,
            headers: std::collections::BTreeMap::new(),
            timeout: None,
        };
        // Said by the panic where it is not so.
        let said = send(&hook, &Value::Null, None).await;
        assert_eq!(said, Ok("204 No Content".to_owned()));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let port = serve(folder.path()).port();
    // Whom a process trusts is in its environment.
    let said = |authority: &str, host: &str| {
        let name = "hooks::http::tls::a_request_over_tls_is_made_to_whom_the_system_trusts_only";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(URL, format!("https://{host}:{port}/rows"))
            .env("SSL_CERT_FILE", folder.path().join(authority))
            .env_remove("SSL_CERT_DIR")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    let (is_made, why) = said("authority.pem", "localhost");
    assert!(is_made, "{why}");
    for (authority, host) in [
        ("stranger.pem", "localhost"),
        ("authority.pem", "127.0.0.1"),
    ] {
        let (is_made, why) = said(authority, host);
        assert!(!is_made && why.contains("certificate"), "{why}");
    }
}
