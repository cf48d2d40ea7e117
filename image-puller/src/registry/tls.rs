//! TLS: who is trusted, and the sessions' settings.

use std::io::Read;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::http2;
use super::url::Origin;

/// Where the guest image has the roots of trust.
pub const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Most bytes of PEM that are read from one source.
pub const ROOTS_BYTES_MAX: u64 = 4 << 20;
/// What ALPN calls HTTP/1.1.
const HTTP_1: &[u8] = b"http/1.1";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    #[error("certificate authority {at} of the request is not PEM with certificates: {reason}")]
    Pem { at: usize, reason: String },
    #[error("client certificate for {registry}: {reason}")]
    Identity { registry: String, reason: String },
    #[error("the TLS settings do not hold together: {0}")]
    Settings(String),
}

/// Settings for hosts whose certificate must be good, and for those declared insecure.
#[derive(Clone)]
pub struct Trust {
    verified: Arc<ClientConfig>,
    /// For proxies, which are spoken to in HTTP/1.1.
    pub proxy: Arc<ClientConfig>,
    unverified: Arc<ClientConfig>,
    /// The same two for the hosts that this client shows a certificate to.
    identified: Vec<(Registry, [Arc<ClientConfig>; 2])>,
}

/// A certificate chain and its key, both PEM, and whom they are for.
pub struct Identity<'a> {
    pub registry: Registry,
    pub chain: &'a str,
    pub key: &'a str,
}

/// `host` or `host:port`, in lower case; without a port it is https's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry(String);

impl Registry {
    pub fn new(text: &str) -> Self {
        Self(text.to_ascii_lowercase())
    }

    fn is(&self, origin: &Origin) -> bool {
        self.0 == origin.authority() || self.0 == format!("{}:{}", origin.host, origin.port)
    }
}

impl Trust {
    /// The roots that came with the guest image, and those of the request (PEM texts). A root of the image that this
    /// library cannot use is passed over; one that somebody asked for must be good.
    pub fn new(extra: &[String], identities: &[Identity<'_>]) -> Result<Self, TrustError> {
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
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let settings = |error: rustls::Error| TrustError::Settings(error.to_string());
        let builder = |verify: bool| {
            let builder = ClientConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .map_err(settings)?;
            Ok::<_, TrustError>(match verify {
                true => builder.with_root_certificates(roots.clone()),
                false => builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider.clone()))),
            })
        };
        let finish = |mut config: ClientConfig| {
            config.alpn_protocols = vec![http2::PROTOCOL.to_vec(), HTTP_1.to_vec()];
            Arc::new(config)
        };
        let mut proxy = builder(true)?.with_no_client_auth();
        proxy.alpn_protocols = vec![HTTP_1.to_vec()];
        let anonymous = |verify| Ok::<_, TrustError>(finish(builder(verify)?.with_no_client_auth()));
        let identified = identities.iter().map(|identity| {
            let failed =
                |reason: String| TrustError::Identity { registry: identity.registry.0.clone(), reason };
            let with = |verify| {
                let (chain, key) = read_identity(identity).map_err(failed)?;
                let config = builder(verify)?.with_client_auth_cert(chain, key);
                config.map(finish).map_err(|error| failed(error.to_string()))
            };
            Ok((identity.registry.clone(), [with(true)?, with(false)?]))
        });
        Ok(Self {
            verified: anonymous(true)?,
            proxy: proxy.into(),
            unverified: anonymous(false)?,
            identified: identified.collect::<Result<_, TrustError>>()?,
        })
    }

    pub fn settings(&self, origin: &Origin, unverified: bool) -> &Arc<ClientConfig> {
        let identified = self.identified.iter().find(|(registry, _)| registry.is(origin));
        match (identified, unverified) {
            (Some((_, [verified, _])), false) => verified,
            (Some((_, [_, unverified])), true) => unverified,
            (None, false) => &self.verified,
            (None, true) => &self.unverified,
        }
    }
}

type Chain = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Says nothing of the key's text, also where it is wrong.
fn read_identity(identity: &Identity<'_>) -> Result<Chain, String> {
    let chain = CertificateDer::pem_slice_iter(identity.chain.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| "the certificate is not PEM")?;
    if chain.is_empty() {
        return Err("there is no certificate in it".into());
    }
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(|_| "there is no PEM key")?;
    Ok((chain, key))
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
