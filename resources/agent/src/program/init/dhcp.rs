//! DHCP (RFC 2131, RFC 2132) as values: packets out of wishes, leases out of packets. What comes from the network is hostile.

use std::net::Ipv4Addr;

use crate::interfaces::Mac;

/// Options begin with this (RFC 2131, 3).
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Of the fixed part, with the cookie.
const FIXED: usize = 240;
/// BOOTP's least length of a message: servers may drop shorter ones.
const LEAST: usize = 300;
const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
const UDP: u8 = 17;
/// Name servers that are kept: the C library reads no more.
const MAX_SERVERS: usize = 3;
/// A lease is not renewed more often than this, in seconds.
const SHORTEST: u32 = 60;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Is there a server?
    Discover,
    /// This address, from this server.
    Request { address: Ipv4Addr, server: Ipv4Addr },
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Offer(Lease),
    Ack(Lease),
    Nak,
}

/// An address for a while, and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub mask: Ipv4Addr,
    pub router: Option<Ipv4Addr>,
    pub name_servers: Vec<Ipv4Addr>,
    pub domain: Option<String>,
    pub mtu: Option<u16>,
    pub server: Ipv4Addr,
    /// `u32::MAX` is for ever.
    pub seconds: u32,
}

impl Lease {
    /// What a resolver reads.
    pub fn resolv_conf(&self) -> String {
        let search = self.domain.iter().map(|domain| format!("search {domain}\n"));
        let servers = self.name_servers.iter().map(|server| format!("nameserver {server}\n"));
        search.chain(servers).collect()
    }
}

/// The whole IP packet that says `wish` from an interface without an address. `transaction` is drawn by the client.
pub fn packet(wish: Wish, transaction: u32, mac: Mac) -> Vec<u8> {
    let message = message(wish, transaction, mac);
    let udp_len = message.len().saturating_add(8) as u16;
    let len = udp_len.saturating_add(20);
    let mut packet = vec![0x45, 0x10];
    packet.extend(len.to_be_bytes());
    // No fragments; 64 hops; the checksum follows.
    packet.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    packet.extend(Ipv4Addr::UNSPECIFIED.octets());
    packet.extend(Ipv4Addr::BROADCAST.octets());
    let sum = checksum(&packet);
    packet.splice(10..12, sum.to_be_bytes());
    packet.extend(CLIENT_PORT.to_be_bytes());
    packet.extend(SERVER_PORT.to_be_bytes());
    packet.extend(udp_len.to_be_bytes());
    // No checksum: RFC 768 allows that.
    packet.extend([0, 0]);
    packet.extend(message);
    packet
}

fn message(wish: Wish, transaction: u32, mac: Mac) -> Vec<u8> {
    // BOOTREQUEST, Ethernet, addresses of six bytes.
    let mut message = vec![1, 1, 6, 0];
    message.extend(transaction.to_be_bytes());
    // The answer is to be broadcast: the interface has no address yet.
    message.extend([0, 0, 0x80, 0]);
    message.extend([0; 16]);
    message.extend(mac);
    message.resize(FIXED - COOKIE.len(), 0);
    message.extend(COOKIE);
    match wish {
        Wish::Discover => message.extend([53, 1, 1]),
        Wish::Request { address, server } => {
            message.extend([53, 1, 3, 50, 4]);
            message.extend(address.octets());
            message.extend([54, 4]);
            message.extend(server.octets());
        }
    }
    // Mask, router, name servers, domain, MTU, lease.
    message.extend([55, 6, 1, 3, 6, 15, 26, 51, 57, 2]);
    message.extend(1500u16.to_be_bytes());
    message.push(255);
    message.resize(message.len().max(LEAST), 0);
    message
}

/// RFC 1071, of a header.
fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks(2).map(|pair| {
        let byte = |at: usize| u32::from(pair.get(at).copied().unwrap_or(0));
        byte(0) << 8 | byte(1)
    });
    let sum = words.fold(0u32, u32::saturating_add);
    let folded = (sum & 0xffff).saturating_add(sum >> 16);
    !((folded & 0xffff).saturating_add(folded >> 16) as u16)
}

/// The reply in an IP packet, if it is one to this client. A wrong checksum was seen by the kernel.
pub fn reply(packet: &[u8], transaction: u32, mac: Mac) -> Option<Reply> {
    let header = usize::from(packet.first()? & 0x0f).saturating_mul(4);
    let fragment = u16::from_be_bytes(*packet.get(6..8)?.first_chunk()?) & 0x3fff;
    if packet.first()? >> 4 != 4 || header < 20 || *packet.get(9)? != UDP || fragment != 0 {
        return None;
    }
    let total = usize::from(u16::from_be_bytes(*packet.get(2..4)?.first_chunk()?));
    let udp = packet.get(header..total)?;
    if udp.get(2..4)? != CLIENT_PORT.to_be_bytes() {
        return None;
    }
    let message = udp.get(8..)?;
    let ours = *message.first()? == 2
        && message.get(4..8)? == transaction.to_be_bytes()
        && message.get(28..34)? == mac
        && message.get(FIXED - COOKIE.len()..FIXED)? == COOKIE;
    if ours { parse(address_at(message, 16)?, message.get(FIXED..)?) } else { None }
}

fn address_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    bytes.get(at..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}

fn parse(address: Ipv4Addr, mut options: &[u8]) -> Option<Reply> {
    let mut kind = None;
    let mut lease = Lease {
        address,
        mask: Ipv4Addr::new(255, 255, 255, 0),
        router: None,
        name_servers: Vec::new(),
        domain: None,
        mtu: None,
        server: Ipv4Addr::UNSPECIFIED,
        seconds: u32::MAX,
    };
    while let Some((code, rest)) = options.split_first() {
        if *code == 255 {
            break;
        }
        if *code == 0 {
            options = rest;
            continue;
        }
        let (len, rest) = rest.split_first()?;
        let (value, rest) = rest.split_at_checked(usize::from(*len))?;
        options = rest;
        match code {
            1 => lease.mask = address_at(value, 0)?,
            3 => lease.router = address_at(value, 0),
            6 => {
                let servers = value.chunks_exact(4).filter_map(|chunk| address_at(chunk, 0));
                lease.name_servers = servers.take(MAX_SERVERS).collect();
            }
            15 => lease.domain = domain(value),
            26 => {
                lease.mtu = value.first_chunk().map(|mtu| u16::from_be_bytes(*mtu)).filter(|mtu| *mtu >= 576)
            }
            51 => lease.seconds = u32::from_be_bytes(*value.first_chunk()?).max(SHORTEST),
            53 => kind = value.first().copied(),
            54 => lease.server = address_at(value, 0)?,
            _ => {}
        }
    }
    let usable = !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast();
    match kind? {
        2 if usable => Some(Reply::Offer(lease)),
        5 if usable => Some(Reply::Ack(lease)),
        6 => Some(Reply::Nak),
        _ => None,
    }
}

/// It is written into a file: nothing but a name may be in it.
fn domain(value: &[u8]) -> Option<String> {
    let value = std::str::from_utf8(value).ok()?.trim_end_matches('\0');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (!value.is_empty() && value.bytes().all(plain)).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    /// A server's packet with these options.
    fn served(options: &[u8]) -> Vec<u8> {
        let mut packet = packet(Wish::Discover, 7, MAC);
        packet.truncate(28 + FIXED);
        packet[20..24].copy_from_slice(&[0, 67, 0, 68]);
        packet[28] = 2;
        packet[28 + 16..28 + 20].copy_from_slice(&[10, 0, 2, 15]);
        packet.extend_from_slice(options);
        let len = (packet.len() as u16).to_be_bytes();
        packet[2..4].copy_from_slice(&len);
        packet
    }

    const OPTIONS: &[u8] = &[
        53, 1, 5, 1, 4, 255, 255, 0, 0, 3, 4, 10, 0, 2, 2, 0, 6, 8, 1, 1, 1, 1, 8, 8, 8, 8, 51, 4, 0, 0, 14,
        16, 54, 4, 10, 0, 2, 1, 26, 2, 5, 0xdc, 15, 4, b'a', b'.', b'b', 0, 255,
    ];

    #[test]
    fn a_lease_is_read_with_all_that_belongs_to_it() {
        let Some(Reply::Ack(lease)) = reply(&served(OPTIONS), 7, MAC) else { panic!("no lease") };
        assert_eq!(
            (lease.address, lease.mask),
            ("10.0.2.15".parse().unwrap(), "255.255.0.0".parse().unwrap())
        );
        assert_eq!(
            (lease.router, lease.server),
            (Some("10.0.2.2".parse().unwrap()), "10.0.2.1".parse().unwrap())
        );
        assert_eq!((lease.seconds, lease.mtu), (3600, Some(1500)));
        assert_eq!(lease.resolv_conf(), "search a.b\nnameserver 1.1.1.1\nnameserver 8.8.8.8\n");
    }

    #[test]
    fn what_is_for_others_is_passed_over() {
        let packet = served(OPTIONS);
        assert_eq!(reply(&packet, 8, MAC), None);
        assert_eq!(reply(&packet, 7, [2; 6]), None);
        assert_eq!(reply(&served(&[53, 1, 6, 255]), 7, MAC), Some(Reply::Nak));
        assert_eq!(reply(&served(&[53, 1, 5, 1, 200, 1]), 7, MAC), None);
        assert_eq!(reply(&super::packet(Wish::Discover, 7, MAC), 7, MAC), None);
    }

    #[test]
    fn a_domain_is_a_name_and_nothing_else() {
        let hostile = [53, 1, 5, 15, 5, b'a', b'\n', b'x', b' ', b'y', 255];
        let Some(Reply::Ack(lease)) = reply(&served(&hostile), 7, MAC) else { panic!("no lease") };
        assert_eq!(lease.domain, None);
    }

    #[test]
    fn a_wish_is_a_whole_packet() {
        let wish = Wish::Request { address: Ipv4Addr::new(10, 0, 2, 15), server: Ipv4Addr::new(10, 0, 2, 1) };
        let packet = packet(wish, 7, MAC);
        assert_eq!(checksum(&packet[..20]), 0);
        assert_eq!(packet.len(), usize::from(u16::from_be_bytes([packet[2], packet[3]])));
        assert!(packet.windows(6).any(|part| part == [50, 4, 10, 0, 2, 15]));
    }

    proptest! {
        #[test]
        fn no_packet_is_fatal(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = reply(&bytes, 7, MAC);
        }

        #[test]
        fn no_options_are_fatal(options in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(Reply::Ack(lease) | Reply::Offer(lease)) = reply(&served(&options), 7, MAC) {
                prop_assert!(lease.name_servers.len() <= MAX_SERVERS);
                prop_assert!(lease.seconds >= SHORTEST);
            }
        }
    }
}
