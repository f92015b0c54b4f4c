//! `skiff rollback`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use serde::Serialize;
use vmm::control::{VmAction, VmReply};
use vmm::snapshot::Id;

use super::many::{self, VM};
use super::snapshot::{SNAPSHOT, family, micros};
use super::{Verb, clone, print};
use crate::flags::{self, Flag};
use crate::launch::{Launch, Which};
use crate::logging::Logging;
use crate::store::Store;

/// How long a VM may take that is busy with a snapshot.
const PATIENCE: Duration = Duration::from_secs(600);

pub const VERB: Verb = Verb {
    name: "rollback",
    about: "Put a VM back to one of its snapshots",
    long: "Put a VM back to one of its snapshots: its memory, its devices and its disks are what they were, and all that it has \
           done since is lost, unless another snapshot has it. A VM that runs goes on from there in the same process, with \
           its consoles and sockets, even if it was paused; one that has stopped is started there, in the background. The snapshot may be one of \
           another VM that it was cloned from.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[VM, SNAPSHOT],
    run: rollback,
};

#[derive(Default)]
struct Asked {
    json: bool,
}

const FLAGS: &[Flag<Asked>] = &[Flag::json("Print a JSON object", |asked, _| {
    asked.json = true;
    Ok(())
})];

/// A VM that is back at a snapshot, as programs see it. The keys stay what they are.
#[derive(Serialize)]
struct Back<'a> {
    vm: &'a str,
    name: &'a str,
    id: Id,
    /// How long it took until the guest ran again; a VM that had stopped was started.
    us: Option<u64>,
}

impl Back<'_> {
    fn print(&self, json: bool) -> Result<u8> {
        let Self { vm, name, us, .. } = self;
        print(match us {
            _ if json => super::json(self)?,
            Some(us) => format!("{vm} is back at {name}, in {}\n", micros(*us)),
            None => format!("{vm} runs, from {name}\n"),
        })
    }
}

fn rollback(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    let name = VM.one(matches);
    let mut look = store.get(&name)?;
    let family = family(&store, &name)?;
    let manifest = family.find(&SNAPSHOT.one(matches))?;
    let (id, snapshot) = (manifest.id, &manifest.name);
    // Here, where it can take its time, so that the VM finds it checked.
    clone::check(&store, manifest)?;
    if !look.is_live() {
        let which = Which::Again { name: name.clone(), from: Some(id) };
        let logging = Logging { verbose: 0, file: None, guest_on_stdout: false, detached: true };
        let launch = Launch { store: store.clone(), which, foreground: false, logging };
        let name = launch.fork()?.started()?;
        store.sweep_behind();
        return Back { vm: &name, name: snapshot, id, us: None }.print(asked.json);
    }
    look = many::running(&store, &name)?;
    let reply = look.entry.client(Some(PATIENCE))?.act(VmAction::Rollback { snapshot: id });
    let us = match reply.with_context(|| name.clone())? {
        VmReply::RolledBack { us } => us,
        VmReply::Ended => bail!("{name} has ended meanwhile"),
        other => bail!("{name} answers {other:?}: it was started by another version of skiff"),
    };
    store.sweep_behind();
    Back { vm: &name, name: snapshot, id, us: Some(us) }.print(asked.json)
}
