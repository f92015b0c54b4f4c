//! One record per flag: its name, its help, what it does, and an example that is also its test; and one per operand.
//!
//! The command line, the keys of a file, help texts, and whatever is generated from them all come from these records. A
//! [`Described`] is a flag without what it does, so that the flags of all verbs can be looked at alike.

use std::ffi::{OsStr, OsString};

use anyhow::{Context, Result};
use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint};
use clap_complete::ArgValueCandidates;

use crate::cmd::WORDS;
use crate::completion;
use crate::exit::Usage;
pub use vmm::spec::closest;

/// A flag that changes a `T`.
pub struct Flag<T> {
    /// The long name, without dashes. It is also the key in a file.
    pub name: &'static str,
    /// The short name, if there is one.
    pub short: Option<char>,
    /// What stands after it.
    pub takes: Takes,
    /// One line, for `-h`.
    pub help: &'static str,
    /// Further lines for `--help`. May be empty.
    pub long: &'static str,
    /// The flag at work and, if it has a key in files, the same thing there.
    pub example: Example,
    /// Applies one occurrence with its value (empty if it takes none).
    pub apply: fn(&mut T, &OsStr) -> Result<()>,
}

impl<T> Flag<T> {
    /// `--json`: results for programs.
    pub const fn json(help: &'static str, apply: fn(&mut T, &OsStr) -> Result<()>) -> Self {
        let example = Example { args: &["--json"], toml: "" };
        Self { name: "json", short: None, takes: Takes::Nothing, help, long: "", example, apply }
    }

    /// `--dry-run`: nothing is freed.
    pub const fn dry_run(apply: fn(&mut T, &OsStr) -> Result<()>) -> Self {
        let example = Example { args: &["--dry-run"], toml: "" };
        let help = "Say what would be freed, and free nothing";
        Self { name: "dry-run", short: Some('n'), takes: Takes::Nothing, help, long: "", example, apply }
    }

    /// `--quiet`: names only.
    pub const fn quiet(help: &'static str, apply: fn(&mut T, &OsStr) -> Result<()>) -> Self {
        let example = Example { args: &["-q"], toml: "" };
        Self { name: "quiet", short: Some('q'), takes: Takes::Nothing, help, long: "", example, apply }
    }
}

/// A flag's value.
pub enum Takes {
    /// A file, called this in the help.
    File(&'static str),
    /// Text, called this in the help.
    Text(&'static str),
    /// A snapshot of a VM, written `VM@SNAPSHOT`.
    Point(&'static str),
    /// Text, as often as wanted.
    Texts(&'static str),
    /// One of these words.
    Choice(&'static str, &'static [&'static str]),
    /// Nothing: it is there or not.
    Nothing,
    /// Nothing, and each occurrence counts.
    Count,
}

/// The same wish on the command line and in a file.
pub struct Example {
    /// Arguments.
    pub args: &'static [&'static str],
    /// Lines of TOML; empty for a flag that cannot stand in a file.
    pub toml: &'static str,
}

impl Example {
    /// The arguments as a shell takes them.
    pub fn command_line(&self) -> String {
        self.args.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }
}

impl Takes {
    /// What the value is called, if there is one.
    pub fn value_name(&self) -> Option<&'static str> {
        match self {
            Self::File(name)
            | Self::Text(name)
            | Self::Point(name)
            | Self::Texts(name)
            | Self::Choice(name, _) => Some(name),
            Self::Nothing | Self::Count => None,
        }
    }
}

/// A flag as whoever only tells of it sees it: see [`Flag`].
#[derive(Clone, Copy)]
pub struct Described {
    pub name: &'static str,
    pub short: Option<char>,
    pub takes: &'static Takes,
    pub help: &'static str,
    pub long: &'static str,
    pub example: &'static Example,
}

/// What stands on the command line without a dash.
pub struct Operand {
    /// What it is called in the help.
    pub name: &'static str,
    /// How many there are.
    pub count: Count,
    /// What a shell can complete it with.
    pub completes: Completes,
    /// One line.
    pub help: &'static str,
}

/// How often an [`Operand`] may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Exactly once.
    One,
    /// Once or not at all.
    Maybe,
    /// Once or more.
    Some,
    /// As often as wanted, or not at all.
    Any,
    /// All that follows, once or more, what begins with a dash included: a command of the guest's.
    Rest,
    /// The same, or nothing.
    MaybeRest,
}

/// What a shell can complete an [`Operand`] with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completes {
    /// Any VM: what `skiff ps -aq` prints.
    Vms,
    /// An image: what `skiff image ls -q` prints.
    Images,
    /// Images that are here, and those that would be built.
    ImagesToBe,
    /// A VM that runs: what `skiff ps -q` prints.
    RunningVms,
    /// A VM that does not run.
    StoppedVms,
    /// A snapshot of the VM that stands before it.
    Snapshots,
    /// A VM, or a snapshot of one, written `VM@SNAPSHOT`.
    VmsAndPoints,
    /// A file.
    Files,
    /// A verb. Nothing else is taken.
    Verbs,
    /// One of these words. Nothing else is taken.
    Words(&'static [&'static str]),
    /// Nothing that is there already.
    Nothing,
}

impl Operand {
    fn arg(&self) -> Arg {
        let arg = Arg::new(self.name).value_name(self.name).help(self.help).value_hint(ValueHint::Other);
        let arg = match self.completes {
            Completes::Vms => arg.add(ArgValueCandidates::new(completion::vms)),
            Completes::Images => arg.add(ArgValueCandidates::new(completion::images)),
            Completes::ImagesToBe => arg.add(ArgValueCandidates::new(completion::images_to_be)),
            Completes::RunningVms => arg.add(ArgValueCandidates::new(completion::running_vms)),
            Completes::StoppedVms => arg.add(ArgValueCandidates::new(completion::stopped_vms)),
            Completes::Snapshots => arg.add(ArgValueCandidates::new(completion::snapshots)),
            Completes::VmsAndPoints => arg.add(ArgValueCandidates::new(completion::vms_and_points)),
            Completes::Files => arg.value_hint(ValueHint::FilePath),
            Completes::Verbs => {
                arg.value_parser(PossibleValuesParser::new(WORDS.iter().map(|word| word.name())))
            }
            Completes::Words(words) => arg.value_parser(PossibleValuesParser::new(words)),
            Completes::Nothing => arg,
        };
        match self.count {
            Count::One => arg.required(true),
            Count::Maybe => arg,
            Count::Some => arg.required(true).num_args(1..).action(ArgAction::Append),
            Count::Any => arg.num_args(0..).action(ArgAction::Append),
            Count::Rest => rest(arg).required(true),
            Count::MaybeRest => rest(arg),
        }
    }

    /// What was given for it, in order, each once.
    pub fn given(&self, matches: &ArgMatches) -> Vec<String> {
        let mut given: Vec<String> = Vec::new();
        for text in matches.get_many::<String>(self.name).into_iter().flatten() {
            if !given.contains(text) {
                given.push(text.clone());
            }
        }
        given
    }

    /// What was given for it, in order.
    pub fn all(&self, matches: &ArgMatches) -> Vec<String> {
        matches.get_many::<String>(self.name).into_iter().flatten().cloned().collect()
    }

    /// What was given for one that stands once or not at all.
    pub fn maybe(&self, matches: &ArgMatches) -> Option<String> {
        matches.get_one::<String>(self.name).cloned()
    }

    /// What was given for one that stands exactly once.
    pub fn one(&self, matches: &ArgMatches) -> String {
        matches.get_one::<String>(self.name).cloned().unwrap_or_default()
    }
}

impl Described {
    fn arg(&self) -> Arg {
        let arg =
            Arg::new(self.name).long(self.name).short(self.short).help(self.help).long_help(self.long_help());
        match self.takes {
            Takes::File(name) => text(arg, name).value_hint(ValueHint::FilePath),
            Takes::Text(name) => text(arg, name),
            Takes::Point(name) => text(arg, name).add(ArgValueCandidates::new(completion::points)),
            Takes::Texts(name) => text(arg, name).action(ArgAction::Append),
            Takes::Choice(name, words) => {
                arg.value_name(*name).value_parser(PossibleValuesParser::new(words.iter()))
            }
            Takes::Nothing => arg.action(ArgAction::SetTrue),
            Takes::Count => arg.action(ArgAction::Count),
        }
    }

    fn long_help(&self) -> String {
        let mut help = self.help.to_owned();
        if !self.long.is_empty() {
            help.push_str("\n\n");
            help.push_str(self.long);
        }
        help.push_str("\n\nExample:    ");
        help.push_str(&self.example.command_line());
        if !self.example.toml.is_empty() {
            help.push_str("\nIn a file:  ");
            help.push_str(&self.example.toml.replace('\n', "\n            "));
        }
        help
    }
}

impl<T> Flag<T> {
    /// Without what it does.
    const fn describe(&'static self) -> Described {
        Described {
            name: self.name,
            short: self.short,
            takes: &self.takes,
            help: self.help,
            long: self.long,
            example: &self.example,
        }
    }

    /// Every value that was given for this flag, in order.
    fn given(&self, matches: &ArgMatches) -> Vec<OsString> {
        match self.takes {
            Takes::Nothing => vec![OsString::new(); usize::from(matches.get_flag(self.name))],
            Takes::Count => vec![OsString::new(); usize::from(matches.get_count(self.name))],
            Takes::Choice(..) => {
                matches.get_many::<String>(self.name).into_iter().flatten().map(OsString::from).collect()
            }
            _ => matches.get_many::<OsString>(self.name).into_iter().flatten().cloned().collect(),
        }
    }
}

/// `word` as a shell needs it.
fn quoted(word: &str) -> String {
    if word.contains(' ') { format!("'{word}'") } else { word.to_owned() }
}

/// It takes whatever comes.
fn rest(arg: Arg) -> Arg {
    arg.num_args(1..).action(ArgAction::Append).trailing_var_arg(true).allow_hyphen_values(true)
}

fn text(arg: Arg, name: &'static str) -> Arg {
    arg.value_name(name).value_parser(clap::value_parser!(OsString))
}

/// All of `flags`, without what they do.
pub fn describe<T>(flags: &'static [Flag<T>]) -> Vec<Described> {
    flags.iter().map(Flag::describe).collect()
}

/// Give `command` all of `flags` and `operands`.
pub fn add(command: Command, flags: &[Described], operands: &[Operand]) -> Command {
    command.args(flags.iter().map(Described::arg)).args(operands.iter().map(Operand::arg))
}

/// Let every flag that was given change `target`.
pub fn apply<T>(flags: &[Flag<T>], matches: &ArgMatches, target: &mut T) -> Result<()> {
    for flag in flags {
        for value in flag.given(matches) {
            (flag.apply)(target, &value)
                .map_err(|error| anyhow::Error::new(Usage(format!("--{}: {error:#}", flag.name))))?;
        }
    }
    Ok(())
}

/// `value` as UTF-8.
pub fn utf8(value: &OsStr) -> Result<&str> {
    value.to_str().with_context(|| format!("'{}' is not UTF-8", value.display()))
}
