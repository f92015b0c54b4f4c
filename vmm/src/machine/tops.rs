//! The disks' part of a snapshot: new tops beforehand, the old ones frozen at the instant, and made durable behind it.

use devices::disk::{Frozen, NextTop};

use crate::error::VmError;
use crate::home::Lineage;
use crate::host::Host;
use crate::snapshot::manifest::{DiskPoint, Sum};
use crate::snapshot::{Record, Store};

/// Empty layers that take the place of the disks' tops. The record names them already: one that is empty says the same as the one
/// below it.
pub(super) struct Tops {
    before: Record,
    next: Vec<(usize, NextTop)>,
    frozen: Vec<(usize, Frozen)>,
    points: Vec<DiskPoint>,
}

/// What was frozen.
pub(super) struct FrozenTops {
    pub(super) layers: Vec<Frozen>,
    /// All disks at the instant. The layers' sums are not known yet.
    pub(super) points: Vec<DiskPoint>,
}

impl Tops {
    /// Make them.
    ///
    /// # Errors
    /// If the host fails: all is as it was.
    pub(super) fn prepare(host: &mut Host) -> Result<Self, VmError> {
        let sizes: Vec<u64> = host.disks.iter().map(|disk| disk.disk.size()).collect();
        let lineage = host.lineage.as_mut().ok_or(VmError::NoHome)?;
        let before = lineage.record().clone();
        let point = |(at, (layer, size)): (usize, (&Option<_>, &u64))| DiskPoint {
            disk: format!("disk{at}"),
            layer: *layer,
            size: *size,
            sum: None,
            merging: None,
        };
        let points = before.disks.iter().zip(&sizes).enumerate().map(point).collect();
        let mut tops = Self { before, next: Vec::new(), frozen: Vec::new(), points };
        if tops.before.disks.iter().all(Option::is_none) {
            return Ok(tops);
        }
        let _pin = lineage.store.pin()?;
        let record = lineage.next_tops(&sizes)?;
        lineage.change(record)?;
        match open(host) {
            Ok(next) => tops.next = next,
            Err(error) => {
                tops.settle(host, false)?;
                return Err(error);
            }
        }
        Ok(tops)
    }

    /// Let them take the writes. The devices are stopped.
    ///
    /// # Errors
    /// If one has become too small: the disks before it are frozen then.
    pub(super) fn freeze(&mut self, host: &Host) -> Result<(), VmError> {
        for (at, next) in self.next.drain(..) {
            if let Some(disk) = host.disks.get(at) {
                self.frozen.push((at, disk.disk.freeze(next)?));
            }
        }
        Ok(())
    }

    /// Let the record say what the disks stand on: if all went well it does.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn settle(self, host: &mut Host, well: bool) -> Result<FrozenTops, VmError> {
        let Self { before, frozen, points, .. } = self;
        if !well && let Some(lineage) = host.lineage.as_mut() {
            take_back(lineage, before, &frozen)?;
        }
        Ok(FrozenTops { layers: frozen.into_iter().map(|(_, frozen)| frozen).collect(), points })
    }
}

/// Open the record's tops, which are new.
fn open(host: &Host) -> Result<Vec<(usize, NextTop)>, VmError> {
    let lineage = host.lineage.as_ref().ok_or(VmError::NoHome)?;
    let mut next = Vec::new();
    for (at, (top, disk)) in lineage.record().disks.iter().zip(&host.disks).enumerate() {
        if let Some(top) = top {
            next.push((at, disk.disk.prepare(&lineage.store.places().layer(*top))?));
        }
    }
    Ok(next)
}

/// There is no snapshot. What was frozen stays so; the other disks have the tops that they had.
fn take_back(lineage: &mut Lineage, before: Record, frozen: &[(usize, Frozen)]) -> Result<(), VmError> {
    for (_, frozen) in frozen {
        frozen.finish()?;
    }
    let mut record = before;
    for (at, _) in frozen {
        let new = lineage.record().disks.get(*at).copied().flatten();
        if let Some(top) = record.disks.get_mut(*at) {
            *top = new;
        }
    }
    if record != *lineage.record() {
        let made = lineage.change(record)?;
        lineage.forget(&made);
    }
    Ok(())
}

/// Make what was frozen durable, and say what each file is.
pub(super) fn finish(store: &Store, frozen: &[Frozen]) -> Result<Vec<Sum>, VmError> {
    let mut sums = Vec::new();
    for layer in frozen {
        layer.finish()?;
        sums.push(store.sum(layer.path())?);
    }
    Ok(sums)
}
