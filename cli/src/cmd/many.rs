//! Doing one thing to many VMs, and what several verbs do to one.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use vmm::control::VmAction;

use crate::exit;
use crate::flags::{Completes, Count, Operand};
use crate::store::Store;
use crate::store::entry::{Entry, Look, Status};

/// VMs, at least one.
pub const VMS: Operand =
    Operand { name: "VM", count: Count::Some, completes: Completes::Vms, help: "The VMs, by name" };
/// VMs that run, at least one.
pub const RUNNING: Operand =
    Operand { name: "VM", count: Count::Some, completes: Completes::RunningVms, help: "The VMs, by name" };
/// VMs that do not run, at least one.
pub const STOPPED: Operand =
    Operand { name: "VM", count: Count::Some, completes: Completes::StoppedVms, help: "The VMs, by name" };
/// One VM.
pub const VM: Operand =
    Operand { name: "VM", count: Count::One, completes: Completes::Vms, help: "The VM, by name" };
/// One VM that runs.
pub const RUNNING_VM: Operand =
    Operand { name: "VM", count: Count::One, completes: Completes::RunningVms, help: "The VM, by name" };

/// How long a VM may take to end after it was killed, before its process is.
const DYING: Duration = Duration::from_secs(5);
/// How long a VM may take to start.
const STARTING: Duration = Duration::from_secs(10);

/// Do `act` to all of `names` at once. What it returns is printed, in order; so is every error. Fails if one did.
pub fn each(names: &[String], act: impl Fn(&str) -> Result<String> + Sync) -> Result<u8> {
    let act = &act;
    let results: Vec<Result<String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = names.iter().map(|name| scope.spawn(move || act(name))).collect();
        let defect =
            || anyhow::anyhow!("a thread of skiff panicked; this is a defect of skiff, please report it");
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(defect()))).collect()
    });
    tell(results)
}

/// Print what came of each. Fails if one did.
pub fn tell(results: Vec<Result<String>>) -> Result<u8> {
    let mut code = exit::SUCCESS;
    for result in results {
        match result {
            Ok(text) => _ = super::print(&text)?,
            Err(error) => {
                exit::say(&error);
                code = exit::FAILURE;
            }
        }
    }
    Ok(code)
}

/// The VM `name`, which must run; if it starts just now, when it does.
pub fn running(store: &Store, name: &str) -> Result<Look> {
    let mut waited = Duration::ZERO;
    let nap = Duration::from_millis(5);
    loop {
        let look = store.get(name)?;
        match look.status() {
            Status::Starting if waited < STARTING => {}
            Status::Starting => bail!("{name} has been starting for a long time: skiff kill {name} ends it"),
            _ if look.is_live() => return Ok(look),
            _ => bail!("{name} is not running: skiff start {name} starts it"),
        }
        std::thread::sleep(nap);
        waited += nap;
    }
}

/// Ask the running VM `name` for `action`.
pub fn ask(store: &Store, name: &str, action: VmAction) -> Result<vmm::control::VmReply> {
    let look = running(store, name)?;
    look.entry.client(None)?.act(action).with_context(|| name.to_owned())
}

/// End a VM's process, by its own hand if it has one.
pub fn kill(store: &Store, entry: &Entry) -> Result<()> {
    let asked = entry.client(Some(DYING)).is_ok_and(|mut client| client.act(VmAction::Kill).is_ok());
    if !(asked && entry.wait_gone(Some(DYING))) {
        entry.kill_process()?;
        if !entry.wait_gone(Some(DYING)) {
            bail!(
                "the process of {} was killed and does not end: the host keeps it (see ps -o stat,wchan)",
                entry.name()
            );
        }
    }
    // What it could not write down itself.
    if let Some(entry) = store.find(entry.name()) {
        let _ = store.get(entry.name());
    }
    Ok(())
}
