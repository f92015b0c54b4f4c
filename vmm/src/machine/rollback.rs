//! Putting a running VM back to a snapshot: the machine goes, and another is built around the same host, as at a reboot.
//!
//! Everything that can fail for a reason of the snapshot's is done while the old machine runs: then nothing has changed. The record
//! says what the VM is on before the old machine goes, so that a crash at any moment leaves the one or the other.

use std::sync::mpsc::Sender;
use std::time::Instant;

use super::Machine;
use super::point::Point;
use crate::control::VmReply;
use crate::error::VmError;
use crate::host::{Host, HostDisk, open_disks};
use crate::snapshot::{Id, Record};

/// A rollback that has nothing left to fail but the host. The vCPUs are parked.
pub(super) struct Prepared {
    pub(super) point: Point,
    pub(super) disks: Vec<HostDisk>,
    /// The record before.
    pub(super) before: Record,
    pub(super) begun: Instant,
    pub(super) reply: Sender<VmReply>,
}

/// Open the snapshot and its disks, and write down that the VM is on it.
pub(super) fn prepare(
    host: &mut Host,
    machine: &Machine,
    snapshot: Id,
    reply: Sender<VmReply>,
) -> Result<Prepared, VmError> {
    let begun = Instant::now();
    if let Some(disk) = host.written_in_place() {
        return Err(VmError::InPlace(disk));
    }
    let supported = host.hypervisor.supported_cpuid()?;
    let lineage = host.lineage.as_mut().ok_or(VmError::NoHome)?;
    let _pin = lineage.store.pin()?;
    let point = Point::open(&lineage.store, snapshot)?;
    point.fits(&host.spec)?;
    point.state.check(&host.spec, supported.as_slice())?;
    let before = lineage.move_to(&host.spec.disks, &point.manifest)?;
    let opened = open_disks(&host.spec, Some(lineage));
    let ready = opened.and_then(|disks| {
        machine.vcpus.pause()?;
        Ok(disks)
    });
    match ready {
        Ok(disks) => Ok(Prepared { point, disks, before, begun, reply }),
        Err(error) => {
            // As it was: the machine runs on.
            let new = lineage.change(before)?;
            lineage.forget(&new);
            Err(error)
        }
    }
}
