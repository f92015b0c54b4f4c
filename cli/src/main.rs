//! The `skiff` program: flags and files to a spec, the spec to a running VM, and the terminal in between.
//!
//! [`cmd`] has one module a verb or group of verbs; each lists its flags as [`flags::Flag`] records. Errors are `anyhow` here and
//! are said once, by [`exit::report`].

mod agent;
mod cmd;
mod completion;
mod copy;
mod escape;
mod exec;
mod exit;
mod flags;
mod front;
mod guest;
mod held;
mod input;
mod interrupt;
mod launch;
mod logging;
mod process;
mod progress;
mod signals;
mod store;
mod terminal;
mod transfer;

use std::process::ExitCode;

use clap::Command;

/// What the program answers to.
fn command() -> Command {
    Command::new("skiff")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Runs virtual machines the way people run containers")
        .after_help(exit::HELP)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(cmd::WORDS.iter().map(cmd::Word::command))
}

fn main() -> ExitCode {
    // A process that unpacks becomes root of a namespace of its own, for which it may have one thread only.
    if let Some(code) = images::rootless::answer(std::env::args_os()) {
        return ExitCode::from(code);
    }
    match completion::answer(command) {
        Ok(false) => {}
        Ok(true) => return ExitCode::from(exit::SUCCESS),
        Err(error) => return exit::report_clap(&error),
    }
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => return exit::report_clap(&error),
    };
    match cmd::chosen(&matches) {
        Some((verb, matches)) => match (verb.run)(matches) {
            Ok(code) => ExitCode::from(code),
            Err(error) => exit::report(&error),
        },
        // Clap lets nothing through that is not in the list.
        None => ExitCode::from(exit::USAGE),
    }
}

#[cfg(test)]
mod tests {
    use super::flags::Completes;

    #[test]
    fn the_command_line_is_consistent() {
        super::command().debug_assert();
    }

    #[test]
    fn every_flag_of_every_verb_is_taken_as_its_example_shows() {
        for verb in super::cmd::WORDS.iter().flat_map(super::cmd::Word::verbs) {
            let operands = verb.operands.iter().map(|operand| match operand.completes {
                Completes::Words(words) => *words.first().unwrap(),
                Completes::Verbs => "run",
                _ => "web",
            });
            for flag in (verb.flags)() {
                let words =
                    [verb.name].into_iter().chain(flag.example.args.iter().copied()).chain(operands.clone());
                let parsed = verb.command().try_get_matches_from(words);
                assert!(parsed.is_ok(), "{} --{}: {:?}", verb.name, flag.name, parsed.err());
            }
        }
    }
}
