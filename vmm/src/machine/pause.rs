//! Stopping a whole machine where it is, and letting it go on.
//!
//! ```text
//!   pause:  vCPUs park ──► every virtio device stops, its queues' positions kept ──► Paused
//!   resume: devices go on ──► vCPUs run                                        (or: Paused is dropped)
//! ```
//!
//! vCPUs come first, for they are who drives the devices, and the other way round they find devices that listen. While a
//! machine is [`Paused`] no thread of it runs in the guest, reads or writes its memory, or changes a register of a virtio
//! device. Runs on the `vmm` thread.

use crate::board::Board;
use crate::vcpu::{Stuck, Vcpus};

/// A machine that is stopped where it is. Dropping it lets the machine go on: whoever returns early need not think of
/// that.
#[must_use = "the machine goes on when this is dropped"]
pub(super) struct Paused<'a> {
    // Drops in this order.
    devices: DevicesStopped<'a>,
    vcpus: VcpusParked<'a>,
}

impl Paused<'_> {
    /// Leave the machine paused, until [`resume`].
    pub(super) fn keep(self) {
        std::mem::forget(self.devices);
        std::mem::forget(self.vcpus);
    }
}

/// All vCPUs are out of the guest.
struct VcpusParked<'a>(&'a Vcpus);

impl Drop for VcpusParked<'_> {
    fn drop(&mut self) {
        self.0.run();
    }
}

/// No virtio device serves its queues.
struct DevicesStopped<'a>(&'a Board);

impl Drop for DevicesStopped<'_> {
    fn drop(&mut self) {
        self.0.resume_devices();
    }
}

/// Stop a running machine.
///
/// # Errors
/// If a vCPU cannot come out of the host; the machine then goes on.
pub(super) fn pause<'a>(vcpus: &'a Vcpus, board: &'a Board) -> Result<Paused<'a>, Stuck> {
    vcpus.pause()?;
    let vcpus = VcpusParked(vcpus);
    board.pause_devices();
    Ok(Paused { devices: DevicesStopped(board), vcpus })
}

/// Let a machine go on that was kept paused.
pub(super) fn resume(vcpus: &Vcpus, board: &Board) {
    drop(Paused { devices: DevicesStopped(board), vcpus: VcpusParked(vcpus) });
}
