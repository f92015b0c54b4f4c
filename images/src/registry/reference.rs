//! [`Reference`]: where an image is in a registry.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::digest::Digest;
use crate::name::{DEFAULT_TAG, Name};

/// The registry that nobody wrote.
pub const DOCKER_HUB: &str = "docker.io";
/// The host that speaks for it.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`, as docker and others read it: what has no host is docker.io's, and there, what has no
/// owner is `library`'s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text is no [`Reference`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} does not say where an image is: write it as in registry.example:5000/team/app:1.2 or docker.io/library/debian:12"
)]
pub struct ReferenceError(String);

impl Reference {
    /// The registry as users name it: `docker.io`, `localhost:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The host, perhaps with a port, that is asked.
    #[must_use]
    pub fn host(&self) -> &str {
        if self.registry == DOCKER_HUB { DOCKER_HUB_HOST } else { &self.registry }
    }

    /// What is asked for there.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The digest, if one is said.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The tag: what is said, or `latest`.
    #[must_use]
    pub fn tag(&self) -> &str {
        self.tag.as_deref().unwrap_or(DEFAULT_TAG)
    }

    /// What a manifest is asked for by: the digest if one is said, otherwise the tag.
    #[must_use]
    pub fn target(&self) -> String {
        self.digest.map_or_else(|| self.tag().to_owned(), |digest| digest.to_string())
    }

    /// Whether its registry is this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let (host, _) = split_port(&self.registry);
        let address = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// What an image from here is called: nothing if only a digest is said.
    #[must_use]
    pub fn name(&self) -> Option<Name> {
        if self.digest.is_some() && self.tag.is_none() {
            return None;
        }
        let short = self.registry == DOCKER_HUB;
        let repository = match self.repository.strip_prefix("library/") {
            Some(owned) if short => owned.to_owned(),
            _ if short => self.repository.clone(),
            _ => format!("{}/{}", self.registry, self.repository),
        };
        format!("{repository}:{}", self.tag()).parse().ok()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match (&self.tag, &self.digest) {
            (None, Some(digest)) => write!(f, "@{digest}"),
            (Some(tag), Some(digest)) => write!(f, ":{tag}@{digest}"),
            _ => write!(f, ":{}", self.tag()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let wrong = || ReferenceError(text.chars().take(100).collect());
        if text.len() > 512 {
            return Err(wrong());
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let (registry, rest) = match rest.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
            _ => (DOCKER_HUB, rest),
        };
        if !is_host(registry) {
            return Err(wrong());
        }
        let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
        // The grammar of what is left is that of a name without a host.
        let name: Name = rest.parse().map_err(|_| wrong())?;
        if name.repository().contains(':') {
            return Err(wrong());
        }
        let tag = rest.contains(':').then(|| name.tag().to_owned());
        let repository = match name.repository() {
            plain if registry == DOCKER_HUB && !plain.contains('/') => format!("library/{plain}"),
            other => other.to_owned(),
        };
        Ok(Self { registry: registry.to_ascii_lowercase(), repository, tag, digest })
    }
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        // A colon within brackets is of an address.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (host, None),
    }
}

fn is_host(text: &str) -> bool {
    let (host, port) = split_port(text);
    let port_fits = port.is_none_or(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_fits = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(is_label),
    };
    port_fits && host_fits
}

fn is_label(label: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    label.len() <= 63
        && ends(label.bytes().next())
        && ends(label.bytes().last())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_not_said_is_what_docker_takes() {
        for (text, host, repository, target, name) in [
            ("debian", DOCKER_HUB_HOST, "library/debian", "latest", "debian:latest"),
            ("debian:12", DOCKER_HUB_HOST, "library/debian", "12", "debian:12"),
            ("docker.io/debian:12", DOCKER_HUB_HOST, "library/debian", "12", "debian:12"),
            ("team/app", DOCKER_HUB_HOST, "team/app", "latest", "team/app:latest"),
            ("localhost/app:1", "localhost", "app", "1", "localhost/app:1"),
            ("localhost:5000/a/b:1", "localhost:5000", "a/b", "1", "localhost:5000/a/b:1"),
            ("Ghcr.io/a/b", "ghcr.io", "a/b", "latest", "ghcr.io/a/b:latest"),
        ] {
            let read: Reference = text.parse().unwrap();
            assert_eq!(
                (read.host(), read.repository(), read.target().as_str()),
                (host, repository, target),
                "{text}"
            );
            assert_eq!(read.name().unwrap().to_string(), name, "{text}");
            // It is written with the tag that nobody wrote.
            let again: Reference = read.to_string().parse().unwrap();
            assert_eq!((again.host(), again.repository(), again.target()), (host, repository, read.target()));
        }
    }

    #[test]
    fn a_digest_is_what_is_asked_for() {
        let digest = Digest::of(b"");
        let alone: Reference = format!("reg.example/app@{digest}").parse().unwrap();
        assert_eq!((alone.target(), alone.name()), (digest.to_string(), None));
        let both: Reference = format!("reg.example/app:1@{digest}").parse().unwrap();
        assert_eq!(
            (both.target(), both.name().unwrap().to_string()),
            (digest.to_string(), "reg.example/app:1".to_owned())
        );
    }

    #[test]
    fn only_this_machine_is_loopback() {
        for (host, local) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.9.9.9:5000", true),
            ("[::1]:5000", true),
            ("localhost.example", false),
            ("127.0.0.1.example", false),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(format!("{host}/app").parse::<Reference>().unwrap().is_loopback(), local, "{host}");
        }
    }

    #[test]
    fn nothing_that_leads_elsewhere_is_a_reference() {
        for text in [
            "",
            "/",
            "a//b",
            "../etc",
            "reg.example/../a",
            "reg.example/a:",
            "reg.example:0/a",
            "reg.example:99999/a",
            "reg.example:+5/a",
            "user@reg.example/a",
            "reg.example/a@sha256:12",
            "http://reg.example/a",
            "reg.example/a b",
            "reg.example/A",
            "reg..example/a",
            "-x.example/a",
            "[::1/a",
            "reg.example/a?x=1",
            "reg.example/a:b/c",
            "reg.example\r\n/a",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_fall_over(text: String) {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn a_reference_is_read_as_it_is_written(host in "[a-z]{1,5}\\.[a-z]{2}(:[1-9][0-9]{0,3})?", path in "[a-z0-9]{1,5}(/[a-z0-9]{1,5}){0,3}", tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,9}") {
            let read: Reference = format!("{host}/{path}:{tag}").parse().unwrap();
            prop_assert_eq!(read.registry(), host.as_str());
            prop_assert_eq!(read.repository(), path.as_str());
            prop_assert_eq!(read.tag(), tag.as_str());
            prop_assert_eq!(read.to_string().parse(), Ok(read));
        }
    }
}
