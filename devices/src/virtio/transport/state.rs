//! What of a transport is saved: its registers, and the device behind it.

use serde::{Deserialize, Serialize};

use crate::pci::MsixState;
use crate::state::Hex;
use crate::virtio::state::DeviceState;

/// A virtio device as its guest sees it, registers and all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TransportState {
    /// The device's name, such as `disk0`.
    pub id: String,
    /// The status register (virtio 1.2, 2.1).
    pub status: u8,
    /// The device served its queues, until it was stopped to be saved.
    pub active: bool,
    /// What the driver accepted.
    pub features: u64,
    /// Which half of the device's features is shown.
    pub device_features_select: u32,
    /// Which half of the driver's features is written.
    pub driver_features_select: u32,
    /// Which queue's registers are shown.
    pub queue_select: u16,
    /// The registers of all queues.
    pub queues: Vec<QueueState>,
    /// The interrupt status.
    pub isr: u8,
    /// The configuration's generation.
    pub generation: u32,
    /// What is particular to the transport.
    pub bus: BusState,
    /// The device.
    pub device: DeviceState,
}

/// The registers of one queue, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct QueueState {
    /// The largest size, in entries.
    pub max: u16,
    /// The size that the driver chose.
    pub size: u16,
    /// The driver enabled it.
    pub ready: bool,
    /// Where the descriptor table is.
    pub desc: u64,
    /// Where the available ring is.
    pub avail: u64,
    /// Where the used ring is.
    pub used: u64,
    /// The available index up to which the device has looked.
    pub next_avail: u16,
    /// The used index that the device has written.
    pub next_used: u16,
}

/// What is particular to one transport.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BusState {
    /// virtio-mmio has a fixed address and a line, and nothing more to save.
    Mmio,
    /// virtio-pci.
    Pci(PciState),
}

/// A virtio device's PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PciState {
    /// The 256 bytes of configuration space.
    pub config: Hex,
    /// The vectors' table.
    pub msix: MsixState,
    /// The configuration's vector.
    pub config_vector: u16,
    /// The queues' vectors.
    pub queue_vectors: Vec<u16>,
}
