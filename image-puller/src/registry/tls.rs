//! TLS: who is trusted, and the sessions' settings.

use std::io::Read;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Where the guest image has the roots of trust.
pub const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Most bytes of PEM that are read from one source.
pub const ROOTS_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    #[error("certificate authority {at} of the request is not PEM with certificates: {reason}")]
    Pem { at: usize, reason: String },
    #[error("the TLS settings do not hold together: {0}")]
    Settings(String),
}

/// Settings for hosts whose certificate must be good, and for those declared insecure.
pub struct Trust {
    pub verified: Arc<ClientConfig>,
    pub unverified: Arc<ClientConfig>,
}

impl Trust {
    /// The roots that came with the guest image, and those of the request (PEM texts). A root of the image that this
    /// library cannot use is passed over; one that somebody asked for must be good.
    pub fn new(extra: &[String]) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        let mut system = Vec::new();
        if let Ok(file) = std::fs::File::open(SYSTEM_ROOTS)
            && file.take(ROOTS_BYTES_MAX).read_to_end(&mut system).is_ok()
        {
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&system).flatten());
        }
        for (at, text) in extra.iter().enumerate() {
            add_extra(&mut roots, text).map_err(|reason| TrustError::Pem { at, reason })?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let settings = |error: rustls::Error| TrustError::Settings(error.to_string());
        let builder =
            || ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let verified = builder().map_err(settings)?.with_root_certificates(roots).with_no_client_auth();
        let unverified = builder()
            .map_err(settings)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider.clone())))
            .with_no_client_auth();
        let finish = |mut config: ClientConfig| {
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Arc::new(config)
        };
        Ok(Self { verified: finish(verified), unverified: finish(unverified) })
    }
}

/// A random number for a DNS question's id.
pub fn random_u16() -> u16 {
    let mut bytes = [0; 2];
    // Without randomness the id is 0: the port is random too, and what is fetched is checked by digest or TLS.
    let _ = rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes);
    u16::from_ne_bytes(bytes)
}

fn add_extra(roots: &mut RootCertStore, text: &str) -> Result<(), String> {
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
        count += 1;
    }
    if count == 0 { Err("there is none".into()) } else { Ok(()) }
}

/// For registries that the request declares insecure: the certificate is not looked at. What comes from there is held
/// to its digests; a tag is then as good as the network.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
