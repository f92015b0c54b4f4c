//! `skiff snapshot export` and `import`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use vmm::snapshot::store::StoreError;
use vmm::snapshot::{Id, Record};
use vmm::spec::NetBackend;

use super::{SNAPSHOT, bytes, family};
use crate::cmd::many::VM;
use crate::cmd::{Verb, print};
use crate::flags::{self, Completes, Count, Example, Flag, Operand, Takes, utf8};
use crate::progress::Bar;
use crate::store::state::{End, State};
use crate::store::{Store, names};

pub const EXPORT: Verb = Verb {
    name: "export",
    about: "Write a snapshot to one file that needs nothing else",
    long: "Write a snapshot to one file that needs nothing else: its memory, its devices, its disks with their bases, its kernel and \
           its initrd. skiff snapshot import reads it, here or on another machine. It is a tar archive, compressed with \
           zstd.",
    after: || EXAMPLES.to_owned(),
    flags: Vec::new,
    operands: &[VM, SNAPSHOT, FILE],
    run: export,
};

pub const IMPORT: Verb = Verb {
    name: "import",
    about: "Make a VM of an exported snapshot",
    long: "Make a VM of an exported snapshot. It is stopped, and has that snapshot: skiff rollback starts it there, skiff clone and \
           skiff run --from start others. The file is read to its end and checked before anything of it can be seen. What its spec said \
           of files and ports of the host that it comes from is dropped. A network on a tap leads to the tap of that name here, which is \
           said. Prints the VM and the snapshot.",
    after: || EXAMPLES.to_owned(),
    flags: || flags::describe(FLAGS),
    operands: &[FILE],
    run: import,
};

const EXAMPLES: &str = "\
Examples:
  skiff snapshot export web s1 web.skiff
  skiff snapshot import web.skiff --name staging";

const FILE: Operand =
    Operand { name: "FILE", count: Count::One, completes: Completes::Files, help: "The file" };

#[derive(Default)]
struct Asked {
    name: Option<String>,
}

const FLAGS: &[Flag<Asked>] = &[Flag {
    name: "name",
    short: None,
    takes: Takes::Text("NAME"),
    help: "What the VM is called [default: as it was, with a number if that name is taken]",
    long: "",
    example: Example { args: &["--name", "staging"], toml: "" },
    apply: |asked, value| {
        let name = utf8(value)?;
        names::check(name)?;
        asked.name = Some(name.to_owned());
        Ok(())
    },
}];

fn export(matches: &ArgMatches) -> Result<u8> {
    let store = Store::open()?;
    let family = family(&store, &VM.one(matches))?;
    let manifest = family.find(&SNAPSHOT.one(matches))?;
    let file = path(&FILE.one(matches))?;
    let mut bar = Bar::new(format!("exporting {}", manifest.name));
    store.snapshots().export(manifest.id, &family.vm, &file, &mut |done, total| bar.show(done, total))?;
    drop(bar);
    let len = file.metadata().map_or(0, |metadata| metadata.len());
    print(format!("{}@{} is in {}, {}\n", family.vm, manifest.name, file.display(), bytes(len)))
}

fn import(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    let file = path(&FILE.one(matches))?;
    let mut bar = Bar::new(format!("importing {}", file.display()));
    let import = store.snapshots().import(&file, &mut |done, total| bar.show(done, total))?;
    drop(bar);
    for net in &import.spec.nets {
        if let NetBackend::Tap(tap) = &net.backend {
            crate::terminal::note(&format!(
                "skiff: when it runs, its guest joins the network of this host's tap {tap}: that is its file's wish"
            ));
        }
    }
    let snapshot = import.name().to_owned();
    names::check_snapshot(&snapshot).with_context(|| format!("{} is damaged", file.display()))?;
    let name = match asked.name {
        Some(name) => name,
        None => free_name(&store, &import.vm).with_context(|| format!("{} is damaged", file.display()))?,
    };
    let held = store.create(Some(&name))?;
    let spec = import.spec.clone();
    let vm = Id::draw().context("cannot draw an id")?;
    let kept = import.commit(vm, |id, disks| {
        let mut record = Record::new(vm, vec![None; disks]);
        record.parent = Some(id);
        let snapshots = store.snapshots();
        record.write(snapshots.storage(), &held.record()).map_err(StoreError::from)
    });
    let kept = kept.map_err(anyhow::Error::from).and_then(|()| {
        held.write_state(State::new(false).ended(End::PoweredOff), true)?;
        held.write_spec(&spec, true)
    });
    if let Err(error) = kept {
        store.remove_own(&held)?;
        return Err(error);
    }
    held.sync();
    print(format!("{name}@{snapshot}\n"))
}

/// `name`, or with the first number behind it that nobody has.
fn free_name(store: &Store, name: &str) -> Result<String> {
    names::check(name)?;
    let numbered = (1_u32..1000).map(|number| format!("{name}-{number}"));
    let mut names = std::iter::once(name.to_owned()).chain(numbered);
    match names.find(|name| store.find(name).is_none()) {
        Some(name) => Ok(name),
        None => bail!("all names like {name} are taken: choose one with --name"),
    }
}

fn path(text: &str) -> Result<PathBuf> {
    if text.is_empty() {
        bail!("the path is empty: name a file");
    }
    std::path::absolute(Path::new(OsStr::new(text))).context("cannot tell the current directory")
}
