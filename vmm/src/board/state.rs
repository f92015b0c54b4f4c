//! What of a board is saved, and why one cannot be made of it.

use devices::legacy::power::PowerState;
use devices::legacy::rtc::RtcState;
use devices::legacy::serial::SerialState;
use devices::pci::{BridgeState, PortsState};
use devices::state::RestoreError;
use devices::virtio::transport::TransportState;
use serde::{Deserialize, Serialize};

/// All devices of a machine as its guest sees them. The keyboard controller and pvpanic have no state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct BoardState {
    /// The serial port.
    pub(crate) serial: SerialState,
    /// The clock.
    pub(crate) rtc: RtcState,
    /// The power registers and events.
    pub(crate) power: PowerState,
    /// PCI's configuration ports.
    pub(crate) pci_ports: PortsState,
    /// The PCI host bridge.
    pub(crate) pci_bridge: BridgeState,
    /// First address and length of the window above 4 GiB in which the guest puts PCI memory.
    pub(crate) pci_window_64: Option<(u64, u64)>,
    /// The virtio devices, in the order of their slots.
    pub(crate) virtio: Vec<TransportState>,
}

/// A board cannot be made of a state.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// A device refuses its state.
    #[error(transparent)]
    Device(#[from] RestoreError),
    /// A device that the guest has is not asked for.
    #[error("the guest has {0}, and the spec does not: restore it with the spec that it was saved with")]
    NotInSpec(String),
    /// A device is asked for that the guest does not have.
    #[error("the spec has {0}, and the guest does not: restore it with the spec that it was saved with")]
    NotSaved(String),
    /// Guest memory or the processor's reach is not what it was.
    #[error(
        "PCI memory was at {saved:x?} and is at {here:x?}: the guest's memory or its processors' address width changed"
    )]
    Window {
        /// First address and length, when it was saved.
        saved: Option<(u64, u64)>,
        /// And here.
        here: Option<(u64, u64)>,
    },
}
