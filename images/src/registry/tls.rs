//! Whom we trust to say that a registry is who it says: the authorities of this machine, and those that docker trusts for one registry.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::error::Error;
use super::reference::Reference;

/// Where distributions keep the certificates of authorities.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// Where docker keeps those of single registries.
const DOCKER: &str = "/etc/docker/certs.d";
/// The most bytes of a file of certificates.
const MAX_BUNDLE: u64 = 16 << 20;

/// Where the certificates of authorities are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorities {
    /// Of those that say who anybody is; `None`: where distributions keep them.
    pub file: Option<PathBuf>,
    /// Below this, `HOST[:PORT]/*.crt` are of those that say who one registry is.
    pub registries: PathBuf,
}

impl Default for Authorities {
    /// `$SSL_CERT_FILE`, and docker's.
    fn default() -> Self {
        let given = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty());
        Self { file: given.map(PathBuf::from), registries: DOCKER.into() }
    }
}

/// How TLS is spoken with the registry of `reference`; if `insecure`, with whoever answers.
pub(super) fn config(
    reference: &Reference,
    authorities: &Authorities,
    insecure: bool,
) -> Result<TlsConfig, Error> {
    let builder = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .disable_verification(insecure);
    if insecure {
        return Ok(builder.root_certs(RootCerts::new_with_certs(&[])).build());
    }
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |source| Error::Certificates { path, source }
    };
    let found = || BUNDLES.iter().map(PathBuf::from).find(|path| path.exists());
    let path = authorities.file.clone().or_else(found).unwrap_or_else(|| PathBuf::from(BUNDLES[0]));
    let mut certificates = match load(&path) {
        // Those of a registry of this machine may do without.
        Err(_) if reference.is_loopback() => Vec::new(),
        loaded => loaded.map_err(failed(&path))?,
    };
    for entry in fs::read_dir(authorities.registries.join(reference.host())).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "crt") {
            certificates.extend(load(&path).map_err(failed(&path))?);
        }
    }
    Ok(builder.root_certs(RootCerts::new_with_certs(&certificates)).build())
}

/// Whether a peer cannot say that it is who it should be.
pub(super) fn is_untrusted(error: &ureq::Error) -> bool {
    let of_certificate = |error: &rustls::Error| matches!(error, rustls::Error::InvalidCertificate(_));
    match error {
        ureq::Error::Rustls(error) => of_certificate(error),
        ureq::Error::Io(error) => {
            error.get_ref().and_then(|inner| inner.downcast_ref()).is_some_and(of_certificate)
        }
        _ => false,
    }
}

fn load(path: &Path) -> io::Result<Vec<Certificate<'static>>> {
    if fs::metadata(path)?.len() > MAX_BUNDLE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is no file of certificates"));
    }
    let pem = fs::read(path)?;
    let certificates = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    Ok(certificates.collect())
}
