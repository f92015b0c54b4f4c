//! The agent: the small static program that skiff runs inside a guest.
//!
//! ```text
//!   main       listens, takes connections                     serve
//!   request    one a connection: commands, transfers          exec, transfer
//!   link       the connection to the host, for ever           link, identity
//!   reaper     takes the exit status of every child           children
//!   signals, lease   as the guest's init only                 init
//! ```
//! It starts without the standard library's own `main`: that one ends a process whose standard input is closed and which finds no
//! `/dev/null`, and a kernel's first process may well be one.
//!
//! It trusts neither what is said to it nor what the guest's files say, and nothing that it reads makes it end.

#![cfg_attr(not(test), no_main)]

mod children;
mod exec;
mod identity;
mod init;
mod interfaces;
mod limits;
mod link;
mod power;
mod serve;
mod shares;
mod stream;
mod sys;
mod transfer;
mod users;

use std::convert::Infallible;
use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use identity::Guest;
use stream::Address;

const USAGE: &str = "\
usage: skiff-agent [--listen ADDRESS] [--link ADDRESS] [--root DIR]
  ADDRESS is vsock:PORT or unix:PATH. DIR stands for the guest's files in tests, and its kernel is left alone: that must be said with --link unix:…
  As a guest's init it takes no arguments.";

/// Where the agent is reached, and where it reports.
#[derive(Debug)]
struct Options {
    listen: Address,
    link: Address,
    /// Where the guest's own files are.
    root: PathBuf,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Option<Self> {
        let mut options = Self {
            listen: Address::Vsock(agent::AGENT_PORT),
            link: Address::Vsock(agent::LINK_PORT),
            root: "/".into(),
        };
        while let Some(arg) = args.next() {
            let value = args.next()?;
            match arg.as_str() {
                "--listen" => options.listen = Address::parse(&value)?,
                "--link" => options.link = Address::parse(&value)?,
                "--root" => options.root = value.into(),
                _ => return None,
            }
        }
        // Who tests on a machine of theirs wants to keep its name.
        let guest = matches!(options.link, Address::Vsock(_));
        (guest || options.root != Path::new("/")).then_some(options)
    }
}

/// Say something to the guest's journal or console. That it cannot be said is no error.
fn note(what: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "skiff-agent: {what}");
}

#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main() -> libc::c_int {
    std::panic::catch_unwind(run).unwrap_or(1)
}

fn run() -> libc::c_int {
    // A closed connection is an error like any other.
    // SAFETY: sets no handler of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    // The kernel hands words of its command line that it does not know to init.
    let args = std::env::args().skip(1).filter(|_| !power::is_init());
    let Some(options) = Options::parse(args) else {
        note(format_args!("{USAGE}"));
        return 2;
    };
    match start(&options) {
        Ok(never) => match never {},
        Err(error) => {
            note(format_args!("{error}"));
            1
        }
    }
}

fn start(options: &Options) -> io::Result<Infallible> {
    limits::take();
    if power::is_init() {
        init::start()?;
    }
    children::start_reaper()?;
    link::start(options.link.clone(), Guest::new(options.root.clone()))?;
    serve::serve(&options.listen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Option<Options> {
        Options::parse(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn without_arguments_it_is_reached_over_vsock() {
        let options = parse(&[]).unwrap();
        assert!(matches!(options.listen, Address::Vsock(agent::AGENT_PORT)));
        assert!(matches!(options.link, Address::Vsock(agent::LINK_PORT)));
        assert_eq!(options.root, PathBuf::from("/"));
    }

    #[test]
    fn arguments_are_addresses() {
        let options = parse(&["--link", "unix:/a", "--listen", "vsock:7", "--root", "/b"]).unwrap();
        assert!(matches!(options.listen, Address::Vsock(7)));
        assert!(matches!(options.link, Address::Unix(path) if path.ends_with("a")));
        for wrong in [
            &["--listen"][..],
            &["--listen", "unix:"],
            &["--listen", "vsock:x"],
            &["x", "unix:/a"],
            &["--link", "unix:/a"],
        ] {
            assert!(parse(wrong).is_none(), "{wrong:?}");
        }
    }
}
