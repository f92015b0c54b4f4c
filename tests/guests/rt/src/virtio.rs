//! Finding virtio devices on both transports.

use alloc::vec::Vec;
use core::ptr::NonNull;

use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};
use virtio_drivers::transport::{DeviceType, SomeTransport};

use crate::memory::Machine;
use crate::{pci, pvh};

/// The interrupts of the MMIO slots, in order.
const GSIS: [u32; 17] = [5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];

const MAGIC: u32 = 0x7472_6976;

/// Where a device is.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// A PCI function.
    Pci(DeviceFunction),
    /// A window in memory.
    Mmio {
        /// Its address.
        at: u64,
        /// Its interrupt.
        gsi: u32,
    },
}

/// A device that was found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// What it is.
    pub kind: DeviceType,
    /// Where.
    pub place: Place,
}

impl Found {
    /// A fresh way to it. Any number can be made; use one at a time.
    ///
    /// # Panics
    /// If the device is not as the specification wants it.
    pub fn transport(&self) -> SomeTransport<'static> {
        match self.place {
            Place::Pci(function) => SomeTransport::Pci(pci(function)),
            Place::Mmio { at, .. } => SomeTransport::Mmio(mmio(at)),
        }
    }
}

/// A PCI transport that was made, and the BARs as they were then.
struct Made {
    bars: [u32; 6],
    transport: PciTransport,
}

/// The last one made for each device of bus 0.
static mut MADE: [Option<Made>; 32] = [const { None }; 32];

/// To make one sizes every BAR, and each time the host takes the doorbells away and puts them back: a hundred times
/// what the test itself costs. So one is made for a device until its BARs move, and copies are handed out.
fn pci(function: DeviceFunction) -> PciTransport {
    let access = pci::memory();
    let bars = core::array::from_fn(|index| access.read_word(function, 0x10 + 4 * index as u8));
    let slot = (&raw mut MADE).cast::<Option<Made>>().wrapping_add(usize::from(function.device));
    // SAFETY: devices are below 32, and the first processor alone comes here. The transport is plain addresses without
    // a destructor; a test uses one copy at a time.
    unsafe {
        if (*slot).as_ref().is_none_or(|made| made.bars != bars) {
            let transport = match PciTransport::new::<Machine, _>(&mut pci::root(), function) {
                Ok(transport) => transport,
                Err(error) => panic!("virtio-pci at {function}: {error}"),
            };
            slot.write(Some(Made { bars, transport }));
        }
        match &*slot {
            Some(made) => core::ptr::read(&raw const made.transport),
            None => unreachable!("just made"),
        }
    }
}

fn mmio(at: u64) -> MmioTransport<'static> {
    let header = NonNull::new(at as *mut VirtIOHeader).unwrap_or(NonNull::dangling());
    // SAFETY: a window in which `devices` saw the magic value.
    match unsafe { MmioTransport::new(header, 0x200) } {
        Ok(transport) => transport,
        Err(error) => panic!("virtio-mmio at {at:#x}: {error}"),
    }
}

/// All virtio devices: those on PCI, if there is any PCI, then those in the MMIO slots. `mmio=` and `mmio_step=` on the
/// command line name other slots.
pub fn devices() -> Vec<Found> {
    let mut found = Vec::new();
    if crate::acpi::ecam().is_some() {
        pci::assign();
        for (function, info) in pci::root().enumerate_bus(0) {
            if let Some(kind) = virtio_device_type(&info) {
                found.push(Found { kind, place: Place::Pci(function) });
            }
        }
    }
    found.extend(slots().filter_map(|(at, gsi)| {
        // SAFETY: windows for devices; an empty one reads as anything but the magic value.
        let (magic, id) =
            unsafe { ((at as *const u32).read_volatile(), ((at + 8) as *const u32).read_volatile()) };
        let kind = DeviceType::try_from(id).ok()?;
        (magic == MAGIC).then_some(Found { kind, place: Place::Mmio { at, gsi } })
    }));
    found
}

/// The MMIO slots: address and interrupt.
pub fn slots() -> impl Iterator<Item = (u64, u32)> {
    let first = pvh::number("mmio").unwrap_or(0xf000_0000);
    let step = pvh::number("mmio_step").unwrap_or(0x1000);
    GSIS.into_iter().enumerate().map(move |(index, gsi)| (first + step * index as u64, gsi))
}

/// The devices of one kind.
pub fn find(kind: DeviceType) -> Vec<Found> {
    devices().into_iter().filter(|found| found.kind == kind).collect()
}
