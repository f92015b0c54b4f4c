//! Registries of images, by the OCI distribution specification 1.1: `pull` and `push`.
//!
//! A registry is hostile: every length and digest is checked, every body bounded, and credentials go to nobody but the registry itself and
//! the service of tokens that it names. Layers are fetched and sent by a few threads of their own that end with the call.

mod address;
mod challenge;
mod client;
pub mod credentials;
mod download;
mod error;
mod proxy;
mod pull;
mod push;
mod reference;
mod tls;
mod transfer;
mod upload;
mod vm;

use std::path::PathBuf;
use std::time::Duration;

pub use error::Error;
pub use proxy::Proxies;
pub use pull::pull;
pub use push::push;
pub use reference::{Reference, ReferenceError};
pub use tls::Authorities;

/// How registries are spoken to.
#[derive(Clone, Debug)]
pub struct Options {
    /// Speak HTTP without TLS, to any registry. One of this machine is spoken to so if it has no TLS.
    pub plain_http: bool,
    /// Believe a registry without a certificate.
    pub insecure: bool,
    /// Whom we trust to say that a registry is who it says.
    pub authorities: Authorities,
    /// Through whom registries are reached.
    pub proxies: Proxies,
    /// docker's `config.json`, where credentials are; see [`credentials::default_path`].
    pub config: Option<PathBuf>,
    /// How long to wait before the first second try; it is doubled each time.
    pub patience: Duration,
    /// How long a registry may be silent.
    pub stall: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            plain_http: false,
            insecure: false,
            authorities: Authorities::default(),
            proxies: Proxies::of_environment(),
            config: credentials::default_path(),
            patience: Duration::from_millis(500),
            stall: Duration::from_secs(60),
        }
    }
}
