//! What the guest drives: buses, legacy devices, PCI, virtio, disks, net back ends.
//!
//! Nothing here knows KVM. What a device needs of the machine (an interrupt, an MSI vector, a doorbell)
//! it asks for through the traits of [`irq`] and [`bus`], which the vmm implements.

pub mod bus;
pub mod counters;
mod descriptors;
pub mod disk;
pub mod irq;
pub mod legacy;
pub mod limit;
pub mod net;
pub mod pci;
pub mod ratelog;
pub mod state;
pub mod storage;
pub mod virtio;
pub mod worker;
