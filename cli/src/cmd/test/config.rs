//! `skiff-test.toml`: from text to a [`Suite`], every mistake named with its line.
//!
//! ```toml
//! on = ["debian:11", "debian:12"]    # the images; each is built or pulled if it is not there
//! command = "./run-tests.sh"         # a line for sh -ec, or a list: a program and its arguments
//! packages = ["gcc", "make"]         # installed by the guest's own package manager before the setup
//! workdir = "/src"                   # where the setup and the command start; made if it is not there
//! user = "tester"                    # who runs the command; the setup is root's
//! volume = [".:/src:ro"]             # folders of the host, from the file's directory, for the command
//! env = { CI = "1" }                 # for the setup and the command
//! timeout = "5m"                     # for the command
//! retry = 1
//! flaky = 10
//! jobs = 4
//! fail-fast = false
//! artifacts = ["/src/test.log"]
//! output = "skiff-test"              # from the file's directory
//! keep = 1                           # failed guests of each test
//! include = ["debian:*"]             # of the tests, those whose name matches one of these
//! exclude = ["*LANG=C"]              # and none of these
//!
//! [[setup]]
//! copy = [".", "/src"]
//!
//! [[setup]]
//! run = "make"
//!
//! [matrix]
//! cpus = [1, 4]
//! memory = ["512M", "2G"]
//! env.LANG = ["C", "de_DE.UTF-8"]
//! ```

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use images::file::parse::{
    FileError, Text, absolute, check_keys, check_step_keys, environment, plain, read_cpus, read_steps,
    read_time,
};
use images::file::raw::{Line, RawStep, Texts};
use serde::Deserialize;
use toml::Spanned;
use toml::de::DeTable;
use vmm::spec::{MAX_CPUS, MIN_MEMORY, Memory, ParseError, SpecError};

use super::suite::{MOST_RUNS, Suite};
use crate::cmd::run::volume::Volume;

/// The longest file in bytes.
pub const LONGEST: usize = 1 << 20;
/// The keys of a file.
const KEYS: &[&str] = &[
    "on",
    "command",
    "packages",
    "workdir",
    "user",
    "volume",
    "env",
    "timeout",
    "retry",
    "flaky",
    "jobs",
    "fail-fast",
    "artifacts",
    "output",
    "keep",
    "include",
    "exclude",
    "setup",
    "matrix",
];
/// The keys of the matrix.
const MATRIX_KEYS: &[&str] = &["cpus", "memory", "env"];

/// A file as TOML has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Raw {
    #[serde(default)]
    on: Texts,
    command: Option<Spanned<Line>>,
    #[serde(default)]
    packages: Texts,
    workdir: Option<Spanned<String>>,
    user: Option<Spanned<String>>,
    #[serde(default)]
    volume: Texts,
    env: Option<Spanned<BTreeMap<String, String>>>,
    timeout: Option<Spanned<String>>,
    retry: Option<Spanned<i64>>,
    flaky: Option<Spanned<i64>>,
    jobs: Option<Spanned<i64>>,
    fail_fast: Option<bool>,
    #[serde(default)]
    artifacts: Texts,
    output: Option<Spanned<String>>,
    keep: Option<Spanned<i64>>,
    #[serde(default)]
    include: Texts,
    #[serde(default)]
    exclude: Texts,
    #[serde(default)]
    setup: Vec<Spanned<RawStep>>,
    #[serde(default)]
    matrix: RawMatrix,
}

/// The matrix as TOML has it.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMatrix {
    cpus: Option<Spanned<Vec<Spanned<i64>>>>,
    memory: Option<Spanned<Texts>>,
    #[serde(default)]
    env: BTreeMap<String, Spanned<Vec<String>>>,
}

/// What `text` asks for.
///
/// # Errors
/// The first mistake in it.
pub fn parse(text: &str) -> Result<Suite, FileError> {
    let at = Text(text);
    if text.len() > LONGEST {
        return Err(
            at.error(&(0..0), "the file is longer than 1 MiB: it is to say what is tested, not to hold it")
        );
    }
    let table = DeTable::parse(text).map_err(|error| at.of_toml(&error))?;
    let table = table.get_ref();
    check_keys(&at, table, KEYS)?;
    check_step_keys(&at, table, "setup")?;
    if let Some((_, matrix)) = table.iter().find(|(key, _)| key.get_ref().as_ref() == "matrix")
        && let Some(matrix) = matrix.get_ref().as_table()
    {
        check_keys(&at, matrix, MATRIX_KEYS)?;
    }
    let raw: Raw = toml::from_str(text).map_err(|error| at.of_toml(&error))?;
    finish(&at, raw)
}

fn finish(at: &Text<'_>, raw: Raw) -> Result<Suite, FileError> {
    let workdir = raw.workdir.as_ref().map(|dir| absolute(at, dir)).transpose()?;
    let dir = workdir.as_deref().zip(raw.workdir.as_ref().map(|raw| at.line(&raw.span())));
    let setup = read_steps(at, &raw.packages.0, dir, raw.setup)?;
    let texts = |list: &Texts, what: &str| {
        list.0.iter().map(|text| plain(at, text, what)).collect::<Result<Vec<_>, _>>()
    };
    let artifacts = raw.artifacts.0.iter().map(|path| artifact(at, path, workdir.as_deref()));
    Ok(Suite {
        on: texts(&raw.on, "an image")?,
        cpus: each_once(at, "cpus", raw.matrix.cpus.as_ref(), |list| list, read_vcpus)?,
        memory: each_once(at, "memory", raw.matrix.memory.as_ref(), |list| &list.0, read_memory)?,
        env_matrix: raw
            .matrix
            .env
            .into_iter()
            .map(|(key, values)| variable(at, key, values))
            .collect::<Result<_, _>>()?,
        setup,
        command: raw.command.map(|line| command(at, line)).transpose()?.unwrap_or_default(),
        volumes: raw.volume.0.iter().map(|text| read_volume(at, text)).collect::<Result<_, _>>()?,
        env: environment(at, raw.env)?,
        user: raw.user.as_ref().map(|user| plain(at, user, "a user")).transpose()?,
        artifacts: artifacts.collect::<Result<_, _>>()?,
        workdir,
        timeout: raw.timeout.map(|time| read_time(at, &time)).transpose()?.map(Duration::from_secs),
        retry: raw.retry.map(|number| count(at, &number, 0)).transpose()?,
        flaky: raw.flaky.map(|number| count(at, &number, 1)).transpose()?,
        jobs: raw.jobs.map(|number| count(at, &number, 1)).transpose()?,
        keep: raw.keep.map(|number| count(at, &number, 0)).transpose()?,
        fail_fast: raw.fail_fast,
        output: raw.output.map(|path| plain(at, &path, "a directory")).transpose()?.map(PathBuf::from),
        include: texts(&raw.include, "a pattern")?,
        exclude: texts(&raw.exclude, "a pattern")?,
    })
}

fn command(at: &Text<'_>, line: Spanned<Line>) -> Result<Vec<String>, FileError> {
    let span = line.span();
    let words = line.into_inner().words().map(|(_, argv)| argv);
    words.ok_or_else(|| at.error(&span, "the command runs nothing: write one, as in command = \"make test\""))
}

fn count(at: &Text<'_>, number: &Spanned<i64>, least: u32) -> Result<u32, FileError> {
    let value = u32::try_from(*number.get_ref()).ok().filter(|value| (least..=MOST_RUNS).contains(value));
    value.ok_or_else(|| {
        at.error(&number.span(), format!("{} is not from {least} to {MOST_RUNS}", number.get_ref()))
    })
}

/// What a VM can have, said before one is made.
fn read_memory(at: &Text<'_>, text: &Spanned<String>) -> Result<Memory, FileError> {
    let memory: Memory =
        text.get_ref().parse().map_err(|error: ParseError| at.error(&text.span(), error.to_string()))?;
    match memory.0 < MIN_MEMORY {
        true => Err(at.error(&text.span(), SpecError::MemoryTooSmall(memory).to_string())),
        false => Ok(memory),
    }
}

/// The same of vCPUs.
fn read_vcpus(at: &Text<'_>, number: &Spanned<i64>) -> Result<u8, FileError> {
    let cpus = read_cpus(at, number)?;
    match cpus > MAX_CPUS {
        true => Err(at.error(&number.span(), SpecError::Cpus(cpus.into()).to_string())),
        false => Ok(cpus),
    }
}

fn read_volume(at: &Text<'_>, text: &Spanned<String>) -> Result<Volume, FileError> {
    text.get_ref().parse::<Volume>().map_err(|error| at.error(&text.span(), error.to_string()))
}

fn variable(
    at: &Text<'_>,
    key: String,
    values: Spanned<Vec<String>>,
) -> Result<(String, Vec<String>), FileError> {
    if key.is_empty() || key.contains('=') {
        return Err(at.error(
            &values.span(),
            format!("'{key}' cannot be a variable's name: write one with letters and without ="),
        ));
    }
    if [&key].into_iter().chain(values.get_ref()).any(|text| text.chars().any(char::is_control)) {
        return Err(at.error(
            &values.span(),
            format!("{key:?} or one of its values has control characters: write plain text"),
        ));
    }
    if values.get_ref().is_empty() {
        return Err(at.error(&values.span(), format!("{key} has no values: write some, or leave it out")));
    }
    let list = values.get_ref();
    if let Some(twice) =
        list.iter().enumerate().find_map(|(at, value)| list.get(..at)?.contains(value).then_some(value))
    {
        return Err(at.error(&values.span(), format!("{key} has '{twice}' twice: leave one out")));
    }
    Ok((key, values.into_inner()))
}

/// The values of the matrix's `key`, each once: two tests of one name could not be told apart.
fn each_once<L, T, V: PartialEq + Display>(
    at: &Text<'_>,
    key: &str,
    list: Option<&Spanned<L>>,
    all: impl Fn(&L) -> &Vec<Spanned<T>>,
    read: impl Fn(&Text<'_>, &Spanned<T>) -> Result<V, FileError>,
) -> Result<Vec<V>, FileError> {
    let Some(whole) = list else { return Ok(Vec::new()) };
    let list = all(whole.get_ref());
    if list.is_empty() {
        return Err(at.error(&whole.span(), format!("{key} has no values: write some, or leave it out")));
    }
    let mut values = Vec::new();
    for spanned in list {
        let value = read(at, spanned)?;
        if values.contains(&value) {
            return Err(at.error(&spanned.span(), format!("{key} has {value} twice: leave one out")));
        }
        values.push(value);
    }
    Ok(values)
}

/// A path in the guest, from `dir` if it is not absolute.
fn artifact(at: &Text<'_>, path: &Spanned<String>, dir: Option<&str>) -> Result<String, FileError> {
    let text = plain(at, path, "a path")?;
    match (text.starts_with('/'), dir) {
        (true, _) => Ok(text),
        (false, Some(dir)) => Ok(format!("{}/{text}", dir.trim_end_matches('/'))),
        (false, None) => Err(at.error(
            &path.span(),
            format!("'{text}' is not absolute: begin the path in the guest with /, or set workdir"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use images::file::{Run, What};
    use proptest::prelude::*;

    use super::*;

    const WHOLE: &str = r#"
on = ["debian:11", "debian:12"]
command = ["./run-tests.sh", "-v"]
packages = ["gcc"]
workdir = "/src"
user = "tester"
volume = [".:/here:ro"]
env = { CI = "1" }
timeout = "5m"
retry = 1
flaky = 10
jobs = 4
fail-fast = true
artifacts = ["/var/log", "test.log"]
output = "out"
keep = 0
include = ["debian:*"]
exclude = ["*LANG=C"]

[[setup]]
copy = [".", "/src"]

[[setup]]
run = "make"

[matrix]
cpus = [1, 4]
memory = ["512M", "2G"]
env.LANG = ["C", "de_DE.UTF-8"]
"#;

    #[test]
    fn a_whole_file_is_read() {
        let suite = parse(WHOLE).unwrap();
        assert_eq!(suite.on, ["debian:11", "debian:12"]);
        assert_eq!(suite.command, ["./run-tests.sh", "-v"]);
        assert_eq!((suite.cpus.as_slice(), suite.memory.len()), (&[1, 4][..], 2));
        assert_eq!(suite.env_matrix["LANG"], ["C", "de_DE.UTF-8"]);
        assert_eq!(suite.artifacts, ["/var/log", "/src/test.log"]);
        assert_eq!(suite.timeout, Some(Duration::from_secs(300)));
        assert_eq!((suite.retry, suite.flaky, suite.jobs, suite.keep), (Some(1), Some(10), Some(4), Some(0)));
        assert_eq!((suite.fail_fast, suite.output), (Some(true), Some("out".into())));
        let lines: Vec<usize> = suite.setup.iter().map(|step| step.line).collect();
        assert_eq!(lines, [4, 5, 20, 23], "packages, the directory, and the steps");
        let make = |step: &images::file::Step| matches!(&step.what, What::Run(Run { argv, .. }) if argv[2] == "make");
        assert!(suite.setup.last().is_some_and(make));
    }

    #[test]
    fn a_step_may_be_a_line_alone() {
        let suite =
            parse("setup = [\"./configure\",\n  \"make\", { run = \"make install\", timeout = \"9s\" }]")
                .unwrap();
        let step = |step: &images::file::Step| match &step.what {
            What::Run(run) => (step.line, run.text.clone(), run.timeout),
            other => panic!("{other:?}"),
        };
        let steps: Vec<_> = suite.setup.iter().map(step).collect();
        assert_eq!(
            steps,
            [(1, "./configure".into(), None), (2, "make".into(), None), (2, "make install".into(), Some(9))]
        );
    }

    #[test]
    fn a_file_may_be_empty() {
        assert_eq!(parse("").unwrap(), Suite::default());
    }

    #[test]
    fn every_mistake_is_named_with_its_line_and_the_fix() {
        for (text, line, words) in [
            ("on = [\"a\"]\ncomand = \"x\"", 2, "there is no key 'comand'"),
            ("[matrix]\ncpu = [1]", 2, "there is no key 'cpu': there are cpus, memory, env"),
            ("[[setup]]\nrun = \"x\"\ntimeuot = \"3s\"", 3, "there is no key 'timeuot'"),
            ("[[setup]]\nrun = \"x\"\ncopy = [\"a\", \"/b\"]", 1, "both run and copy"),
            ("\ncommand = \" \"", 2, "runs nothing"),
            ("timeout = \"5\"", 1, "write it as in 90s"),
            ("retry = -1", 1, "-1 is not from 0"),
            ("flaky = 0", 1, "0 is not from 1"),
            ("[matrix]\ncpus = [0]", 2, "write one from 1"),
            ("[matrix]\ncpus = [65]", 2, "cpus cannot be 65: a VM has 1 to 64"),
            ("[matrix]\nmemory = [\"2M\"]", 2, "memory cannot be 2M: a VM has at least 64M"),
            ("[matrix]\nmemory = [\"much\"]", 2, "'much'"),
            ("[matrix]\nenv.A = []", 2, "A has no values"),
            ("[matrix]\ncpus = []", 2, "cpus has no values"),
            ("[matrix]\nmemory = []", 2, "memory has no values"),
            ("[matrix]\ncpus = 4", 2, "expected a sequence"),
            ("[matrix]\nenv.\"\" = [\"a\"]", 2, "'' cannot be a variable's name"),
            ("[matrix]\nenv.\"A=B\" = [\"a\"]", 2, "'A=B' cannot be"),
            ("[matrix]\nenv.A = [\"b\", \"a\\n\"]", 2, "control characters"),
            ("[matrix]\nenv.A = [\"a\", \"b\", \"a\"]", 2, "A has 'a' twice"),
            ("[matrix]\ncpus = [1,\n2,\n1]", 4, "cpus has 1 twice"),
            ("[matrix]\nmemory = [\"1G\", \"1024M\"]", 2, "memory has 1G twice"),
            ("\nvolume = [\"src\"]", 2, "write HOST:GUEST"),
            ("artifacts = [\"log\"]", 1, "begin the path in the guest with /"),
            ("on = \"debian:11\"", 1, "expected a list of texts, as in [\"a\", \"b\"]"),
            ("\nsetup = [1]", 2, "expected a step: a line for the shell, or a table with run or copy"),
            ("on = [\"debian:11\\n\"]", 1, "is not an image"),
            ("workdir = \"src\"", 1, "no absolute path"),
            ("on = [", 1, ""),
        ] {
            let error = parse(text).unwrap_err();
            let message = error.to_string();
            assert!(error.line == line && message.contains(words), "{text}: {message}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_much(text in "\\PC{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_file_is_too_much_that_looks_like_one(
            lines in prop::collection::vec((prop::sample::select(KEYS), "[\\[\\]{}\"=a-z0-9:/.-]{0,20}"), 0..8),
        ) {
            let text: String = lines.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
            if let Err(error) = parse(&text) {
                prop_assert!(error.line <= lines.len() + 1);
            }
        }

        #[test]
        fn what_is_within_bounds_is_read(cpus in prop::collection::hash_set(1..=MAX_CPUS, 1..5), retry in 0..=MOST_RUNS) {
            let cpus: Vec<u8> = cpus.into_iter().collect();
            let text = format!("retry = {retry}\n[matrix]\ncpus = {cpus:?}\n");
            let suite = parse(&text).unwrap();
            prop_assert_eq!((suite.cpus, suite.retry), (cpus, Some(retry)));
        }
    }
}
