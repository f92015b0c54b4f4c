//! What the guest drives: buses, legacy devices, PCI, virtio, disk formats.
//!
//! Nothing here knows KVM. What a device needs of the machine (an interrupt, an MSI vector, a doorbell)
//! it asks for through the traits of [`irq`] and [`bus`], which the vmm implements.

pub mod bus;
pub mod disk;
pub mod irq;
pub mod legacy;
pub mod pci;
pub mod ratelog;
pub mod virtio;
pub mod worker;
