//! What of each virtio device is saved: what its guest can see that is neither a register of the transport nor a fact of the spec.

use serde::{Deserialize, Serialize};

pub use super::fs::{FsHandle, FsNode, FsSession, FsState};
use crate::state::{Hex, RestoreError};

/// The state of a device, by its type. Queues and registers are the transport's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// virtio-net.
    Net(NetState),
    /// virtio-blk.
    Block(BlockState),
    /// virtio-console.
    Console(ConsoleState),
    /// virtio-rng.
    Rng(RngState),
    /// virtio-balloon.
    Balloon(BalloonState),
    /// virtio-vsock.
    Vsock(VsockState),
    /// virtio-fs.
    Fs(FsState),
}

impl DeviceState {
    /// What type of device it is of.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Net(_) => "net",
            Self::Block(_) => "block",
            Self::Console(_) => "console",
            Self::Rng(_) => "rng",
            Self::Balloon(_) => "balloon",
            Self::Vsock(_) => "vsock",
            Self::Fs(_) => "fs",
        }
    }

    /// For `device`, which is of another type.
    pub(super) fn is_not(&self, device: &str, wanted: &str) -> RestoreError {
        RestoreError::new(
            device,
            "device",
            format_args!("it is of a {}, and this is a {wanted}", self.name()),
        )
    }
}

/// A network device. Its address is the spec's: a clone has another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NetState {
    /// The guest sees the link up.
    pub link_up: bool,
    /// How many queue pairs the driver uses.
    pub pairs: u16,
    /// The largest packet that the guest was told of, in bytes.
    pub mtu: Option<u16>,
    /// What the driver asked to be given, if it did after the features were agreed on: bits of features.
    pub offloads: Option<u64>,
    /// The receive queues of the pairs that were in use.
    pub receive: Vec<ReceiveState>,
}

/// What a queue pair that receives knows beside its ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReceiveState {
    /// The queue pair.
    pub pair: u16,
    /// The most buffers that the guest has made available there at once: a frame that would fit in so many waits for them.
    pub most: u16,
    /// A frame with its header that was taken from the network and waits.
    pub frame: Option<Hex>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockState {
    /// Its size as the guest read or can read it, in bytes.
    pub size: u64,
    /// That size is new, and the driver was not told.
    pub resized: bool,
    /// The smallest request, in bytes.
    pub logical_block: u32,
    /// The smallest request that is fast, in bytes.
    pub physical_block: u32,
}

/// A console. What was typed and not read is not part of it: it belongs to whoever typed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ConsoleState {
    /// The terminal's width in characters.
    pub columns: u16,
    /// Its height.
    pub rows: u16,
    /// That size is new, and the driver was not told.
    pub resized: bool,
    /// Bytes of the first request in transmitq that were printed already.
    pub sent: u64,
}

/// A random number generator. It has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {}

/// A balloon. All sizes are in pages of 4 KiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BalloonState {
    /// How much it is to hold.
    pub target: u32,
    /// That target is new, and the driver was not told.
    pub resized: bool,
    /// How much it holds, as its driver says.
    pub actual: u32,
    /// What free pages are filled with, as its driver says.
    pub poison: u32,
    /// There is a driver.
    pub driver: bool,
}

/// A vsock. Its connections end where the state is used, for their other ends are in another life; the guest is told so
/// (virtio 1.2, 5.10.6.7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {}
