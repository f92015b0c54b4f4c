//! What can go wrong between a registry and the store.

use std::io;

use super::credentials;
use crate::digest::Digest;
use crate::oci;
use crate::oci::spec;
use crate::store::StoreError;

/// An image cannot be pulled or pushed. Nothing in it is secret: addresses are without their parameters.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry cannot be reached, or stopped answering.
    #[error("{registry} does not answer")]
    Unreachable {
        /// The registry's host, or that of a service which it sends us to.
        registry: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The registry speaks TLS, but nobody who is trusted says that it is who it says.
    #[error(
        "{registry} is not trusted: put the certificate of its authority into /etc/docker/certs.d/{registry}/ca.crt, or name its file with \
         SSL_CERT_FILE; --insecure believes anybody"
    )]
    Untrusted {
        /// The registry's host, or that of a service which it sends us to.
        registry: String,
        /// What is wrong with its certificate.
        #[source]
        source: io::Error,
    },
    /// The environment names a proxy that is none.
    #[error("the variable {variable} has no address of a proxy: write it as in http://HOST:PORT")]
    Proxy {
        /// The variable. What it holds may be secret.
        variable: &'static str,
    },
    /// The certificates of this machine cannot be read.
    #[error(
        "cannot read the certificates of authorities in {path}: install ca-certificates, or set SSL_CERT_FILE"
    )]
    Certificates {
        /// Where they should be.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Whoever asks is not known, or may not.
    #[error(
        "{registry} does not let {who} do this with {repository}: log in to it with docker login, or check the name"
    )]
    Denied {
        /// The registry.
        registry: String,
        /// `you` or `anybody`.
        who: &'static str,
        /// What was asked for.
        repository: String,
    },
    /// It is not there.
    #[error("{registry} has no {what}")]
    Missing {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// The registry refuses, or fails.
    #[error("{registry} answers {status} to {what}{said}")]
    Status {
        /// The registry.
        registry: String,
        /// HTTP's status.
        status: u16,
        /// What was asked for.
        what: String,
        /// What it said, behind a colon.
        said: String,
    },
    /// The registry does what it must not do.
    #[error("{registry} breaks the protocol: {why}")]
    Protocol {
        /// The registry.
        registry: String,
        /// What it did.
        why: String,
    },
    /// What came is not what was asked for.
    #[error("{registry} sent something else than {wanted}: its digest is {got}")]
    Digest {
        /// The registry.
        registry: String,
        /// What was asked for.
        wanted: Digest,
        /// What came.
        got: Digest,
    },
    /// Credentials cannot be had.
    #[error(transparent)]
    Credentials(#[from] credentials::Error),
    /// A document is none that skiff can use.
    #[error(transparent)]
    Document(#[from] spec::Error),
    /// It is no image that skiff can use.
    #[error(transparent)]
    Image(#[from] oci::Error),
    /// The store cannot take it, or does not have it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of the store cannot be read or written.
    #[error("cannot {what}")]
    Io {
        /// Such as `write /x`.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Io { what: what.into(), source }
    }
}
