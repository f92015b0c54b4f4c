//! What a user can ask of a VM's networks.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{LimitSpec, ParseError};

/// The fields of a [`NetSpec`], by the names that text and files give them.
pub const NET_KEYS: &[&str] = &[
    "tap",
    "fd",
    "user",
    "mac",
    "mtu",
    "queues",
    "bandwidth",
    "bandwidth-burst",
    "ops",
    "ops-burst",
    "burst",
];
/// The most queue pairs of one network device.
pub const MAX_NET_QUEUES: u16 = 8;

/// One network device of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NetSpec {
    /// Where its frames go.
    #[serde(flatten)]
    pub backend: NetBackend,
    /// The guest's address; by default one is made from the VM's name and the device's position, the same at each start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// The largest packet that the guest is told to send, 68 to 65520 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// How many queue pairs, 1 to [`MAX_NET_QUEUES`]; by default 1. `user` has one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<u16>,
    /// What each direction may do in a time.
    #[serde(flatten)]
    pub limit: LimitSpec,
}

/// Where a network device's frames go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetBackend {
    /// The host's tap device of this name.
    Tap(String),
    /// An open tap device, inherited as this file descriptor.
    Fd(i32),
    /// The user's own network, by passt.
    User,
}

/// A MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac(pub [u8; 6]);

/// A port of the host that leads to one of the guest: `[ADDRESS:]HOST:GUEST[/tcp|/udp]`. It needs a `user` network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP connections.
    #[default]
    Tcp,
    /// UDP datagrams.
    Udp,
}

impl FromStr for Mac {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::Mac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        // A multicast address is no device's, and neither is that of nobody.
        if parts.next().is_some() || bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(bad());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
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
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(bad);
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

impl From<PortForward> for String {
    fn from(port: PortForward) -> Self {
        port.to_string()
    }
}

impl TryFrom<String> for PortForward {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}
