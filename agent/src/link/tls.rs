//! TLS 1.3 on both sides, with certificates on both sides, checked by rules of our own: Swarm's
//! certificates name no hosts, so what counts is the authority, the cluster and the role.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName,
    Error, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::identity::{Identity, Role, Who};

/// A certificate may begin this far in the future: its authority's clock need not be ours. One that
/// has ended is given no such grace.
const EARLY: Duration = Duration::from_secs(24 * 3600);

/// Both sides, ready for use.
#[derive(Clone, Debug)]
pub struct Tls {
    /// This node.
    pub who: Who,
    /// To be connected to.
    pub server: Arc<ServerConfig>,
    /// To connect.
    pub client: Arc<ClientConfig>,
}

impl Tls {
    /// Makes both sides of an identity. Fails if its parts do not belong together.
    pub fn new(identity: &Identity) -> Result<Self, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (roots, inner) = authority(identity, &provider)?;
        let versions = &[&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(Arc::new(OfClients { inner, provider: provider.clone() }))
            .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
        // No resumption: every connection shows its certificate anew.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![b"h2".to_vec()];
        let verifier =
            OfManagers { cluster: identity.who.cluster.clone(), roots, provider: provider.clone() };
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?;
        client.resumption = Resumption::disabled();
        client.alpn_protocols = vec![b"h2".to_vec()];
        client.enable_sni = false;
        Ok(Self { who: identity.who.clone(), server: Arc::new(server), client: Arc::new(client) })
    }
}

/// The authority, and who tells whether it has issued a certificate.
fn authority(
    identity: &Identity,
    provider: &Arc<CryptoProvider>,
) -> Result<(Arc<RootCertStore>, Arc<dyn ClientCertVerifier>), Error> {
    let mut roots = RootCertStore::empty();
    for root in &identity.roots {
        roots.add(root.clone())?;
    }
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    Ok((roots, verifier))
}

/// Whether other nodes of its cluster would take an identity, as far as it can be told without them. Its
/// parts may be of different makers.
pub fn holds_together(identity: &Identity, now: SystemTime) -> Result<(), Error> {
    Tls::new(identity)?;
    let (_, verifier) = authority(identity, &Arc::new(rustls::crypto::ring::default_provider()))?;
    let (leaf, others) = identity.chain.split_first().ok_or(Error::NoCertificatesPresented)?;
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    allowing_early(UnixTime::since_unix_epoch(now), |now| {
        verifier.verify_client_cert(leaf, others, now)
    })
    .map(drop)
}

/// Tries once more with a clock that is ahead, if a certificate is not valid yet.
fn allowing_early<T>(
    now: UnixTime,
    check: impl Fn(UnixTime) -> Result<T, Error>,
) -> Result<T, Error> {
    use CertificateError::{NotValidYet, NotValidYetContext};
    match check(now) {
        Err(Error::InvalidCertificate(NotValidYet | NotValidYetContext { .. })) => {
            let later = Duration::from_secs(now.as_secs()).saturating_add(EARLY);
            check(UnixTime::since_unix_epoch(later))
        }
        outcome => outcome,
    }
}

/// Signatures are the provider's business on both sides; each side has a trait of its own for it.
macro_rules! signatures_by_provider {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls12_signature(message, cert, dss, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, cert, dss, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

/// What a hub asks of whoever connects: the authority. Cluster and role are looked at when the
/// request is there, so that a refusal can say why.
#[derive(Debug)]
struct OfClients {
    inner: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for OfClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: the authorities of two clusters are of one name.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        allowing_early(now, |now| self.inner.verify_client_cert(end_entity, intermediates, now))
    }

    signatures_by_provider!();
}

/// What a client asks of whom it has connected to: the authority, the cluster, and the role.
#[derive(Debug)]
struct OfManagers {
    cluster: String,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OfManagers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        allowing_early(now, |now| {
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &self.roots,
                intermediates,
                now,
                algorithms,
            )
        })?;
        // Who it is beyond that, `fit_to_serve` says where the reason can be told. Here it is
        // only refused, so that nothing is ever sent to it.
        let fits = Who::of(end_entity).is_ok_and(|who| fit_to_serve(&who, &self.cluster).is_ok());
        if !fits {
            return Err(Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ));
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures_by_provider!();
}

fn fit_to_serve(who: &Who, cluster: &str) -> Result<(), String> {
    fit_to_join(who, cluster)?;
    match who.role {
        Role::Manager => Ok(()),
        Role::Worker => Err(format!("{} is a worker; only managers may serve", who.node)),
    }
}

/// Whether a node belongs to this cluster.
pub fn fit_to_join(who: &Who, cluster: &str) -> Result<(), String> {
    if who.cluster == cluster {
        return Ok(());
    }
    Err(format!("{} is of cluster {}, this is cluster {cluster}", who.node, who.cluster))
}

/// What went wrong with a connection, in words: an error of TLS is found within others.
pub fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(tls) = cause.downcast_ref::<Error>() {
            return in_words(tls);
        }
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(tls) = inner.and_then(|inner| inner.downcast_ref::<Error>()) {
            return in_words(tls);
        }
        next = cause.source();
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    // Beyond HTTP/2 only the text of an error of TLS is left.
    let alert = text.split_once("received fatal alert: ").map(|(_, alert)| alert.to_owned());
    for known in [
        AlertDescription::CertificateExpired,
        AlertDescription::UnknownCA,
        AlertDescription::AccessDenied,
    ] {
        if alert.as_ref().is_some_and(|alert| alert.starts_with(&format!("{known:?}"))) {
            return in_words(&Error::AlertReceived(known));
        }
    }
    text
}

fn in_words(error: &Error) -> String {
    use CertificateError as Bad;
    match error {
        Error::InvalidCertificate(bad) => match bad {
            Bad::Expired | Bad::ExpiredContext { .. } => {
                "the other node's certificate has expired (or a clock is wrong)".into()
            }
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                "the other node's certificate is not valid yet (or a clock is wrong)".into()
            }
            Bad::UnknownIssuer | Bad::BadSignature => {
                "the other node's certificate is of another authority: another cluster?".into()
            }
            Bad::ApplicationVerificationFailure => "the other node is no manager of this cluster: \
                only managers may serve the link"
                .into(),
            other => format!("the other node's certificate is no good: {other}"),
        },
        Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => {
                "the other node says that this node's certificate has expired (or a clock is wrong)"
                    .into()
            }
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                "the other node says that this node's certificate is of another authority: another \
                 cluster?"
                    .into()
            }
            AlertDescription::AccessDenied => {
                "the other node says that this node is no manager of its cluster".into()
            }
            other => format!("the other node ended the handshake: {other:?}"),
        },
        Error::NoCertificatesPresented => "the other node showed no certificate".into(),
        other => other.to_string(),
    }
}
