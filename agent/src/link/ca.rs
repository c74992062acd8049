//! The operator's own authority, for clusters without Swarm or with autolock: `weir ca init` and
//! `weir ca issue`. Certificates have the shape of Swarm's.

use std::{
    fs, io,
    io::Write,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identity::{Files, Role};

/// The authority's certificate, in its directory.
pub const CA_CERTIFICATE: &str = "weir-ca.crt";
/// The authority's key, in its directory. Whoever has it can make any node.
pub const CA_KEY: &str = "weir-ca.key";

/// Days that an authority is good for.
const CA_DAYS: i64 = 3650;
/// Clocks may differ: what is made now was good an hour ago already, as with Swarm.
const BACKDATED: Duration = Duration::HOUR;

/// What a certificate is issued for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The node, as it is named in the mesh.
    pub node: String,
    /// What it may do.
    pub role: Role,
    /// Its addresses, for whoever looks at the certificate; the link does not.
    pub addresses: Vec<IpAddr>,
    /// Days that it is good for.
    pub days: u32,
}

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is there already.
    #[error("{0:?} is there already; remove it or choose another directory")]
    Exists(PathBuf),
    /// A file cannot be read or written.
    #[error("{path:?}: {cause}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The authority's files are no good.
    #[error("{path:?}: {problem}; name the directory that weir ca init has made")]
    Authority {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A name that no certificate can have.
    #[error("--{flag} {value:?}: a name is 1 to 64 letters, digits, dots, dashes or underscores")]
    Name {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
    },
    /// A number of days that is out of range.
    #[error("--days {0}: write a number from 1 to 3650")]
    Days(u32),
    /// The certificate could not be made.
    #[error("cannot make the certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// Makes an authority in `directory` for a cluster, which gets a name by chance unless it has one.
pub fn init(directory: &Path, cluster: Option<&str>) -> Result<PathBuf, Error> {
    let drawn = format!("weir-{:016x}", rand::random::<u64>());
    let cluster = cluster.unwrap_or(&drawn);
    check_name("cluster", cluster)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "weir-ca");
    params.distinguished_name.push(DnType::OrganizationName, cluster);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, CA_DAYS);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?;
    make_directory(directory)?;
    let (crt, pem) = (directory.join(CA_CERTIFICATE), directory.join(CA_KEY));
    absent(&crt)?;
    write_new(&pem, &key.serialize_pem(), 0o600)?;
    write_new(&crt, &certificate.pem(), 0o644)?;
    Ok(crt)
}

/// Issues a certificate by the authority in `directory`: `<node>.crt` and `<node>.key`.
pub fn issue(directory: &Path, request: &Request) -> Result<Files, Error> {
    check_name("node", &request.node)?;
    if request.days == 0 || i64::from(request.days) > CA_DAYS {
        return Err(Error::Days(request.days));
    }
    let (ca, ca_key) = (directory.join(CA_CERTIFICATE), directory.join(CA_KEY));
    let authority = |path: &Path, problem: String| Error::Authority { path: path.into(), problem };
    let ca_pem = fs::read_to_string(&ca).map_err(|cause| authority(&ca, cause.to_string()))?;
    let key_pem =
        fs::read_to_string(&ca_key).map_err(|cause| authority(&ca_key, cause.to_string()))?;
    let cluster = cluster_of(&ca_pem).map_err(|problem| authority(&ca, problem))?;
    let signer =
        KeyPair::from_pem(&key_pem).map_err(|error| authority(&ca_key, error.to_string()))?;
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, signer)
        .map_err(|error| authority(&ca, error.to_string()))?;
    let role = match request.role {
        Role::Manager => "weir-manager",
        Role::Worker => "weir-worker",
    };
    let mut params = CertificateParams::new(vec![request.node.clone(), role.to_owned()])?;
    let addresses = request.addresses.iter().map(|address| SanType::IpAddress(*address));
    params.subject_alt_names.extend(addresses);
    params.distinguished_name.push(DnType::CommonName, request.node.clone());
    params.distinguished_name.push(DnType::OrganizationalUnitName, role);
    params.distinguished_name.push(DnType::OrganizationName, cluster);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, i64::from(request.days));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.signed_by(&key, &issuer)?;
    let files = Files {
        ca,
        certificate: directory.join(format!("{}.crt", request.node)),
        key: directory.join(format!("{}.key", request.node)),
    };
    absent(&files.certificate)?;
    write_new(&files.key, &key.serialize_pem(), 0o600)?;
    write_new(&files.certificate, &certificate.pem(), 0o644)?;
    Ok(files)
}

fn valid_for(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(days);
}

/// The cluster that an authority is of.
fn cluster_of(pem: &str) -> Result<String, String> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| error.to_string())?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
    let name = parsed.subject().iter_organization().next();
    let name = name.and_then(|name| name.as_str().ok()).map(str::to_owned);
    name.ok_or_else(|| "this authority names no cluster (O)".to_owned())
}

/// Names become file names.
fn check_name(flag: &'static str, value: &str) -> Result<(), Error> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if (1..=64).contains(&value.len()) && value.chars().all(fits) && !value.starts_with('.') {
        return Ok(());
    }
    Err(Error::Name { flag, value: value.to_owned() })
}

fn make_directory(path: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|cause| Error::File { path: path.to_owned(), cause })
}

fn absent(path: &Path) -> Result<(), Error> {
    if path.exists() { Err(Error::Exists(path.to_owned())) } else { Ok(()) }
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = opened.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|cause| match cause.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists(path.to_owned()),
        _ => Error::File { path: path.to_owned(), cause },
    })
}
