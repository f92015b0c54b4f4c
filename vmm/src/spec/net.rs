//! What a user can ask of a VM's networks.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::limit::LimitDraft;
use super::options::{Given, Names, Part, Value, text_and_table};
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
/// The MTUs that a guest can be told, in bytes: from IPv4's least to what fits a virtio-net buffer with its headers.
pub const MTUS: RangeInclusive<u16> = 68..=65520;
/// The longest name of a network interface in bytes, its final NUL not counted (IFNAMSIZ).
pub const MAX_TAP_NAME: usize = devices::net::tap::MAX_NAME;

/// One network device of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetSpec {
    /// Where its frames go.
    pub backend: NetBackend,
    /// The guest's address; by default one is made from the VM's name and the device's position, the same at each start.
    pub mac: Option<Mac>,
    /// The largest packet that the guest is told to send, 68 to 65520 bytes.
    pub mtu: Option<u16>,
    /// How many queue pairs, 1 to [`MAX_NET_QUEUES`]; by default 1. `user` has one only.
    pub queues: Option<u16>,
    /// What each direction may do in a time.
    pub limit: LimitSpec,
}

/// Where a network device's frames go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetBackend {
    /// The host's tap device of this name.
    Tap(String),
    /// An open tap device, inherited as this file descriptor.
    Fd(i32),
    /// The user's own network, by passt.
    User,
}

/// A MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl NetSpec {
    /// The network that leads to `backend`, with every default.
    #[must_use]
    pub fn new(backend: NetBackend) -> Self {
        Self { backend, mac: None, mtu: None, queues: None, limit: LimitSpec::default() }
    }
}

impl FromStr for Mac {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::Mac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            // By itself, `from_str_radix` takes a sign.
            let hex = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            let part = parts.next().filter(hex).ok_or_else(bad)?;
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

impl fmt::Display for NetBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap(name) => write!(f, "tap={name}"),
            Self::Fd(fd) => write!(f, "fd={fd}"),
            Self::User => f.write_str("user"),
        }
    }
}

text_and_table!(NetSpec);

/// A network while it is read.
#[derive(Default)]
pub struct Draft {
    backend: Option<NetBackend>,
    mac: Option<Mac>,
    mtu: Option<u16>,
    queues: Option<u16>,
    limit: LimitDraft,
}

impl Draft {
    fn lead(&mut self, backend: NetBackend) -> Result<(), ParseError> {
        match self.backend.replace(backend) {
            None => Ok(()),
            Some(_) => Err(ParseError::Backends),
        }
    }
}

impl Part for NetSpec {
    const NAMES: &'static Names = &Names {
        whose: "the network's",
        one: "a network",
        keys: NET_KEYS,
        bare: None,
        lacks: "says not where the network leads: write tap=NAME, fd=N or user",
        example: "tap=tap0",
    };
    type Draft = Draft;

    fn set(draft: &mut Draft, given: Given) -> Result<(), ParseError> {
        match given.key {
            "tap" => draft.lead(NetBackend::Tap(given.text("the name of a tap device")?))?,
            "fd" => draft.lead(NetBackend::Fd(given.number("the number of an open file descriptor")?))?,
            "user" => match given.switch() {
                Ok(true) => draft.lead(NetBackend::User)?,
                // `user = false` says less than nothing.
                _ => return Err(given.refused("user alone, or leave it out")),
            },
            "mac" => draft.mac = Some(given.text("six bytes such as 52:54:00:12:34:56")?.parse()?),
            "mtu" => draft.mtu = Some(given.number("a number from 68 to 65520")?),
            "queues" => draft.queues = Some(given.number("a number from 1 to 8")?),
            _ => draft.limit.set(given)?,
        }
        Ok(())
    }

    fn finish(draft: Draft, subject: &str) -> Result<Self, ParseError> {
        Ok(Self {
            backend: draft.backend.ok_or_else(|| Self::NAMES.lacking(subject))?,
            mac: draft.mac,
            mtu: draft.mtu,
            queues: draft.queues,
            limit: draft.limit.finish()?,
        })
    }

    fn pairs(&self) -> Vec<(&'static str, Value)> {
        let mut pairs = vec![match &self.backend {
            NetBackend::Tap(name) => ("tap", Value::text(name)),
            NetBackend::Fd(fd) => ("fd", u64::try_from(*fd).map_or_else(|_| Value::text(fd), Value::Number)),
            NetBackend::User => ("user", Value::Bare),
        }];
        pairs.extend(self.mac.map(|mac| ("mac", Value::text(mac))));
        pairs.extend(self.mtu.map(|mtu| ("mtu", Value::Number(mtu.into()))));
        pairs.extend(self.queues.map(|queues| ("queues", Value::Number(queues.into()))));
        pairs.extend(self.limit.pairs());
        pairs
    }
}
