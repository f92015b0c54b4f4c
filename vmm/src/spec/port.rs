//! Ports of the host that lead into the guest.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::ParseError;
use super::text::text;

/// A port of the host that leads to one of the guest: `[ADDRESS:]HOST:GUEST[/tcp|/udp]`. It needs a `user` network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortForward {
    /// Where the host listens; everywhere if `None`.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
    /// What is forwarded.
    pub protocol: Protocol,
}

/// What a [`PortForward`] forwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// TCP connections.
    #[default]
    Tcp,
    /// UDP datagrams.
    Udp,
}

impl FromStr for PortForward {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::Port(text.to_owned());
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(bad()),
        };
        let port = |text: &str| {
            // By itself, `parse` takes a plus sign.
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u16>().ok().filter(|port| digits && *port != 0).ok_or_else(bad)
        };
        let (rest, guest) = ports.rsplit_once(':').ok_or_else(bad)?;
        let (address, host) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((address, host)) => {
                let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
                (Some(bare.unwrap_or(address).parse().map_err(|_| bad())?), host)
            }
        };
        Ok(Self { address, host: port(host)?, guest: port(guest)?, protocol })
    }
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address @ IpAddr::V6(_)) => write!(f, "[{address}]:")?,
            Some(address) => write!(f, "{address}:")?,
            None => {}
        }
        write!(f, "{}:{}", self.host, self.guest)?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

text!(PortForward, "127.0.0.1:8080:80");
