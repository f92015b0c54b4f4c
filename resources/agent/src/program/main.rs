//! The agent: the small static program that skiff runs inside a guest.
//!
//! ```text
//!   main       listens, takes connections                     serve
//!   request    one a connection: commands, transfers          exec, transfer
//!   link       the connection to the host, for ever           link, identity
//!   reaper     takes the exit status of every child           children
//!   signals, lease   as the guest's init only                 init
//! ```
//! It trusts neither what is said to it nor what the guest's files say, and nothing that it reads makes it end.

mod children;
mod exec;
mod limits;
mod power;
mod serve;
mod stream;
mod sys;
mod transfer;
mod users;

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use stream::Address;

const USAGE: &str = "\
usage: skiff-agent [--listen ADDRESS] [--link ADDRESS]
  ADDRESS is vsock:PORT or unix:PATH. As a guest's init it takes no arguments.";

/// Where the agent is reached, and where it reports.
#[derive(Debug)]
struct Options {
    listen: Address,
    link: Address,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Option<Self> {
        let mut options =
            Self { listen: Address::Vsock(agent::AGENT_PORT), link: Address::Vsock(agent::LINK_PORT) };
        while let Some(arg) = args.next() {
            let address = Address::parse(&args.next()?)?;
            match arg.as_str() {
                "--listen" => options.listen = address,
                "--link" => options.link = address,
                _ => return None,
            }
        }
        Some(options)
    }
}

/// Say something to the guest's journal or console. That it cannot be said is no error.
fn note(what: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "skiff-agent: {what}");
}

fn main() -> ExitCode {
    // The kernel hands words of its command line that it does not know to init.
    let args = std::env::args().skip(1).filter(|_| !power::is_init());
    let Some(options) = Options::parse(args) else {
        note(format_args!("{USAGE}"));
        return ExitCode::from(2);
    };
    limits::take();
    if let Err(error) = children::start_reaper() {
        note(format_args!("cannot start a thread: {error}"));
        return ExitCode::FAILURE;
    }
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
    }

    #[test]
    fn arguments_are_addresses() {
        let options = parse(&["--link", "unix:/a", "--listen", "vsock:7"]).unwrap();
        assert!(matches!(options.listen, Address::Vsock(7)));
        assert!(matches!(options.link, Address::Unix(path) if path.ends_with("a")));
        for wrong in [&["--listen"][..], &["--listen", "unix:"], &["--listen", "vsock:x"], &["x", "unix:/a"]]
        {
            assert!(parse(wrong).is_none(), "{wrong:?}");
        }
    }
}
