//! PCI: one bus with up to 32 single-function devices, reached by ECAM and by ports 0xCF8/0xCFC.
//!
//! ```text
//!  vCPU ──► Ecam, ConfigPorts ──► PciHost ──► Mutex<dyn PciFunction>    configuration space
//!  vCPU ──► Bus (MMIO) ─────────────────────► Mutex<dyn BusDevice>      memory behind a BAR
//! ```
//!
//! Both right-hand sides are usually one object: an `Arc<Mutex<T>>` where `T` is a function and a bus device.
//! A function holds a [`ConfigSpace`] and, if it interrupts, an `Arc<Msix>`. [`PciHost`] owns the slots
//! and alone knows where each BAR is on the bus. Everything but [`Msix::trigger`] runs on vCPU threads.
//!
//! There is no INTx: functions interrupt by MSI-X or not at all.

pub mod bar;
pub mod config;
pub mod host;
pub mod msix;

use std::sync::{Arc, Mutex};

use crate::bus::Effect;

pub use bar::{BarAllocator, BarError, BarKind, Windows};
pub use config::{ConfigError, ConfigSpace, Identity, MsixLayout, Written};
pub use host::{Addresses, BridgeState, ConfigPorts, Ecam, PciError, PciHost, PortsState};
pub use msix::{Msix, MsixState};

/// One BAR's change of place, as told to its function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BarMove {
    /// Which BAR (0 to 5).
    pub bar: u8,
    /// Where it answered until now; `None` if nowhere.
    pub from: Option<u64>,
    /// Where it answers from now on; `None` if nowhere.
    pub to: Option<u64>,
    /// Its length in bytes.
    pub len: u64,
}

/// A function as the guest's configuration accesses see it.
///
/// Offsets are below 4096 and so is the end of every access; its length and alignment are the guest's choice.
pub trait PciFunction: Send {
    /// The function's configuration space.
    fn config(&self) -> &ConfigSpace;

    /// The function's configuration space, for the host to place its BARs.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// The guest reads `data.len()` bytes at `offset`.
    fn config_read(&mut self, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// The guest writes `data` at `offset`. A function with MSI-X overrides this, and passes
    /// [`Written::msix_control`] on to its [`Msix::set_control`].
    fn config_write(&mut self, offset: usize, data: &[u8]) -> Effect {
        self.config_mut().write(offset, data).effect()
    }

    /// One of the BARs now answers elsewhere, or nowhere: doorbells in it must follow.
    fn bar_moved(&mut self, moved: &BarMove) {
        let _ = moved;
    }
}

/// A function as the host holds it.
pub type SharedFunction = Arc<Mutex<dyn PciFunction>>;
