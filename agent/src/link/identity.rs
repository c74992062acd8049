//! Who a node is: its certificate, its key, and the authority that it trusts. From Swarm's own PKI
//! or from the operator's.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use weir_mesh::cluster::NodeId;
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

/// What a certificate lets its node do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Speaks for the services, and serves the view.
    Manager,
    /// Speaks about its own tasks only.
    Worker,
}

/// Whom a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// The node (CN).
    pub node: NodeId,
    /// What it may do (OU).
    pub role: Role,
    /// The cluster (O).
    pub cluster: String,
    /// When the certificate ends, by the wall clock.
    pub until: SystemTime,
}

/// The three files of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Certificates of the authority, PEM; several while it is being replaced.
    pub ca: PathBuf,
    /// The node's certificate and what leads from it to the authority, PEM.
    pub certificate: PathBuf,
    /// The node's key, PEM.
    pub key: PathBuf,
}

/// What the files hold.
#[derive(Debug)]
pub struct Identity {
    /// This node.
    pub who: Who,
    /// The authority's certificates.
    pub roots: Vec<CertificateDer<'static>>,
    /// The node's certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {path:?}: {cause}; {remedy}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
        /// What helps.
        remedy: &'static str,
    },
    /// The key is locked.
    #[error(
        "the key {path:?} is encrypted: this Swarm has autolock on, and only dockerd can read its \
         managers' keys; give every node a certificate of your own (weir ca init, weir ca issue) \
         in link.ca, link.certificate and link.key"
    )]
    Locked {
        /// Its file.
        path: PathBuf,
    },
    /// A file holds something else.
    #[error("{path:?}: {problem}; give it {wanted}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What would be right.
        wanted: &'static str,
    },
    /// It is another node's.
    #[error(
        "{path:?} is the certificate of {named}, and this node is {node}; set node.name, or issue one \
         with weir ca issue --node {node}"
    )]
    Stranger {
        /// The certificate.
        path: PathBuf,
        /// This node.
        node: NodeId,
        /// Whose it is.
        named: NodeId,
    },
    /// The parts do not fit together.
    #[error("{path:?}: {problem}; the certificate, the key and the authority must belong together")]
    Unfit {
        /// The certificate.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

const CERTIFICATES: &str = "one or more PEM certificates (BEGIN CERTIFICATE)";
const KEY: &str = "a PEM private key (BEGIN PRIVATE KEY or BEGIN EC PRIVATE KEY)";

// === impl Files ===

impl Files {
    /// Where dockerd keeps the identity of a Swarm node.
    pub fn of_swarm(docker_root: &Path) -> Self {
        let directory = docker_root.join("swarm/certificates");
        Self {
            ca: directory.join("swarm-root-ca.crt"),
            certificate: directory.join("swarm-node.crt"),
            key: directory.join("swarm-node.key"),
        }
    }

    /// Reads all three.
    pub fn read(&self) -> Result<Identity, Error> {
        let roots = certificates(&self.ca)?;
        let chain = certificates(&self.certificate)?;
        let content = |problem| Error::Content {
            path: self.certificate.clone(),
            problem,
            wanted: "a certificate of Swarm or of weir ca issue",
        };
        let leaf = chain.first().ok_or_else(|| content("no certificate".into()))?;
        let who = Who::of(leaf).map_err(content)?;
        let key = private_key(&self.key)?;
        Ok(Identity { who, roots, chain, key })
    }

    /// The bytes of all three, to notice a change. Those that cannot be read are empty.
    pub fn fingerprint(&self) -> [Vec<u8>; 3] {
        [&self.ca, &self.certificate, &self.key].map(|path| std::fs::read(path).unwrap_or_default())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|cause| Error::Read {
        path: path.to_owned(),
        remedy: match cause.kind() {
            io::ErrorKind::NotFound => {
                "is this node in a Swarm, and is Docker's data root mounted? Or set link.ca, \
                 link.certificate and link.key"
            }
            _ => "the agent must run as root to read it",
        },
        cause,
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read(path)?;
    let content =
        |problem: String| Error::Content { path: path.to_owned(), problem, wanted: CERTIFICATES };
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| content(error.to_string()))?;
    if found.is_empty() {
        return Err(content("no certificate".into()));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let text = String::from_utf8_lossy(&read(path)?).into_owned();
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(Error::Locked { path: path.to_owned() });
    }
    // Swarm keeps notes about its raft store in headers of the PEM block (kek-version, raft-dek),
    // which RFC 7468 does not know: they are lines with a colon, which base64 never has. Dashes
    // mark the lines that begin and end the block.
    let plain: String = text
        .lines()
        .filter(|line| line.starts_with('-') || !line.contains(':'))
        .filter(|line| !line.trim().is_empty())
        .flat_map(|line| [line, "\n"])
        .collect();
    PrivateKeyDer::from_pem_slice(plain.as_bytes()).map_err(|error| Error::Content {
        path: path.to_owned(),
        problem: error.to_string(),
        wanted: KEY,
    })
}

// === impl Who ===

impl Who {
    /// Reads whom a certificate names; what is wrong with it otherwise.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(|error| format!("not an X.509 certificate: {error}"))?;
        let subject = parsed.subject();
        let node = only(subject.iter_common_name(), "CN (node)", subject)?;
        let unit = only(subject.iter_organizational_unit(), "OU (role)", subject)?;
        let cluster = only(subject.iter_organization(), "O (cluster)", subject)?;
        let role = match unit.as_str() {
            "swarm-manager" | "weir-manager" => Role::Manager,
            "swarm-worker" | "weir-worker" => Role::Worker,
            other => return Err(format!("OU = {other:?} is neither a manager nor a worker")),
        };
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let until = UNIX_EPOCH + Duration::from_secs(seconds);
        Ok(Self { node: NodeId::new(node), role, cluster, until })
    }

    /// How long the certificate is still good; nothing if it has ended.
    pub fn left(&self) -> Duration {
        self.until.duration_since(SystemTime::now()).unwrap_or_default()
    }
}

/// The one attribute of a kind: with two of them nobody could say which counts.
fn only<'a>(
    mut found: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
    what: &str,
    subject: &X509Name<'_>,
) -> Result<String, String> {
    let text = found.next().and_then(|attribute| attribute.as_str().ok()).unwrap_or_default();
    match (text.is_empty(), found.next()) {
        (false, None) => Ok(text.to_owned()),
        (true, _) => Err(format!("its subject ({subject}) has no {what}")),
        (false, Some(_)) => Err(format!("its subject ({subject}) has more than one {what}")),
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Manager => "manager",
            Self::Worker => "worker",
        })
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of cluster {}", self.role, self.node, self.cluster)
    }
}
