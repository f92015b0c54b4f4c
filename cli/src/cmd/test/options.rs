//! The flags of `skiff test`.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::screen::Show;
use super::suite::{MOST_RUNS, Suite, copy_step, run_step};
use crate::cmd::exec::{span, variable};
use crate::flags::{Example, Flag, Takes, utf8};

/// What the command line says.
#[derive(Debug, Default)]
pub struct Asked {
    /// Of what and how.
    pub suite: Suite,
    /// The file.
    pub file: Option<PathBuf>,
    pub junit: Option<PathBuf>,
    /// A path, or `-`.
    pub json: Option<PathBuf>,
    pub show: Show,
    /// Make what tests start from anew.
    pub fresh: bool,
    /// Say which tests there are, and run none.
    pub list: bool,
}

const fn flag(
    name: &'static str,
    short: Option<char>,
    takes: Takes,
    help: &'static str,
    example: &'static [&'static str],
    toml: &'static str,
    apply: fn(&mut Asked, &OsStr) -> Result<()>,
) -> Flag<Asked> {
    Flag { name, short, takes, help, long: "", example: Example { args: example, toml }, apply }
}

pub const FLAGS: &[Flag<Asked>] = &[
    Flag {
        long: "One name or several with commas between. One that is not there is built or pulled, as skiff run does.",
        ..flag(
            "on",
            None,
            Takes::Texts("IMAGE,…"),
            "The images to test on",
            &["--on", "debian:11,debian:12"],
            "on = [\"debian:11\", \"debian:12\"]",
            |asked, value| {
                let images = utf8(value)?.split(',').map(str::trim).filter(|image| !image.is_empty());
                asked.suite.on.extend(images.map(str::to_owned));
                Ok(())
            },
        )
    },
    Flag {
        long: "Without it, skiff-test.toml of the current directory is read, unless both --on and a CMD are there.",
        ..flag(
            "file",
            Some('f'),
            Takes::File("FILE"),
            "What is to be tested and how",
            &["-f", "skiff-test.toml"],
            "",
            |asked, value| {
                asked.file = Some(value.into());
                Ok(())
            },
        )
    },
    Flag {
        long: "As many as there are processors, and no more than free memory allows.",
        ..flag(
            "jobs",
            Some('j'),
            Takes::Text("N"),
            "How many guests there are at once",
            &["-j", "4"],
            "jobs = 4",
            |asked, value| {
                asked.suite.jobs = Some(number(value, 1)?);
                Ok(())
            },
        )
    },
    flag(
        "timeout",
        None,
        Takes::Text("TIME"),
        "How long the command may take in each guest, as in 90s, 5m or 1h [default: for ever]",
        &["--timeout", "5m"],
        "timeout = \"5m\"",
        |asked, value| {
            let time = span(value)?;
            if time.is_zero() {
                bail!("no time is too little: leave it out for no limit");
            }
            asked.suite.timeout = Some(time);
            Ok(())
        },
    ),
    flag(
        "retry",
        None,
        Takes::Text("N"),
        "Try a test that fails again, so often; one that passes then is flaky, and counts as passed",
        &["--retry", "2"],
        "retry = 2",
        |asked, value| {
            asked.suite.retry = Some(number(value, 0)?);
            Ok(())
        },
    ),
    flag(
        "flaky",
        None,
        Takes::Text("N"),
        "Run each test so often from the same instant, and say how often it failed",
        &["--flaky", "20"],
        "flaky = 20",
        |asked, value| {
            asked.suite.flaky = Some(number(value, 1)?);
            Ok(())
        },
    ),
    flag(
        "fail-fast",
        None,
        Takes::Nothing,
        "End it all at the first failure",
        &["--fail-fast"],
        "fail-fast = true",
        |asked, _| {
            asked.suite.fail_fast = Some(true);
            Ok(())
        },
    ),
    Flag {
        long: "HOST is a folder, from here on if it is relative. The command sees it, the setup does not: what is in it may change without the \
               setup being done again. See skiff run.",
        ..flag(
            "volume",
            Some('v'),
            Takes::Texts("HOST:GUEST[:ro]"),
            "Share a folder of the host with the guests",
            &["-v", ".:/src:ro"],
            "volume = [\".:/src:ro\"]",
            |asked, value| {
                asked.suite.volumes.push(utf8(value)?.parse()?);
                Ok(())
            },
        )
    },
    flag(
        "env",
        Some('e'),
        Takes::Texts("KEY=VALUE"),
        "Put this into the environment of the setup and the command; KEY alone takes the value that it has here",
        &["-e", "CI=1"],
        "env = { CI = \"1\" }",
        |asked, value| {
            asked.suite.env.extend(variable(value)?);
            Ok(())
        },
    ),
    flag(
        "user",
        Some('u'),
        Takes::Text("USER[:GROUP]"),
        "Whose the command is [default: the image's, which is root in most]",
        &["-u", "nobody"],
        "user = \"nobody\"",
        |asked, value| {
            asked.suite.user = Some(utf8(value)?.to_owned());
            Ok(())
        },
    ),
    Flag {
        long: "Made if it is not there.",
        ..flag(
            "workdir",
            Some('w'),
            Takes::Text("DIR"),
            "The directory in which the setup and the command start",
            &["-w", "/src"],
            "workdir = \"/src\"",
            |asked, value| {
                let dir = utf8(value)?;
                if !dir.starts_with('/') || dir.split('/').any(|part| part == "..") {
                    bail!("'{dir}' is no absolute path without ..: begin it with /");
                }
                asked.suite.workdir = Some(dir.to_owned());
                Ok(())
            },
        )
    },
    Flag {
        long: "A line for sh -ec, run as root. All setup is done once; its result is kept, and used until the setup or the image changes.",
        ..flag(
            "setup",
            None,
            Takes::Texts("CMD"),
            "Run this once before the tests on an image",
            &["--setup", "apt-get -q update"],
            "[[setup]]\nrun = \"apt-get -q update\"",
            |asked, value| {
                let text = utf8(value)?;
                if text.trim().is_empty() || text.contains('\0') {
                    bail!("it runs nothing: write a command");
                }
                asked.suite.setup.push(run_step(text));
                Ok(())
            },
        )
    },
    Flag {
        long: "Below the current directory, or that of the file. Of a directory, what is in it. It is part of the setup.",
        ..flag(
            "copy",
            None,
            Takes::Texts("HERE:GUEST"),
            "Copy a file or a directory into the guests before the tests",
            &["--copy", ".:/src"],
            "[[setup]]\ncopy = [\".\", \"/src\"]",
            |asked, value| {
                let (from, to) = copied(utf8(value)?)?;
                asked.suite.setup.push(copy_step(from, to));
                Ok(())
            },
        )
    },
    flag(
        "artifact",
        None,
        Takes::Texts("PATH"),
        "Fetch this file or directory from each guest at its end, if it is there",
        &["--artifact", "/src/test.log"],
        "artifacts = [\"/src/test.log\"]",
        |asked, value| {
            let path = utf8(value)?;
            if !path.starts_with('/') {
                bail!("'{path}' is not absolute: begin the path in the guest with /");
            }
            asked.suite.artifacts.push(path.to_owned());
            Ok(())
        },
    ),
    flag(
        "output",
        Some('o'),
        Takes::Text("DIR"),
        "Where logs and artifacts go, a directory for each test [default: skiff-test]",
        &["-o", "results"],
        "output = \"results\"",
        |asked, value| {
            asked.suite.output = Some(value.into());
            Ok(())
        },
    ),
    Flag {
        long: "A pattern with * or ? must be the whole name, such as 'debian:12 cpus=2'; any other a part of it.",
        ..flag(
            "filter",
            None,
            Takes::Texts("PATTERN"),
            "Run the tests with this in their name only",
            &["--filter", "debian:1?"],
            "include = [\"debian:1?\"]",
            |asked, value| {
                asked.suite.include.push(utf8(value)?.to_owned());
                Ok(())
            },
        )
    },
    flag(
        "exclude",
        None,
        Takes::Texts("PATTERN"),
        "Leave out the tests with this in their name",
        &["--exclude", "alpine"],
        "exclude = [\"alpine\"]",
        |asked, value| {
            asked.suite.exclude.push(utf8(value)?.to_owned());
            Ok(())
        },
    ),
    flag(
        "keep",
        None,
        Takes::Text("N"),
        "How many failed guests of a test are kept, as they were then [default: 1]",
        &["--keep", "3"],
        "keep = 3",
        |asked, value| {
            asked.suite.keep = Some(number(value, 0)?);
            Ok(())
        },
    ),
    flag("no-keep", None, Takes::Nothing, "Keep no failed guest", &["--no-keep"], "keep = 0", |asked, _| {
        asked.suite.keep = Some(0);
        Ok(())
    }),
    flag(
        "junit",
        None,
        Takes::File("FILE"),
        "Write the results as JUnit's XML, which CI servers read; - is standard output",
        &["--junit", "results.xml"],
        "",
        |asked, value| {
            asked.junit = Some(value.into());
            Ok(())
        },
    ),
    flag(
        "json",
        None,
        Takes::File("FILE"),
        "Write the results as JSON; - is standard output",
        &["--json", "results.json"],
        "",
        |asked, value| {
            asked.json = Some(value.into());
            Ok(())
        },
    ),
    flag(
        "prefixed",
        None,
        Takes::Nothing,
        "Show every line that a command prints, with the test before it; so it is where there is no terminal",
        &["--prefixed"],
        "",
        |asked, _| {
            asked.show = Show::Prefixed;
            Ok(())
        },
    ),
    flag(
        "grouped",
        None,
        Takes::Nothing,
        "Show what a command printed when it has ended, all of it",
        &["--grouped"],
        "",
        |asked, _| {
            asked.show = Show::Grouped;
            Ok(())
        },
    ),
    flag(
        "fresh",
        None,
        Takes::Nothing,
        "Boot, and do the setup again, even if nothing has changed",
        &["--fresh"],
        "",
        |asked, _| {
            asked.fresh = true;
            Ok(())
        },
    ),
    flag(
        "list",
        None,
        Takes::Nothing,
        "Print the tests' names, and run none",
        &["--list"],
        "",
        |asked, _| {
            asked.list = true;
            Ok(())
        },
    ),
];

fn number(value: &OsStr, least: u32) -> Result<u32> {
    let text = utf8(value)?;
    let number = text.parse::<u32>().ok().filter(|number| (least..=MOST_RUNS).contains(number));
    number.with_context(|| format!("'{text}' is no number from {least} to {MOST_RUNS}"))
}

/// Where it is here and in the guest.
fn copied(text: &str) -> Result<(&str, &str)> {
    let parts = text.split_once(':').filter(|(from, to)| !from.is_empty() && to.starts_with('/'));
    let (from, to) = parts.with_context(|| {
        format!("'{text}' names no place here and one in the guest: write it as in .:/src")
    })?;
    if from.starts_with('/') || from.split('/').any(|part| part == "..") {
        bail!("'{from}' is not in this directory: name a path that starts there, without ..");
    }
    if to.split('/').any(|part| part == "..") {
        bail!("'{to}' has .. in it: write the path in the guest without");
    }
    Ok((from, to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags;

    fn asked(words: &[&str]) -> Result<Asked> {
        let matches = super::super::VERB.command().try_get_matches_from([&["test"], words].concat())?;
        let mut asked = Asked::default();
        flags::apply(FLAGS, &matches, &mut asked)?;
        Ok(asked)
    }

    #[test]
    fn flags_say_what_a_file_can_say() {
        for flag in FLAGS.iter().filter(|flag| !flag.example.toml.is_empty()) {
            let from_file = super::super::config::parse(flag.example.toml).unwrap();
            let mut from_flags = asked(flag.example.args).unwrap().suite;
            // The line alone differs.
            for (step, other) in from_flags.setup.iter_mut().zip(&from_file.setup) {
                step.line = other.line;
            }
            if flag.name != "workdir" {
                assert_eq!(from_flags, from_file, "--{}", flag.name);
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_fix() {
        for (words, wanted) in [
            (["--jobs", "0"], "no number from 1"),
            (["--timeout", "0s"], "leave it out"),
            (["--copy", "../x:/y"], "not in this directory"),
            (["--copy", "x"], "write it as in .:/src"),
            (["--artifact", "log"], "begin the path"),
            (["--workdir", "src"], "begin it with /"),
            (["--setup", " "], "runs nothing"),
        ] {
            let error = format!("{:#}", asked(&words).unwrap_err());
            assert!(error.contains(wanted) && error.contains(words[0]), "{words:?}: {error}");
        }
    }
}
