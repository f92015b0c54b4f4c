//! `skiff resize`.

use anyhow::{Context, Result};
use clap::ArgMatches;
use vmm::control::VmAction;
use vmm::spec::Memory;

use super::Verb;
use super::many::{self, RUNNING_VM};
use crate::exit::{SUCCESS, Usage};
use crate::flags::{self, Example, Flag, Takes, utf8};
use crate::store::Store;

/// `skiff resize`.
pub const VERB: Verb = Verb {
    name: "resize",
    about: "Give a running VM a larger disk, or more or less memory",
    long: "Give a running VM a larger disk, or more or less of its memory. The guest sees at once that a disk has grown; its file \
           systems are its own affair (growpart, resize2fs). Memory is taken and given back by the balloon, up to what the VM \
           was started with, as fast as the guest can.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[RUNNING_VM],
    run: resize,
};

#[derive(Default)]
struct Asked {
    actions: Vec<VmAction>,
}

const FLAGS: &[Flag<Asked>] = &[
    Flag {
        name: "disk",
        short: None,
        takes: Takes::Texts("ID=SIZE"),
        help: "Grow this disk: disk0 is the first, disk1 the second, …",
        long: "A raw file is made longer; a block device must have been already, and SIZE is the size it has now.",
        example: Example { args: &["--disk", "disk0=20G"], toml: "" },
        apply: |asked, value| {
            let text = utf8(value)?;
            let wrong = || format!("'{text}' names no disk and size: write ID=SIZE, such as disk0=20G");
            let (disk, size) = text.split_once('=').with_context(wrong)?;
            let size: Memory = size.parse().map_err(|_| anyhow::Error::msg(wrong()))?;
            asked.actions.push(VmAction::ResizeDisk { disk: disk.to_owned(), size: size.0 });
            Ok(())
        },
    },
    Flag {
        name: "memory",
        short: None,
        takes: Takes::Text("SIZE"),
        help: "Leave the guest this much of its memory",
        long: "",
        example: Example { args: &["--memory", "1G"], toml: "" },
        apply: |asked, value| {
            let size: Memory = utf8(value)?.parse()?;
            asked.actions.push(VmAction::ResizeMemory { size: size.0 });
            Ok(())
        },
    },
];

fn resize(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    if asked.actions.is_empty() {
        return Err(Usage("nothing to resize: give --disk ID=SIZE or --memory SIZE".to_owned()).into());
    }
    let store = Store::open()?;
    for action in asked.actions {
        many::ask(&store, &RUNNING_VM.one(matches), action)?;
    }
    Ok(SUCCESS)
}
