//! The client's side of TLS: how much is asked of the server's certificate.

use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use crate::{Address, ReplicationError, TlsMode};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Everything that a handshake needs.
pub(crate) struct Client {
    place: String,
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Client {
    /// Reads the files that the address names.
    pub(crate) async fn new(host: &str, address: &Address) -> Result<Self, ReplicationError> {
        let failed = |source: Cause| ReplicationError::Tls {
            place: address.place(),
            source,
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(error.into()))?;
        let verifier = verifier(address, &provider).await?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(error.into()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match &address.tls.client {
            None => builder.with_no_client_auth(),
            Some(client) => {
                let chain = certificates(&client.certificate).await?;
                let key = PrivateKeyDer::from_pem_slice(&read(&client.key).await?)
                    .map_err(|error| unusable(&client.key, error))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| unusable(&client.key, error))?
            }
        };
        Ok(Self {
            place: address.place(),
            connector: TlsConnector::from(Arc::new(config)),
            name,
        })
    }

    /// Encrypts a connection whose server has agreed to it.
    pub(crate) async fn handshake(
        self,
        socket: TcpStream,
    ) -> Result<TlsStream<TcpStream>, ReplicationError> {
        let place = self.place;
        self.connector
            .connect(self.name, socket)
            .await
            .map_err(|source| error(place, source))
    }
}

/// A failed read or write: the encryption's fault, or that of the connection below it.
pub(crate) fn error(place: String, source: std::io::Error) -> ReplicationError {
    if source.get_ref().is_some_and(|cause| cause.is::<Error>()) {
        ReplicationError::Tls {
            place,
            source: source.into(),
        }
    } else {
        ReplicationError::Down { place, source }
    }
}

async fn verifier(
    address: &Address,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, ReplicationError> {
    let mode = address.tls.mode;
    if !matches!(mode, TlsMode::VerifyCa | TlsMode::VerifyFull) {
        return Ok(Arc::new(Anybody(Arc::clone(provider))));
    }
    let mut roots = RootCertStore::empty();
    match &address.tls.root_certificate {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(path) => {
            for certificate in certificates(path).await? {
                roots
                    .add(certificate)
                    .map_err(|error| unusable(path, error))?;
            }
        }
    }
    let strict =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
    let strict = strict.map_err(|error| ReplicationError::Tls {
        place: address.place(),
        source: error.into(),
    })?;
    Ok(match mode {
        TlsMode::VerifyFull => strict,
        _ => Arc::new(AnyName(strict)),
    })
}

async fn read(path: &Path) -> Result<Vec<u8>, ReplicationError> {
    tokio::fs::read(path)
        .await
        .map_err(|error| unusable(path, error))
}

async fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ReplicationError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&read(path).await?)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(path, error))?;
    if certificates.is_empty() {
        return Err(unusable(path, "there is no certificate in it"));
    }
    Ok(certificates)
}

fn unusable(path: &Path, cause: impl Into<Cause>) -> ReplicationError {
    ReplicationError::CertificateFile {
        path: path.to_owned(),
        source: cause.into(),
    }
}

/// Takes every certificate, but only from who has its key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.0.signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Takes every certificate of a trusted authority, whoever it is made out to.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // The name is the last thing that is checked.
        match self
            .0
            .verify_server_cert(certificate, between, name, ocsp, now)
        {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
