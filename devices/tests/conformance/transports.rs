//! What is particular to one transport.

use std::sync::Arc;

use vm_memory::GuestAddress;

use arch::memory::{GuestRam, SharedRam};
use devices::virtio::rng::Rng;
use devices::virtio::testing::{FakeBus, FakeDoorbells, PciRegisters, QueueLayout, Registers, status};

struct Pci {
    registers: PciRegisters,
    doorbells: Arc<FakeDoorbells>,
}

fn pci() -> Pci {
    let ram: SharedRam = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let doorbells = Arc::<FakeDoorbells>::default();
    let bus = FakeBus::new(Arc::clone(&doorbells));
    let (_, registers) = PciRegisters::make(Box::new(Rng::new("rng0", Arc::default())), &ram, bus);
    Pci { registers, doorbells }
}

impl Pci {
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
