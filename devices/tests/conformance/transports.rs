//! What is particular to one transport.

use std::sync::{Arc, Mutex};

use vm_memory::GuestAddress;

use arch::memory::{GuestRam, SharedRam};
use devices::virtio::rng::Rng;
use devices::virtio::testing::{
    FakeBus, FakeDoorbells, PciRegisters, QueueLayout, Registers, Source, status,
};
use devices::virtio::transport::{BusState, PciState, Transport, TransportState};

struct Pci {
    registers: PciRegisters,
    doorbells: Arc<FakeDoorbells>,
    transport: Arc<Mutex<dyn Transport>>,
    ram: SharedRam,
}

fn pci() -> Pci {
    let ram: SharedRam = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    pci_as(&ram, None)
}

fn pci_as(ram: &SharedRam, state: Option<&TransportState>) -> Pci {
    let doorbells = Arc::<FakeDoorbells>::default();
    let bus = FakeBus::new(Arc::clone(&doorbells));
    let rng = Box::new(Rng::new("rng0", Arc::default()));
    let (transport, registers) = PciRegisters::make(rng, ram, bus, state).unwrap();
    Pci { registers, doorbells, transport, ram: SharedRam::clone(ram) }
}

impl Pci {
    /// On another machine, paused, after `change` to what was saved.
    fn move_out(self, change: impl FnOnce(&mut PciState)) -> Self {
        let mut transport = self.transport.lock().unwrap();
        transport.pause();
        let mut state = transport.save().unwrap();
        if let BusState::Pci(pci) = &mut state.bus {
            change(pci);
        }
        pci_as(&self.ram, Some(&state))
    }

    fn resume(&self) {
        self.transport.lock().unwrap().resume();
    }

    fn start(&self) {
        let registers = &self.registers;
        registers.write_status(status::ACKNOWLEDGE | status::DRIVER);
        registers.write_driver_features(registers.device_features());
        registers.write_status(registers.status() | status::FEATURES_OK);
        let layout = QueueLayout { size: 8, desc: 0x1000, avail: 0x2000, used: 0x3000 };
        registers.set_queue(0, &layout);
        registers.enable_queue(0);
        registers.write_status(registers.status() | status::DRIVER_OK);
        assert_eq!(registers.status(), 0xf);
    }
}

#[test]
fn doorbells_follow_the_bar() {
    let pci = pci();
    let first = pci.registers.bar();
    pci.start();
    assert_eq!(pci.doorbells.registered()[0].address, first + 0x3000);
    let second = first + 0x10_0000;
    pci.registers.move_bar(second);
    assert_eq!(pci.registers.bar(), second);
    assert_eq!(pci.doorbells.registered().len(), 1);
    assert_eq!(pci.doorbells.registered()[0].address, second + 0x3000);
    // Memory decoding off, and on again.
    pci.registers.write_pci(4, &[0, 0]);
    assert!(pci.doorbells.registered().is_empty());
    pci.registers.write_pci(4, &[6, 0]);
    assert_eq!(pci.doorbells.registered()[0].address, second + 0x3000);
}

#[test]
fn the_bar_is_reached_through_configuration_space() {
    let pci = pci();
    assert_eq!(pci.registers.read_through_window(0x12), 1_u16.to_le_bytes(), "num_queues");
    pci.registers.write_through_window(0x14, &[status::ACKNOWLEDGE]);
    assert_eq!(pci.registers.status(), status::ACKNOWLEDGE);
    pci.registers.write_through_window(0x4, &[0xff; 4]);
    assert_eq!(pci.registers.read_through_window(0x14), [status::ACKNOWLEDGE]);
    // Outside the BAR, and misaligned: nothing.
    assert_eq!(pci.registers.read_through_window(0x8000), [0; 4]);
    assert_eq!(pci.registers.read_through_window(0x11), [0; 2]);
}

#[test]
fn the_function_says_what_a_modern_device_says() {
    let pci = pci();
    assert_eq!(pci.registers.read_pci(0), [0xf4, 0x1a, 0x44, 0x10]);
    assert_eq!(pci.registers.read_pci(8), [1, 0x00, 0xff, 0x00], "revision and class");
    assert_eq!(pci.registers.read_pci::<1>(0x3d), [0], "no interrupt pin");
    assert!(u16::from_le_bytes(pci.registers.read_pci(0x2e)) >= 0x40);
}

#[test]
fn vectors_that_do_not_exist_read_back_as_none() {
    let pci = pci();
    let common = pci.registers.bar();
    let bus = |offset: u64, value: u16| {
        pci.registers.write_bar(offset, &value.to_le_bytes());
        u16::from_le_bytes(pci.registers.read_bar(offset))
    };
    assert_eq!(common % 0x8000, 0);
    for offset in [0x10, 0x1a] {
        assert_eq!(bus(offset, 1), 1);
        assert_eq!(bus(offset, 2), 0xffff);
        assert_eq!(bus(offset, 0xffff), 0xffff);
    }
    assert_eq!(pci.registers.vectors(), 0, "nothing is taken that is not used");
}

#[test]
fn a_bar_that_the_guest_moved_is_restored_where_it_was() {
    let pci = pci();
    pci.start();
    let place = pci.registers.bar() + 0x20_0000;
    pci.registers.move_bar(place);
    let vectors = pci.registers.vectors();
    let pci = pci.move_out(|_| {});
    assert_eq!((pci.registers.bar(), pci.registers.status()), (place, 0xf));
    assert_eq!(pci.doorbells.registered()[0].address, place + 0x3000);
    assert_eq!(pci.registers.vectors(), vectors, "those in use, before any interrupt");
    // Sized or put away at the time, which is when it is nowhere.
    pci.registers.write_pci(4, &[0, 0]);
    let pci = pci.move_out(|_| {});
    assert!(pci.doorbells.registered().is_empty());
    pci.registers.write_pci(4, &[6, 0]);
    assert_eq!(pci.doorbells.registered()[0].address, place + 0x3000);
}

/// As when the guest writes it: nothing of the machine is hidden behind a device.
#[test]
fn a_bar_outside_the_windows_answers_nowhere() {
    for address in [0_u64, 0x1000_0000, 0xd000_0000, 0xffff_ffff_ffff_8000] {
        let pci = pci();
        pci.start();
        let good = pci.registers.bar();
        let pci = pci.move_out(|pci| pci.config.0[0x10..0x18].copy_from_slice(&(address | 4).to_le_bytes()));
        assert_eq!(pci.registers.bar(), address);
        assert!(pci.doorbells.registered().is_empty(), "{address:#x}");
        pci.registers.move_bar(good);
        pci.resume();
        assert_eq!(pci.registers.status(), 0xf);
    }
}

#[test]
fn an_interrupt_of_a_masked_vector_waits_for_the_guest_on_another_machine() {
    let pci = pci();
    pci.start();
    let (table, masked, open) = (0x4000 + 16 + 12, [1, 0, 0, 0], [0; 4]);
    pci.registers.write_bar(table, &masked);
    let pci = pci.move_out(|state| state.msix.pending.0[0] = 2);
    let pending = |pci: &Pci| pci.registers.read_bar::<1>(0x5000)[0];
    assert_eq!(pending(&pci), 2);
    pci.resume();
    assert_eq!((pending(&pci), pci.registers.take_interrupts(Source::Queue(0))), (2, 0));
    pci.registers.write_bar(table, &open);
    assert_eq!((pending(&pci), pci.registers.take_interrupts(Source::Queue(0))), (0, 1));
}

/// The interrupt controllers are made what they were after the devices: nothing may come before that.
#[test]
fn an_interrupt_that_is_due_comes_with_the_resume() {
    let pci = pci();
    pci.start();
    let pci = pci.move_out(|state| state.msix.pending.0[0] = 1);
    assert_eq!(pci.registers.take_interrupts(Source::Config), 0);
    pci.resume();
    assert_eq!(pci.registers.take_interrupts(Source::Config), 1);
}
