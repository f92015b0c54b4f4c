//! The header before a frame that the guest sends (virtio 1.2, 5.1.6.1): copied once, checked, and written anew.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};

use crate::net::{HEADER, Offloads};

/// The largest frame: an IP packet of 64 KiB with an Ethernet header and a VLAN tag.
pub(super) const MAX_FRAME: u64 = 65535 + 14 + 4;
/// The smallest: an Ethernet header.
pub(super) const MIN_FRAME: u64 = 14;

const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const TCPV4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const TCPV6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;
const UDP_L4: u8 = VIRTIO_NET_HDR_GSO_UDP_L4 as u8;
const ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;

/// Why a frame is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadHeader {
    #[error("a frame of {0} bytes")]
    Length(u64),
    #[error("an offload that was not agreed on")]
    NotAgreed,
    #[error("a checksum outside the frame")]
    Checksum,
    #[error("segments of no bytes, or without a checksum")]
    Segments,
}

/// The header to send a frame of `len` bytes with, for the guest's own, if the guest may send it so.
pub(super) fn check(guest: [u8; HEADER], len: u64, agreed: Offloads) -> Result<[u8; HEADER], BadHeader> {
    if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
        return Err(BadHeader::Length(len));
    }
    let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, ..] = guest;
    let [hdr_len, gso_size, start, offset] = [[h0, h1], [g0, g1], [s0, s1], [o0, o1]].map(u16::from_le_bytes);
    let mut checked = [0; HEADER];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = checked.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    // Flags that are not known are ignored (5.1.6.2.2).
    let needs_csum = flags & NEEDS_CSUM != 0;
    if needs_csum {
        if !agreed.csum {
            return Err(BadHeader::NotAgreed);
        }
        if u64::from(start) + u64::from(offset) + 2 > len {
            return Err(BadHeader::Checksum);
        }
        put(0, &[NEEDS_CSUM]);
        put(6, &start.to_le_bytes());
        put(8, &offset.to_le_bytes());
    }
    if gso_type != NONE {
        let known = match gso_type & !ECN {
            TCPV4 => agreed.tso4,
            TCPV6 => agreed.tso6,
            UDP_L4 => agreed.uso && gso_type & ECN == 0,
            _ => false,
        };
        if !known || gso_type & ECN != 0 && !agreed.ecn {
            return Err(BadHeader::NotAgreed);
        }
        if gso_size == 0 || !needs_csum {
            return Err(BadHeader::Segments);
        }
        put(1, &[gso_type]);
        // A hint (5.1.6.2.2), which is not to point beyond the frame.
        put(2, &(u64::from(hdr_len).min(len) as u16).to_le_bytes());
        put(4, &gso_size.to_le_bytes());
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offloads = Offloads { csum: true, tso4: true, tso6: true, ecn: true, uso: true };

    fn header(flags: u8, gso_type: u8, words: [u16; 4]) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[0] = flags;
        header[1] = gso_type;
        for (field, word) in header[2..10].chunks_mut(2).zip(words) {
            field.copy_from_slice(&word.to_le_bytes());
        }
        header[10] = 7;
        header
    }

    #[test]
    fn good_headers_pass_without_what_means_nothing() {
        // Unknown flags, fields of features that are not used, and num_buffers.
        assert_eq!(check(header(6, 0, [1, 2, 3, 4]), 60, Offloads::default()), Ok([0; HEADER]));
        let mut csum = header(1, 0, [0, 0, 34, 16]);
        csum[10] = 0;
        assert_eq!(check(header(1, 0, [9, 9, 34, 16]), 60, ALL), Ok(csum));
        for kind in [TCPV4, TCPV6, TCPV4 | ECN, UDP_L4] {
            let mut large = header(1, kind, [54, 1448, 34, 16]);
            large[10] = 0;
            assert_eq!(check(header(1, kind, [54, 1448, 34, 16]), 65000, ALL), Ok(large));
        }
        let hint = check(header(1, TCPV4, [u16::MAX, 1448, 34, 16]), 100, ALL).unwrap();
        assert_eq!(hint[2..4], [100, 0]);
    }

    #[test]
    fn frames_have_a_least_and_a_largest_length() {
        for len in [0, 13, MAX_FRAME + 1, u64::MAX] {
            assert_eq!(check([0; HEADER], len, ALL), Err(BadHeader::Length(len)));
        }
        assert!(check([0; HEADER], 14, ALL).is_ok() && check([0; HEADER], MAX_FRAME, ALL).is_ok());
    }

    #[test]
    fn nothing_points_outside_the_frame() {
        for (start, offset) in [(59, 0), (0, 59), (65535, 65535), (34, 25)] {
            assert_eq!(check(header(1, 0, [0, 0, start, offset]), 60, ALL), Err(BadHeader::Checksum));
        }
        assert!(check(header(1, 0, [0, 0, 58, 0]), 60, ALL).is_ok());
    }

    #[test]
    fn segments_have_a_size_and_a_checksum() {
        assert_eq!(check(header(1, TCPV4, [54, 0, 34, 16]), 60, ALL), Err(BadHeader::Segments));
        assert_eq!(check(header(0, TCPV4, [54, 9, 34, 16]), 60, ALL), Err(BadHeader::Segments));
    }

    #[test]
    fn only_what_was_agreed_on_is_sent() {
        let cases = [
            (0, Offloads { csum: false, ..ALL }),
            (TCPV4, Offloads { tso4: false, ..ALL }),
            (TCPV6, Offloads { tso6: false, ..ALL }),
            (TCPV6 | ECN, Offloads { ecn: false, ..ALL }),
            (UDP_L4, Offloads { uso: false, ..ALL }),
            // Fragments of UDP (UFO), ECN without TCP, and what there is not.
            (3, ALL),
            (ECN, ALL),
            (UDP_L4 | ECN, ALL),
            (0x7f, ALL),
        ];
        for (kind, agreed) in cases {
            let header = header(1, kind, [54, 1448, 34, 16]);
            assert_eq!(check(header, 2000, agreed), Err(BadHeader::NotAgreed), "{kind:#x}");
        }
    }
}
