//! What a running VM has used and done: the figures of `stats`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A VM's figures at one moment. Counts start with the VM and survive reboots of its guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStats {
    /// Since the VM started, in milliseconds of the host's clock.
    pub uptime_ms: u64,
    /// How often the guest has been booted, the first time included.
    pub boots: u64,
    /// By index.
    pub vcpus: Vec<VcpuStats>,
    /// Its memory.
    pub memory: MemoryStats,
    /// Its virtio devices, in the order of the spec.
    pub devices: Vec<DeviceStats>,
}

/// One vCPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStats {
    /// Counted from 0.
    pub index: u32,
    /// Host processor time of its thread, in nanoseconds: the guest's and what skiff does for its exits.
    pub time_ns: u64,
    /// How often it left the guest for skiff, by reason: `io_in`, `io_out`, `mmio_read`, `mmio_write`, `hlt`, `interrupted`,
    /// `other`. What KVM answers itself is not seen.
    pub exits: BTreeMap<String, u64>,
}

/// A VM's memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// What the guest was given.
    pub total: u64,
    /// How much of it the host has backed with memory of this VM's own.
    pub resident: u64,
    /// How much of it is pages of a snapshot that the guest has only read: in the host's memory once, for all VMs.
    #[serde(default)]
    pub shared: u64,
    /// How much of it the balloon holds for the host.
    pub balloon: u64,
    /// How much of it the guest has reported free (and the host taken back) since the VM started.
    pub reported_free: u64,
    /// What the guest's balloon driver says of itself (virtio 1.2, 5.5.6.3), by name: `free`, `available`, `swap_in`, …; empty
    /// while there is no driver.
    #[serde(default)]
    pub guest: BTreeMap<String, u64>,
}

/// One virtio device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStats {
    /// Its name in the VM, such as `disk0`.
    pub id: String,
    /// `block`, `net`, `console`, `rng`, `balloon`, `vsock`.
    pub kind: String,
    /// Requests or packets that were finished.
    pub requests: u64,
    /// Bytes that the guest was given.
    pub to_guest: u64,
    /// Bytes that the guest gave.
    pub from_guest: u64,
    /// Requests that failed and packets that were dropped.
    pub errors: u64,
    /// How often a rate limit made the guest wait.
    pub throttled: u64,
}
