//! A function's configuration space: a type 0 header, memory BARs and a capability list (PCI 3.0 §6).
//!
//! A pure value: no locks, no file descriptors. The function that owns it builds it with the `add_…`
//! methods; from then on the guest changes it by [`ConfigSpace::write`], in writable bits only.
//!
//! Functions are conventional PCI, so the 256 bytes of the header and its capabilities are all there is;
//! the rest of the 4096 that ECAM reaches reads as zero (no extended capabilities).

use super::bar::BarKind;
use crate::bus::Effect;
use crate::state::Hex;

/// Bytes of configuration space that ECAM reaches.
pub const CONFIG_LEN: usize = 4096;
/// Bytes that are stored; the others read as zero.
const STORED: usize = 256;

const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Memory, bus master, SERR enable and INTx disable. There is no I/O space to enable.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | COMMAND_BUS_MASTER | 1 << 8 | 1 << 10;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const REVISION: usize = 0x08;
const CACHE_LINE: usize = 0x0c;
const BAR0: usize = 0x10;
const BARS: u8 = 6;
const BAR_64_BIT: u32 = 0b100;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;

const CAP_MSIX: u8 = 0x11;
/// Function mask and enable.
const MSIX_CONTROL_WRITABLE: u16 = 0b11 << 14;
/// Most vectors that a function can have (PCI 3.0 §6.8.2.3).
const MSIX_MOST: u16 = 2048;

/// Configuration space cannot be built as asked: a mistake of the device's author, not of the guest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The BAR does not exist, is taken, or its length is not a power of two from 16 up.
    #[error("BAR {bar} of {len:#x} bytes cannot be added")]
    BadBar {
        /// Which BAR.
        bar: u8,
        /// Its length in bytes.
        len: u64,
    },
    /// The BAR does not exist, or cannot be at this address.
    #[error("BAR {bar} cannot be at {address:#x}")]
    BadAddress {
        /// Which BAR.
        bar: u8,
        /// The address asked for.
        address: u64,
    },
    /// The capability list is full.
    #[error("no room for capability {id:#x} of {len} bytes")]
    NoRoom {
        /// The capability's ID.
        id: u8,
        /// Its length in bytes.
        len: usize,
    },
    /// The MSI-X table or pending bits are misplaced, or there are too many or no vectors.
    #[error("MSI-X cannot be laid out as {0:?}")]
    BadMsix(MsixLayout),
}

/// Who the function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface, from the top: `0x00cc_ss_pp`.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// Where a function's MSI-X table and pending bits are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixLayout {
    /// How many vectors, 1 to 2048.
    pub vectors: u16,
    /// The table's BAR.
    pub table_bar: u8,
    /// The table's offset into it, a multiple of 8.
    pub table_offset: u32,
    /// The pending bits' BAR.
    pub pba_bar: u8,
    /// The pending bits' offset into it, a multiple of 8.
    pub pba_offset: u32,
}

/// What a guest's write changed beyond the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[must_use = "BARs and MSI-X must follow what was written"]
pub struct Written {
    /// A BAR moved, or was enabled or disabled.
    pub bars: bool,
    /// The MSI-X message control register, if it was changed.
    pub msix_control: Option<u16>,
}

impl Written {
    /// What it asks of the machine.
    pub fn effect(self) -> Effect {
        if self.bars { Effect::MoveBars } else { Effect::None }
    }
}

#[derive(Clone, Copy, Debug)]
struct Bar {
    kind: BarKind,
    len: u64,
}

/// Configuration space of one function. See the module.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; STORED],
    /// The bits that the guest can change.
    writable: [u8; STORED],
    bars: [Option<Bar>; BARS as usize],
    /// Where the next capability goes.
    next_capability: usize,
    /// Where to write the offset of the next capability.
    link: usize,
    /// Where the MSI-X message control register is.
    msix_control: Option<usize>,
}

impl ConfigSpace {
    /// A function with no BARs and no capabilities. Memory decoding is off.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let mut config = Self {
            bytes: [0; STORED],
            writable: [0; STORED],
            bars: [None; BARS as usize],
            next_capability: FIRST_CAPABILITY,
            link: CAPABILITIES,
            msix_control: None,
        };
        config.put(0, &identity.vendor.to_le_bytes());
        config.put(2, &identity.device.to_le_bytes());
        config.put(REVISION, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        config.put(SUBSYSTEM, &identity.subsystem_vendor.to_le_bytes());
        config.put(SUBSYSTEM + 2, &identity.subsystem.to_le_bytes());
        config.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        // Plain storage that systems expect to be able to set: cache line size and latency timer …
        config.allow(CACHE_LINE, &[0xff, 0xff]);
        // … and the interrupt line, which is software's notebook.
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// Add BAR number `bar` of `len` bytes: a power of two, at least 16.
    ///
    /// # Errors
    /// If the BAR does not exist, is taken, or the length is impossible.
    pub fn add_bar(&mut self, bar: u8, kind: BarKind, len: u64) -> Result<(), ConfigError> {
        let bad = ConfigError::BadBar { bar, len };
        let registers = if kind == BarKind::Memory64 { 2 } else { 1 };
        if bar > BARS - registers || !len.is_power_of_two() || len < 16 {
            return Err(bad);
        }
        if kind == BarKind::Memory32 && len > 1 << 31 {
            return Err(bad);
        }
        if self.overlaps_bar(bar, registers) {
            return Err(bad);
        }
        let at = bar_register(bar);
        let mask = !(len - 1);
        match kind {
            BarKind::Memory32 => self.allow(at, &(mask as u32).to_le_bytes()),
            BarKind::Memory64 => {
                self.put(at, &BAR_64_BIT.to_le_bytes());
                self.allow(at, &mask.to_le_bytes());
            }
        }
        if let Some(slot) = self.bars.get_mut(usize::from(bar)) {
            *slot = Some(Bar { kind, len });
        }
        Ok(())
    }

    /// Preset the address of a BAR, as firmware would.
    ///
    /// # Errors
    /// If there is no such BAR or it cannot be there.
    pub fn set_bar_address(&mut self, bar: u8, address: u64) -> Result<(), ConfigError> {
        let bad = ConfigError::BadAddress { bar, address };
        let Some((kind, len)) = self.bar(bar) else { return Err(bad) };
        if address & (len - 1) != 0 {
            return Err(bad);
        }
        let at = bar_register(bar);
        match (kind, u32::try_from(address)) {
            (BarKind::Memory32, Ok(address)) => self.put(at, &address.to_le_bytes()),
            (BarKind::Memory32, Err(_)) => return Err(bad),
            (BarKind::Memory64, _) => self.put(at, &(address | u64::from(BAR_64_BIT)).to_le_bytes()),
        }
        Ok(())
    }

    /// Append a capability. `body` is what follows the ID and the link; `writable` are the bits of it that
    /// the guest can change (none where it is shorter). Returns where in configuration space the capability
    /// starts; `body` is two bytes further.
    ///
    /// # Errors
    /// If there is no room.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<usize, ConfigError> {
        let start = self.next_capability;
        let len = body.len().saturating_add(2);
        // The list is dword-aligned (PCI 3.0 §6.7).
        let end = start.saturating_add(len).saturating_add(3) & !3;
        if end > STORED || writable.len() > body.len() {
            return Err(ConfigError::NoRoom { id, len });
        }
        self.put(start, &[id, 0]);
        self.put(start + 2, body);
        self.allow(start + 2, writable);
        self.put(self.link, &[start as u8]);
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.link = start + 1;
        self.next_capability = end;
        Ok(start)
    }

    /// Append the MSI-X capability (PCI 3.0 §6.8.2). Returns where it starts.
    ///
    /// # Errors
    /// If the layout is impossible, or there is no room.
    pub fn add_msix(&mut self, layout: &MsixLayout) -> Result<usize, ConfigError> {
        let fits = |bar: u8, offset: u32, len: u64| {
            self.bar(bar)
                .is_some_and(|(_, bar_len)| offset.is_multiple_of(8) && u64::from(offset) + len <= bar_len)
        };
        let good = (1..=MSIX_MOST).contains(&layout.vectors)
            && fits(layout.table_bar, layout.table_offset, super::msix::table_len(layout.vectors))
            && fits(layout.pba_bar, layout.pba_offset, super::msix::pba_len(layout.vectors))
            && self.msix_control.is_none();
        if !good {
            return Err(ConfigError::BadMsix(*layout));
        }
        let mut body = [0; 10];
        body[0..2].copy_from_slice(&(layout.vectors - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(layout.table_offset | u32::from(layout.table_bar)).to_le_bytes());
        body[6..10].copy_from_slice(&(layout.pba_offset | u32::from(layout.pba_bar)).to_le_bytes());
        let start = self.add_capability(CAP_MSIX, &body, &MSIX_CONTROL_WRITABLE.to_le_bytes())?;
        self.msix_control = Some(start + 2);
        Ok(start)
    }

    /// Become what was saved of a function that was built the same. Returns the MSI-X message control register.
    ///
    /// # Errors
    /// Why it cannot be of such a function: what the guest cannot change is another.
    pub(crate) fn restore(&mut self, saved: &Hex) -> Result<u16, String> {
        let Ok(bytes) = <[u8; STORED]>::try_from(saved.0.as_slice()) else {
            return Err(format!("{} bytes where there are {STORED}", saved.0.len()));
        };
        let mut all = self.bytes.iter().zip(&bytes).zip(&self.writable);
        if let Some(at) = all.position(|((is, saved), writable)| (is ^ saved) & !writable != 0) {
            return Err(format!("byte {at:#x} is another than this function has"));
        }
        self.bytes = bytes;
        Ok(self.read_msix_control().unwrap_or(0))
    }

    /// To be saved.
    pub(crate) fn save(&self) -> Hex {
        self.bytes.to_vec().into()
    }

    /// Kind and length in bytes of a BAR, if there is one of this number.
    #[must_use]
    pub fn bar(&self, bar: u8) -> Option<(BarKind, u64)> {
        self.bars.get(usize::from(bar)).copied().flatten().map(|b| (b.kind, b.len))
    }

    /// Where a BAR answers, if there is one of this number and memory decoding is on. This is what the
    /// guest wrote, wherever that is: the address space may have no room for it there.
    #[must_use]
    pub fn bar_address(&self, bar: u8) -> Option<u64> {
        let (kind, len) = self.bar(bar)?;
        if self.read_u16(COMMAND) & COMMAND_MEMORY == 0 {
            return None;
        }
        let mut raw = [0; 8];
        let registers = if kind == BarKind::Memory64 { 8 } else { 4 };
        self.read(bar_register(bar), &mut raw[..registers]);
        Some(u64::from_le_bytes(raw) & !(len - 1))
    }

    /// Read `data.len()` bytes at `offset`. What is past the end of configuration space reads as ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let at = offset.saturating_add(i);
            *byte = match self.bytes.get(at) {
                Some(stored) => *stored,
                None if at < CONFIG_LEN => 0,
                None => 0xff,
            };
        }
    }

    /// The guest writes `data` at `offset`; only writable bits change.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Written {
        let bars = self.bar_addresses();
        let msix = self.read_msix_control();
        for (i, value) in data.iter().enumerate() {
            let at = offset.saturating_add(i);
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = *byte & !mask | value & mask;
            }
        }
        let msix_now = self.read_msix_control();
        Written {
            bars: bars != self.bar_addresses(),
            msix_control: if msix == msix_now { None } else { msix_now },
        }
    }

    fn read_msix_control(&self) -> Option<u16> {
        self.msix_control.map(|at| self.read_u16(at))
    }

    fn bar_addresses(&self) -> [Option<u64>; BARS as usize] {
        std::array::from_fn(|bar| self.bar_address(bar as u8))
    }

    /// Whether any of `registers` BAR registers from `bar` on belongs to a BAR already.
    fn overlaps_bar(&self, bar: u8, registers: u8) -> bool {
        (0..BARS).any(|other| match self.bar(other) {
            Some((BarKind::Memory64, _)) => other < bar + registers && bar < other + 2,
            Some((BarKind::Memory32, _)) => (bar..bar + registers).contains(&other),
            None => false,
        })
    }

    fn read_u16(&self, offset: usize) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    /// Set bytes, whether the guest can or not.
    fn put(&mut self, offset: usize, data: &[u8]) {
        for (byte, value) in self.bytes.iter_mut().skip(offset).zip(data) {
            *byte = *value;
        }
    }

    /// Let the guest change these bits.
    fn allow(&mut self, offset: usize, bits: &[u8]) {
        for (byte, value) in self.writable.iter_mut().skip(offset).zip(bits) {
            *byte = *value;
        }
    }
}

/// Where the register of a BAR is.
fn bar_register(bar: u8) -> usize {
    BAR0 + usize::from(bar) * 4
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
