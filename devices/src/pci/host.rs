//! The host bridge: bus 0, its slots, and the two ways that the guest reaches their configuration space.
//!
//! [`PciHost`] is shared by [`Ecam`] (memory-mapped, PCI Express 4.0 §7.2.2), [`ConfigPorts`] (ports
//! 0xCF8/0xCFC, PCI 3.0 §3.2.2.3.2) and the vmm. vCPU threads run all of it.
//!
//! What configuration space says about BARs and what the bus does are brought together in one place,
//! [`PciHost::settle_bars`]. It looks at the state, not at the writes that led there: two vCPUs that move BARs
//! at once, or a guest that sizes a BAR with decoding on, can end nowhere but where configuration space ends.
//!
//! Lock order: the map of BARs, then the slots, then one function; then the bus. The first is taken by
//! `settle_bars` alone, the others are not held together except briefly to clone a handle out of the slots.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use super::bar::{BarAllocator, BarError, Windows};
use super::config::{CONFIG_LEN, ConfigError, ConfigSpace, Identity};
use super::{BarMove, PciFunction, SharedFunction};
use crate::bus::{Bus, BusDevice, Effect, SharedDevice};
use crate::legacy::power::ResetControl;
use crate::state::{Hex, RestoreError};

/// Slots on the bus.
pub const SLOTS: u8 = 32;
/// Bytes of ECAM that one bus takes.
pub const ECAM_LEN: u64 = 1 << 20;

/// Where functions live in ECAM: eight to a slot, 4 KiB each.
const SLOT_SHIFT: u32 = 15;
const FUNCTION_SHIFT: u32 = 12;

/// A function could not be put on the bus.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// All slots are taken.
    #[error("all 31 slots of the PCI bus are taken: give fewer disks")]
    NoSlot,
    /// A BAR finds no room.
    #[error(transparent)]
    Bar(#[from] BarError),
    /// A BAR refuses its address.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Who chose where the BARs of a function are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// Nobody yet.
    Fresh,
    /// The guest, before it was saved.
    Restored,
}

/// What is saved of the host bridge. It can do nothing, but what is written to it reads back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BridgeState {
    /// The 256 bytes of configuration space.
    pub config: Hex,
}

/// What is saved of the configuration ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PortsState {
    /// The address port.
    pub address: u32,
    /// The reset control register.
    pub reset: u8,
}

/// One BAR of the bus: what answers, and where.
struct MappedBar {
    slot: u8,
    bar: u8,
    len: u64,
    device: SharedDevice,
    function: SharedFunction,
    /// Where it is on the MMIO bus now.
    at: Option<u64>,
}

/// Bus 0 with its host bridge in slot 0.
pub struct PciHost {
    bars: Mutex<Vec<MappedBar>>,
    slots: RwLock<Vec<SharedFunction>>,
    windows: Windows,
    allocator: Mutex<BarAllocator>,
}

impl PciHost {
    /// A bus with nothing but the host bridge, whose devices' memory lives in `windows`.
    #[must_use]
    pub fn new(windows: Windows) -> Self {
        let bridge: SharedFunction = Arc::new(Mutex::new(HostBridge::new()));
        Self {
            bars: Mutex::default(),
            slots: RwLock::new(vec![bridge]),
            allocator: Mutex::new(BarAllocator::new(&windows)),
            windows,
        }
    }

    /// Put `function` in the next free slot; `memory` is what answers behind its BARs, with the BAR's number. They appear on the
    /// bus when the guest enables them and [`PciHost::settle_bars`] is called. Returns the slot.
    ///
    /// `addresses` says who chose their addresses. Where a guest put them is taken as it is, as if it had just written it: what is not
    /// within the windows, or on another's place, answers nowhere.
    ///
    /// # Errors
    /// If there is no slot or no room for a BAR.
    pub fn add(
        &self,
        function: SharedFunction,
        memory: impl IntoIterator<Item = (u8, SharedDevice)>,
        addresses: Addresses,
    ) -> Result<u8, PciError> {
        let mut bars = lock(&self.bars);
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let slot = u8::try_from(slots.len()).ok().filter(|slot| *slot < SLOTS).ok_or(PciError::NoSlot)?;
        let mut lens = Vec::new();
        {
            let mut function = lock(&function);
            let mut allocator = lock(&self.allocator);
            for bar in 0..6 {
                if let Some((kind, len)) = function.config().bar(bar) {
                    if addresses == Addresses::Fresh {
                        let address = allocator.allocate(kind, len)?;
                        function.config_mut().set_bar_address(bar, address)?;
                    }
                    lens.push((bar, len));
                }
            }
        }
        for (bar, device) in memory {
            if let Some(&(_, len)) = lens.iter().find(|(b, _)| *b == bar) {
                bars.push(MappedBar { slot, bar, len, device, function: Arc::clone(&function), at: None });
            }
        }
        slots.push(function);
        Ok(slot)
    }

    /// To be saved: the host bridge. The other functions are saved by those who have them.
    #[must_use]
    pub fn save(&self) -> BridgeState {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let config = slots.first().map(|bridge| lock(bridge).config().save());
        BridgeState { config: config.unwrap_or_default() }
    }

    /// Put the host bridge where it was.
    ///
    /// # Errors
    /// If it is not of this host bridge.
    pub fn restore(&self, state: &BridgeState) -> Result<(), RestoreError> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let Some(bridge) = slots.first() else { return Ok(()) };
        let restored = lock(bridge).config_mut().restore(&state.config);
        restored.map(drop).map_err(|reason| RestoreError::new("the PCI host bridge", "config", reason))
    }

    /// Put every BAR on `bus` where its configuration space says, and tell its function. A BAR that is
    /// disabled, outside the windows, or where another is already, is nowhere. Done for [`Effect::MoveBars`].
    pub fn settle_bars(&self, bus: &Bus) {
        let mut bars = lock(&self.bars);
        let mut moved = Vec::new();
        // All leave before any arrives, so that BARs can change places.
        for entry in bars.iter_mut() {
            let wanted = lock(&entry.function).config().bar_address(entry.bar);
            let wanted = wanted.filter(|base| self.windows.hold(*base, entry.len));
            if wanted == entry.at {
                continue;
            }
            let from = entry.at.take();
            if let Some(base) = from {
                bus.remove(base);
            }
            moved.push((entry, from, wanted));
        }
        for (entry, from, wanted) in moved {
            entry.at = wanted.filter(|base| {
                let inserted = bus.insert(*base, entry.len, Arc::clone(&entry.device));
                if let Err(error) = &inserted {
                    log::debug!("BAR {} of PCI slot {} is unreachable: {error}", entry.bar, entry.slot);
                }
                inserted.is_ok()
            });
            if entry.at != from {
                let moved = BarMove { bar: entry.bar, from, to: entry.at, len: entry.len };
                lock(&entry.function).bar_moved(&moved);
            }
        }
    }

    /// Read `data.len()` bytes at `address`, an ECAM offset. Where no function is, all ones.
    pub fn config_read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((function, register)) => lock(&function).config_read(register, data),
            None => data.fill(0xff),
        }
    }

    /// Write `data` at `address`, an ECAM offset.
    pub fn config_write(&self, address: u64, data: &[u8]) -> Effect {
        match self.find(address, data.len()) {
            Some((function, register)) => lock(&function).config_write(register, data),
            None => Effect::None,
        }
    }

    /// The function that an ECAM offset belongs to and the offset into its configuration space, if all of
    /// the access is in there.
    fn find(&self, address: u64, len: usize) -> Option<(SharedFunction, usize)> {
        let register = (address & (CONFIG_LEN as u64 - 1)) as usize;
        // Beyond the slot number are other buses, below it are functions other than 0.
        let slot = usize::try_from(address >> SLOT_SHIFT).ok()?;
        let function = address >> FUNCTION_SHIFT & 7;
        if function != 0 || register.checked_add(len)? > CONFIG_LEN {
            return None;
        }
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.get(slot).map(|function| (Arc::clone(function), register))
    }
}

/// A poisoned lock means that a thread panicked; the registers are still there.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The function in slot 0. It does nothing; systems look for it to believe that there is PCI.
struct HostBridge(ConfigSpace);

impl HostBridge {
    fn new() -> Self {
        // Intel's "virtual root bridge for KVM guests", of class host bridge: no driver quirk knows it.
        let identity = Identity { vendor: 0x8086, device: 0x0d57, class: 0x06_00_00, ..Identity::default() };
        Self(ConfigSpace::new(&identity))
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }
}

/// Memory-mapped configuration space of bus 0: [`ECAM_LEN`] bytes of the MMIO bus.
pub struct Ecam(Arc<PciHost>);

impl Ecam {
    /// ECAM for this bus.
    #[must_use]
    pub fn new(host: Arc<PciHost>) -> Self {
        Self(host)
    }
}

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.config_read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        self.0.config_write(offset, data)
    }
}

/// Where [`ConfigPorts`] begin.
pub const CONFIG_PORTS: u64 = 0xcf8;
/// How many ports they are.
pub const CONFIG_PORTS_LEN: u64 = 8;

/// Configuration mechanism #1: the address port 0xCF8 and the data ports 0xCFC to 0xCFF. The reset control
/// register at 0xCF9 shares the address port's place: that answers dwords, this bytes.
pub struct ConfigPorts {
    host: Arc<PciHost>,
    /// Bit 31: enabled; 23-16 bus; 15-11 slot; 10-8 function; 7-2 register.
    address: u32,
    reset: ResetControl,
}

impl ConfigPorts {
    const RESET: u64 = 1;
    const DATA: u64 = 4;
    /// What of the address port can be set.
    const ADDRESS: u32 = 0x80ff_fffc;

    /// The ports of this bus.
    #[must_use]
    pub fn new(host: Arc<PciHost>) -> Self {
        Self { host, address: 0, reset: ResetControl::default() }
    }

    /// To be saved.
    #[must_use]
    pub fn save(&self) -> PortsState {
        PortsState { address: self.address, reset: self.reset.read() }
    }

    /// Become what was saved.
    ///
    /// # Errors
    /// If the registers cannot be so.
    pub fn restore(&mut self, state: &PortsState) -> Result<(), RestoreError> {
        let wrong =
            |field| RestoreError::new("the PCI configuration ports", field, "it has bits that cannot be set");
        if state.address & !Self::ADDRESS != 0 {
            return Err(wrong("address"));
        }
        self.reset = ResetControl::restore(state.reset).ok_or_else(|| wrong("reset"))?;
        self.address = state.address;
        Ok(())
    }

    /// The ECAM offset that the data port at `offset` stands for, for an access of `len` bytes.
    fn target(&self, offset: u64, len: usize) -> Option<u64> {
        let byte = offset.checked_sub(Self::DATA)?;
        if self.address >> 31 == 0 || byte.checked_add(len as u64)? > 4 {
            return None;
        }
        let function = u64::from(self.address >> 8 & 0xffff);
        Some(function << FUNCTION_SHIFT | u64::from(self.address & 0xfc) | byte)
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (self.target(offset, data.len()), offset, &mut *data) {
            (Some(address), ..) => self.host.config_read(address, data),
            (None, 0, [_, _, _, _]) => data.copy_from_slice(&self.address.to_le_bytes()),
            (None, Self::RESET, [byte]) => *byte = self.reset.read(),
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        match (self.target(offset, data.len()), offset, data) {
            (Some(address), ..) => return self.host.config_write(address, data),
            (None, 0, &[a, b, c, d]) => self.address = u32::from_le_bytes([a, b, c, d]) & Self::ADDRESS,
            (None, Self::RESET, &[value]) => return self.reset.write(value),
            _ => {}
        }
        Effect::None
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
