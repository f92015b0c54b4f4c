//! The features and the configuration space of virtio-net (virtio 1.2, 5.1.3 and 5.1.4), as pure functions.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use crate::net::Offloads;
use crate::virtio::device::RING_FEATURES;

/// The length of the configuration space up to `mtu`, in bytes.
pub(super) const CONFIG_LEN: usize = 12;

const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// Whether `feature` is among `features`.
pub(super) fn has(features: u64, feature: u32) -> bool {
    features & bit(feature) != 0
}

/// What the guest is told about its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub mac: [u8; 6],
    pub mtu: Option<u16>,
    pub pairs: u16,
    pub offloads: Offloads,
}

/// What the device offers.
pub(super) fn features(facts: &Facts) -> u64 {
    let Offloads { csum, tso4, tso6, ecn, uso } = facts.offloads;
    let tso = csum && (tso4 || tso6);
    let optional = [
        (facts.mtu.is_some(), bit(VIRTIO_NET_F_MTU)),
        (facts.pairs > 1, bit(VIRTIO_NET_F_MQ)),
        (csum, bit(VIRTIO_NET_F_CSUM) | bit(VIRTIO_NET_F_GUEST_CSUM) | bit(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)),
        (csum && tso4, bit(VIRTIO_NET_F_HOST_TSO4) | bit(VIRTIO_NET_F_GUEST_TSO4)),
        (csum && tso6, bit(VIRTIO_NET_F_HOST_TSO6) | bit(VIRTIO_NET_F_GUEST_TSO6)),
        (tso && ecn, bit(VIRTIO_NET_F_HOST_ECN) | bit(VIRTIO_NET_F_GUEST_ECN)),
        (
            csum && uso,
            bit(VIRTIO_NET_F_HOST_USO) | bit(VIRTIO_NET_F_GUEST_USO4) | bit(VIRTIO_NET_F_GUEST_USO6),
        ),
    ];
    let always = bit(VIRTIO_NET_F_MAC)
        | bit(VIRTIO_NET_F_STATUS)
        | bit(VIRTIO_NET_F_MRG_RXBUF)
        | bit(VIRTIO_NET_F_CTRL_VQ)
        | RING_FEATURES;
    optional.iter().filter(|(on, _)| *on).fold(always, |all, (_, features)| all | features)
}

/// What the guest may send, by what it accepted.
pub(super) fn host_offloads(features: u64) -> Offloads {
    Offloads {
        csum: has(features, VIRTIO_NET_F_CSUM),
        tso4: has(features, VIRTIO_NET_F_HOST_TSO4),
        tso6: has(features, VIRTIO_NET_F_HOST_TSO6),
        ecn: has(features, VIRTIO_NET_F_HOST_ECN),
        uso: has(features, VIRTIO_NET_F_HOST_USO),
    }
}

/// What the guest takes, by what it accepted, or by what it asked for later (5.1.6.5.6.1): the bits are the same.
pub(super) fn guest_offloads(features: u64) -> Offloads {
    Offloads {
        csum: has(features, VIRTIO_NET_F_GUEST_CSUM),
        tso4: has(features, VIRTIO_NET_F_GUEST_TSO4),
        tso6: has(features, VIRTIO_NET_F_GUEST_TSO6),
        ecn: has(features, VIRTIO_NET_F_GUEST_ECN),
        // A back end knows the two of them as one.
        uso: has(features, VIRTIO_NET_F_GUEST_USO4) && has(features, VIRTIO_NET_F_GUEST_USO6),
    }
}

/// The features that [`guest_offloads`] looks at.
pub(super) const GUEST_OFFLOADS: u64 = bit(VIRTIO_NET_F_GUEST_CSUM)
    | bit(VIRTIO_NET_F_GUEST_TSO4)
    | bit(VIRTIO_NET_F_GUEST_TSO6)
    | bit(VIRTIO_NET_F_GUEST_ECN)
    | bit(VIRTIO_NET_F_GUEST_USO4)
    | bit(VIRTIO_NET_F_GUEST_USO6);

/// The configuration space. Fields whose feature is not offered are zero.
pub(super) fn space(facts: &Facts, link_up: bool) -> [u8; CONFIG_LEN] {
    let [a, b, c, d, e, f] = facts.mac;
    let status = if link_up { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
    let [status, pairs, mtu] = [status, facts.pairs, facts.mtu.unwrap_or(0)].map(u16::to_le_bytes);
    [a, b, c, d, e, f, status[0], status[1], pairs[0], pairs[1], mtu[0], mtu[1]]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offloads = Offloads { csum: true, tso4: true, tso6: true, ecn: true, uso: true };

    fn facts(offloads: Offloads) -> Facts {
        Facts { mac: [2, 1, 2, 3, 4, 5], mtu: Some(9000), pairs: 3, offloads }
    }

    #[test]
    fn every_field_is_where_the_specification_puts_it() {
        assert_eq!(space(&facts(ALL), true), [2, 1, 2, 3, 4, 5, 1, 0, 3, 0, 0x28, 0x23]);
        let plain = Facts { mtu: None, ..facts(ALL) };
        assert_eq!(space(&plain, false)[6..], [0, 0, 3, 0, 0, 0]);
    }

    #[test]
    fn what_the_back_end_can_do_is_offered_both_ways() {
        let all = features(&facts(ALL));
        assert_eq!((host_offloads(all), guest_offloads(all)), (ALL, ALL));
        let some = Offloads { uso: false, ..ALL };
        let offered = features(&facts(some));
        assert_eq!((host_offloads(offered), guest_offloads(offered)), (some, some));
        for feature in [VIRTIO_NET_F_MTU, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MAC, VIRTIO_NET_F_CTRL_VQ] {
            assert!(has(all, feature));
        }
    }

    #[test]
    fn nothing_large_goes_without_checksums() {
        let offered =
            features(&Facts { mtu: None, pairs: 1, offloads: Offloads { csum: false, ..ALL }, ..facts(ALL) });
        assert_eq!(host_offloads(offered), Offloads::default());
        assert_eq!(guest_offloads(offered), Offloads::default());
        assert!(!has(offered, VIRTIO_NET_F_MTU) && !has(offered, VIRTIO_NET_F_MQ));
    }
}
