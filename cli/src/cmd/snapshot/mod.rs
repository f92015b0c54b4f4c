//! `skiff snapshot`: points in VMs' lives to which one can go back, and from which others start.

use anyhow::Result;
use vmm::snapshot::store::StoreError;

use super::Group;
use crate::flags::{Completes, Count, Operand};
use crate::store::Store;
use crate::store::layers::Family;

mod archive;
pub mod create;
mod list;
mod remove;
mod tree;

/// `skiff snapshot`.
pub const GROUP: Group = Group {
    name: "snapshot",
    about: "Freeze whole VMs at an instant: memory, devices and disks",
    long: "Freeze whole VMs at an instant: memory, devices and disks. A snapshot is taken in milliseconds of a VM that runs \
           on, holds what has changed since the one before only, and never changes. skiff rollback puts the VM back to \
           it, skiff clone and skiff run --from start others from it.",
    verbs: &[create::VERB, list::LS, tree::VERB, list::SHOW, remove::VERB, archive::EXPORT, archive::IMPORT],
};

/// One snapshot.
pub const SNAPSHOT: Operand = Operand {
    name: "SNAPSHOT",
    count: Count::One,
    completes: Completes::Snapshots,
    help: "The snapshot, by its name or id",
};

/// The VM `name` and its snapshots. The user is told of those that cannot be read: what is asked for may be one of them.
pub fn family(store: &Store, name: &str) -> Result<Family> {
    let mut family = store.family(&store.get(name)?)?;
    tell_wrong(std::mem::take(&mut family.wrong));
    Ok(family)
}

/// Say what is wrong with snapshots that cannot be read.
pub fn tell_wrong(wrong: Vec<StoreError>) {
    for error in wrong {
        crate::terminal::note(&format!("skiff: warning: {:#}", anyhow::Error::new(error)));
    }
}

/// Bytes as people read them: `3.4 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0_usize);
    while value >= 1024.0 && unit < UNITS.len().saturating_sub(1) {
        value /= 1024.0;
        unit = unit.saturating_add(1);
    }
    let digits = usize::from(value < 100.0);
    format!("{value:.digits$} {}", UNITS.get(unit).copied().unwrap_or_default())
}

/// Microseconds as people read them: `1.2 ms`.
pub fn micros(us: u64) -> String {
    match us {
        0..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{} ms", us / 1000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_times_have_the_unit_that_fits() {
        for (amount, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (3_565_158, "3.4 MiB"),
            (200 << 20, "200 MiB"),
            (5 << 40, "5.0 TiB"),
        ] {
            assert_eq!(bytes(amount), text);
        }
        for (us, text) in [(0, "0.0 ms"), (1249, "1.2 ms"), (250_000, "250 ms"), (2_500_000, "2.5 s")] {
            assert_eq!(micros(us), text);
        }
    }
}
