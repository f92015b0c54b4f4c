//! `skiff run`: boot a VM in the foreground, with the terminal as its console.

use anyhow::{Context, Result};
use clap::ArgMatches;
use vmm::spec::{Stream, VmSpec};

use self::asked::Asked;
use super::Verb;
use crate::flags;
use crate::logging::{self, Logging};

mod asked;
mod options;
mod session;
#[cfg(test)]
mod tests;

pub const VERB: Verb = Verb {
    name: "run",
    about: "Boot a VM and give it this terminal",
    long: "Boot a VM and give it this terminal. It runs in the foreground: the guest's poweroff ends it, and so \
           does Ctrl-] q. A guest's reboot boots it again in place.",
    after: || format!("{EXAMPLES}\n\n{}", crate::exit::HELP),
    flags: || flags::describe(options::FLAGS),
    operands: &[],
    run,
};

const EXAMPLES: &str = "\
Examples:
  skiff run --kernel /boot/vmlinuz-6.1.0-28-cloud-amd64 --initrd initrd.img
  skiff run --kernel vmlinuz --disk path=root.img --cmdline 'console=ttyS0 root=/dev/vda1'
  skiff run --kernel vmlinuz --initrd initrd.img --console stdio --serial file=boot.log
  skiff run --config vm.toml --memory 2G
  skiff run --kernel vmlinuz --cpus 4 --dry-run > vm.toml

Keys, when the guest has a terminal:
  Ctrl-] q       end the VM
  Ctrl-] p       press its power button
  Ctrl-] Ctrl-]  type Ctrl-]";

fn run(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(options::FLAGS, matches, &mut asked)?;
    if let Some(path) = asked.config.clone() {
        asked = asked.over(Asked::from_file(&path)?);
    }
    let dry_run = asked.dry_run == Some(true);
    let (verbose, file) = (asked.verbose.unwrap_or(0), asked.log_file.take());
    let spec = asked.resolve()?;
    if dry_run {
        return print(&spec);
    }
    let guest_on_stdout = spec.serial == Stream::Stdio || spec.console == Stream::Stdio;
    logging::start(&Logging { verbose, file, guest_on_stdout })?;
    session::run(spec)
}

fn print(spec: &VmSpec) -> Result<u8> {
    let text = toml::to_string(spec).context("the spec cannot be written as TOML")?;
    super::print(text.as_bytes())
}
