//! From a spec's networks to open back ends: the one place that knows every kind of them.
//!
//! They are opened once, on the thread that starts the VM, and belong to [`Host`](crate::host::Host): a reboot of the guest
//! finds its networks as they were.

use std::sync::Arc;

use devices::limit::Limiter;
use devices::net::Backend;
use devices::net::passt;
use devices::net::tap::{Tap, TapError};
use devices::virtio::net::{NetLimiters, NetOptions};

use crate::passt::{Options, Passt, PasstError};
use crate::spec::{NetBackend, NetSpec, PortForward, VmSpec};

/// A network cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A tap cannot.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A user network cannot.
    #[error(transparent)]
    Passt(#[from] PasstError),
}

/// One open network.
#[derive(Clone)]
pub(crate) struct Network {
    /// Where its frames go.
    pub(crate) backend: Arc<dyn Backend>,
    /// How it presents itself to the guest.
    pub(crate) options: NetOptions,
    /// Each direction has the whole limit for itself. Here and not with the device, so that a reboot fills no bucket.
    pub(crate) limiters: NetLimiters,
}

/// Open all networks of the VM called `name`.
///
/// # Errors
/// The first that cannot be used, named.
pub(crate) fn open_all(spec: &VmSpec, name: &str) -> Result<Vec<Network>, NetError> {
    // The first user network is the one that the host's ports lead to.
    let mut ports = Some(spec.ports.as_slice());
    let open_one = |(position, net): (usize, &NetSpec)| {
        let mac = net.mac.map_or_else(|| address(name, position), |mac| mac.0);
        let user = matches!(net.backend, NetBackend::User);
        let ports = if user { ports.take().unwrap_or_default() } else { &[] };
        // Without segments larger than a frame, large frames are what makes it fast.
        let mtu = net.mtu.or(user.then_some(passt::MTU));
        let limiter = || Limiter::new(net.limit.limits());
        let limiters = NetLimiters { receive: limiter(), transmit: limiter() };
        Ok(Network { backend: open(net, mac, ports)?, options: NetOptions { mac, mtu }, limiters })
    };
    spec.nets.iter().enumerate().map(open_one).collect()
}

/// Open the back end that `spec` names, for a guest with address `mac`.
fn open(spec: &NetSpec, mac: [u8; 6], ports: &[PortForward]) -> Result<Arc<dyn Backend>, NetError> {
    let pairs = spec.queues.unwrap_or(1);
    match &spec.backend {
        NetBackend::Tap(name) => Ok(Arc::new(Tap::open(name, pairs)?)),
        NetBackend::Fd(fd) => Ok(Arc::new(Tap::inherit(*fd, pairs)?)),
        NetBackend::User => {
            let mtu = spec.mtu.unwrap_or(passt::MTU);
            Ok(Arc::new(Passt::start(&Options { mac, mtu, ports })?))
        }
    }
}

/// The address of network `position` of the VM called `name`, if none is asked for: always the same, locally administered
/// (its second hexadecimal digit is 2), and most likely nobody else's.
fn address(name: &str, position: usize) -> [u8; 6] {
    // FNV-1a with a final mix: a few bytes of it are as good as all. It must never change.
    let bytes = name.bytes().chain([0]).chain((position as u64).to_le_bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let [_, _, _, a, b, c, d, e] = hash.to_be_bytes();
    [0x02, a, b, c, d, e]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stay_and_differ() {
        assert_eq!(address("web", 0), address("web", 0));
        let both = |name| [address(name, 0), address(name, 1)];
        let mut all: Vec<_> = ["web", "db", "web1", ""].into_iter().flat_map(both).collect();
        assert!(all.iter().all(|mac| mac[0] == 2));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8);
        // Guests know their networks by them: the same for ever.
        assert_eq!(address("web", 0), [0x02, 0x0b, 0x8d, 0x11, 0x9d, 0xc3]);
    }
}
