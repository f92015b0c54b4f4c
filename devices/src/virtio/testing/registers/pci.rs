//! A driver's operations over PCI: it finds the parts of the BAR by walking the capabilities.

use std::sync::{Arc, Mutex};

use arch::memory::SharedRam;

use super::{QueueLayout, Registers, Source, scribble};
use crate::bus::Effect;
use crate::pci::{Addresses, PciHost, Windows};
use crate::virtio::device::VirtioDevice;
use crate::virtio::testing::fakes::{FakeBus, FakeMsi};
use crate::virtio::transport::pci::BAR;
use crate::virtio::transport::{Transport, TransportError, TransportState, VirtioPci};

/// MSI-X vectors: 0 for the configuration, the queues' behind it. Their message data is the vector.
const CONFIG_VECTOR: u16 = 0;

/// virtio-pci in a slot of a host.
pub struct PciRegisters {
    bus: FakeBus,
    host: PciHost,
    msi: Arc<FakeMsi>,
    /// The slot's ECAM offset.
    slot: u64,
    parts: Parts,
}

/// Offsets into the BAR, as the capabilities name them.
#[derive(Default)]
struct Parts {
    common: u64,
    isr: u64,
    device: u64,
    notify: u64,
    notify_multiplier: u64,
    msix: u64,
    msix_capability: u64,
    access_capability: u64,
}

impl PciRegisters {
    /// Put `device` in a slot, and turn on its memory and MSI-X; or as `state` says.
    ///
    /// # Errors
    /// If it cannot be what `state` says.
    pub fn make(
        device: Box<dyn VirtioDevice>,
        ram: &SharedRam,
        bus: FakeBus,
        state: Option<&TransportState>,
    ) -> Result<(Arc<Mutex<dyn Transport>>, Self), TransportError> {
        let host =
            PciHost::new(Windows { mem32: 0xc000_0000..0xd000_0000, mem64: 0x40_0000_0000..0x41_0000_0000 });
        let msi = Arc::<FakeMsi>::default();
        let controller = Arc::clone(&msi);
        let transport = VirtioPci::new(device, SharedRam::clone(ram), controller, bus.doorbells(), state);
        let transport = Arc::new(Mutex::new(transport?));
        let (function, memory) = (Arc::clone(&transport), Arc::clone(&transport));
        let addresses = if state.is_some() { Addresses::Restored } else { Addresses::Fresh };
        let slot = host.add(function, [(BAR, memory as _)], addresses).expect("a slot");
        let slot = u64::from(slot) << 15;
        let mut this = Self { bus, host, msi, slot, parts: Parts::default() };
        this.find_parts();
        if state.is_some() {
            this.host.settle_bars(&this.bus.bus);
        } else {
            // Memory and bus master.
            this.write_pci(4, &6_u16.to_le_bytes());
            this.write_pci(this.parts.msix_capability + 2, &0x8000_u16.to_le_bytes());
        }
        Ok((transport, this))
    }

    fn find_parts(&mut self) {
        let mut at = u64::from(self.read_pci::<1>(0x34)[0]);
        while at != 0 {
            let [id, next] = self.read_pci(at);
            let offset = u64::from(u32::from_le_bytes(self.read_pci(at + 8)));
            match (id, self.read_pci(at + 3)) {
                (9, [1]) => self.parts.common = offset,
                (9, [2]) => {
                    self.parts.notify = offset;
                    self.parts.notify_multiplier = u32::from_le_bytes(self.read_pci(at + 16)).into();
                }
                (9, [3]) => self.parts.isr = offset,
                (9, [4]) => self.parts.device = offset,
                (9, [5]) => self.parts.access_capability = at,
                (0x11, _) => {
                    self.parts.msix_capability = at;
                    self.parts.msix = u64::from(u32::from_le_bytes(self.read_pci(at + 4)) & !7);
                }
                _ => {}
            }
            at = next.into();
        }
    }

    /// Read the function's configuration space.
    #[must_use]
    pub fn read_pci<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.host.config_read(self.slot + offset, &mut data);
        data
    }

    /// Write the function's configuration space, and let the BARs follow.
    pub fn write_pci(&self, offset: u64, data: &[u8]) {
        if self.host.config_write(self.slot + offset, data) == Effect::MoveBars {
            self.host.settle_bars(&self.bus.bus);
        }
    }

    /// Move the BAR to `address`.
    pub fn move_bar(&self, address: u64) {
        self.write_pci(0x10, &(address as u32).to_le_bytes());
        self.write_pci(0x14, &((address >> 32) as u32).to_le_bytes());
    }

    /// Where the BAR is.
    #[must_use]
    pub fn bar(&self) -> u64 {
        u64::from_le_bytes(self.read_pci(0x10)) & !0xf
    }

    /// Read `N` (1, 2 or 4) bytes of the BAR at `offset` by way of configuration space (4.1.4.9).
    #[must_use]
    pub fn read_through_window<const N: usize>(&self, offset: u32) -> [u8; N] {
        self.open_window(offset, N as u32);
        self.read_pci(self.parts.access_capability + 16)
    }

    /// Write the BAR at `offset` by way of configuration space.
    pub fn write_through_window(&self, offset: u32, data: &[u8]) {
        self.open_window(offset, data.len() as u32);
        self.write_pci(self.parts.access_capability + 16, data);
    }

    fn open_window(&self, offset: u32, len: u32) {
        self.write_pci(self.parts.access_capability + 4, &[BAR]);
        self.write_pci(self.parts.access_capability + 8, &offset.to_le_bytes());
        self.write_pci(self.parts.access_capability + 12, &len.to_le_bytes());
    }

    /// How many vectors the function took from the interrupt controller.
    #[must_use]
    pub fn vectors(&self) -> usize {
        self.msi.allocated()
    }

    /// Read the BAR.
    #[must_use]
    pub fn read_bar<const N: usize>(&self, offset: u64) -> [u8; N] {
        self.read(0, offset)
    }

    /// Write the BAR.
    pub fn write_bar(&self, offset: u64, data: &[u8]) {
        self.write(0, offset, data);
    }

    fn read<const N: usize>(&self, part: u64, offset: u64) -> [u8; N] {
        self.bus.read(self.bar() + part + offset)
    }

    fn write(&self, part: u64, offset: u64, data: &[u8]) {
        let effect = self.bus.write(self.bar() + part + offset, data);
        assert!(matches!(effect, Effect::None | Effect::DriverReady), "{effect:?}");
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        self.write(self.parts.common, offset, data);
    }

    fn read_common<const N: usize>(&self, offset: u64) -> [u8; N] {
        self.read(self.parts.common, offset)
    }

    /// Point a vector somewhere and unmask it.
    fn open_vector(&self, vector: u16) {
        let entry = self.parts.msix + 16 * u64::from(vector);
        self.write(entry, 0, &0xfee0_0000_u32.to_le_bytes());
        self.write(entry, 4, &[0; 4]);
        self.write(entry, 8, &u32::from(vector).to_le_bytes());
        self.write(entry, 12, &[0; 4]);
    }

    fn select(&self, queue: u16) {
        self.write_common(0x16, &queue.to_le_bytes());
    }

    fn doorbell(&self, queue: u16) -> u64 {
        self.select(queue);
        let offset = u16::from_le_bytes(self.read_common(0x1e));
        self.bar() + self.parts.notify + u64::from(offset) * self.parts.notify_multiplier
    }
}

impl Registers for PciRegisters {
    fn device_id(&self) -> u32 {
        let [vendor, device]: [u16; 2] = [0, 2].map(|at| u16::from_le_bytes(self.read_pci(at)));
        assert_eq!(vendor, 0x1af4);
        u32::from(device) - 0x1040
    }

    fn status(&self) -> u8 {
        self.read_common::<1>(0x14)[0]
    }

    fn write_status(&self, value: u8) {
        self.write_common(0x14, &[value]);
    }

    fn device_features(&self) -> u64 {
        let [low, high] = [0_u32, 1].map(|half| {
            self.write_common(0, &half.to_le_bytes());
            u64::from(u32::from_le_bytes(self.read_common(4)))
        });
        high << 32 | low
    }

    fn write_driver_features(&self, features: u64) {
        for half in [0_u32, 1] {
            self.write_common(8, &half.to_le_bytes());
            self.write_common(0xc, &((features >> (32 * half)) as u32).to_le_bytes());
        }
    }

    fn queue_max(&self, queue: u16) -> u16 {
        self.select(queue);
        u16::from_le_bytes(self.read_common(0x18))
    }

    fn set_queue(&self, queue: u16, layout: &QueueLayout) {
        self.select(queue);
        self.write_common(0x18, &layout.size.to_le_bytes());
        self.write_common(0x20, &layout.desc.to_le_bytes());
        self.write_common(0x28, &(layout.avail as u32).to_le_bytes());
        self.write_common(0x2c, &((layout.avail >> 32) as u32).to_le_bytes());
        self.write_common(0x30, &layout.used.to_le_bytes());
        let vector = queue.wrapping_add(1);
        self.open_vector(CONFIG_VECTOR);
        self.open_vector(vector);
        self.write_common(0x10, &CONFIG_VECTOR.to_le_bytes());
        self.write_common(0x1a, &vector.to_le_bytes());
    }

    fn enable_queue(&self, queue: u16) {
        self.select(queue);
        self.write_common(0x1c, &1_u16.to_le_bytes());
    }

    fn disable_queue(&self, queue: u16) {
        self.select(queue);
        self.write_common(0x1c, &0_u16.to_le_bytes());
    }

    fn queue_enabled(&self, queue: u16) -> bool {
        self.select(queue);
        self.read_common(0x1c) == 1_u16.to_le_bytes()
    }

    fn notify(&self, queue: u16) {
        assert_eq!(self.bus.write(self.doorbell(queue), &queue.to_le_bytes()), Effect::None);
    }

    fn notify_slowly(&self, queue: u16) {
        assert_eq!(self.bus.bus.write(self.doorbell(queue), &queue.to_le_bytes()), Effect::None);
    }

    fn take_isr(&self) -> u8 {
        self.read::<1>(self.parts.isr, 0)[0]
    }

    fn take_interrupts(&self, source: Source) -> u64 {
        let vector = match source {
            Source::Config => CONFIG_VECTOR,
            Source::Queue(queue) => queue.wrapping_add(1),
        };
        self.msi.take(vector.into())
    }

    fn generation(&self) -> u32 {
        self.read_common::<1>(0x15)[0].into()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.bus.bus.read(self.bar() + self.parts.device + offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        self.write(self.parts.device, offset, data);
    }

    fn scribble(&self) {
        scribble(&self.bus, self.bar(), 0x8000, |offset| offset == 0x14);
        for (bar, offset, len) in
            [(1, 0, 4), (0, 0x8000, 4), (0, 2, 4), (0, u32::MAX, 1), (0, 0, 3), (0, 0, 0)]
        {
            self.open_window(offset, len);
            self.write_pci(self.parts.access_capability + 4, &[bar]);
            let _: [u8; 8] = self.read_pci(self.parts.access_capability + 12);
            self.write_pci(self.parts.access_capability + 14, &[0xa5; 8]);
        }
    }
}
