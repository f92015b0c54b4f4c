//! From text to a [`File`]: every mistake is named with its line.
//!
//! Other files of skiff have steps, too: what reads one, and what tells of mistakes, is for their parsers as well.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::DeTable;

use super::raw::{RawStep, Texts};
use super::{At, Copy, File, Run, Step, What};

/// The longest file in bytes.
const LONGEST: usize = 1 << 20;
/// The most steps of one file.
const MOST_STEPS: usize = 1000;
/// The keys of a file.
const KEYS: &[&str] = &[
    "name",
    "base",
    "packages",
    "user",
    "workdir",
    "env",
    "ports",
    "publish",
    "entrypoint",
    "command",
    "cpus",
    "memory",
    "size",
    "warm",
    "step",
];
/// The keys of a step that runs something.
const RUN_KEYS: &[&str] = &["run", "env", "user", "workdir", "timeout"];
/// The keys of a step that copies.
const COPY_KEYS: &[&str] = &["copy", "owner", "mode", "exclude"];

/// What is wrong with a file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}: {wrong}")]
pub struct FileError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub wrong: Wrong,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// A key that means nothing there.
    Key {
        /// The key.
        key: String,
        /// Those that mean something.
        known: Vec<&'static str>,
    },
    /// Anything else, with the fix.
    Other(String),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { key, known } => write!(f, "there is no key '{key}': there are {}", known.join(", ")),
            Self::Other(message) => f.write_str(message),
        }
    }
}

/// A file as TOML has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: Option<Spanned<String>>,
    base: Option<Spanned<String>>,
    #[serde(default)]
    packages: Texts,
    user: Option<Spanned<String>>,
    workdir: Option<Spanned<String>>,
    env: Option<Spanned<BTreeMap<String, String>>>,
    #[serde(default)]
    ports: Texts,
    publish: Option<Spanned<Vec<String>>>,
    entrypoint: Option<Spanned<Vec<String>>>,
    command: Option<Spanned<Vec<String>>>,
    cpus: Option<Spanned<i64>>,
    memory: Option<Spanned<String>>,
    size: Option<Spanned<String>>,
    #[serde(default = "yes")]
    warm: bool,
    #[serde(default)]
    step: Vec<Spanned<RawStep>>,
}

fn yes() -> bool {
    true
}

/// Tells lines by offsets.
pub struct Text<'a>(pub &'a str);

impl Text<'_> {
    /// The line, from 1, at which this begins.
    #[must_use]
    pub fn line(&self, span: &Range<usize>) -> usize {
        let before = self.0.as_bytes().get(..span.start).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count().saturating_add(1)
    }

    /// This is wrong there.
    #[must_use]
    pub fn error(&self, span: &Range<usize>, message: impl Into<String>) -> FileError {
        FileError { line: self.line(span), wrong: Wrong::Other(message.into()) }
    }

    /// It is no TOML, or none of that kind.
    #[must_use]
    pub fn of_toml(&self, error: &toml::de::Error) -> FileError {
        let span = error.span().unwrap_or(0..0);
        self.error(&span, error.message().trim_end().replace('\n', ", "))
    }
}

/// What `text` asks for.
///
/// # Errors
/// The first mistake in it.
pub fn parse(text: &str) -> Result<File, FileError> {
    let at = Text(text);
    if text.len() > LONGEST {
        return Err(at.error(
            &(0..0),
            "the file is longer than 1 MiB: it is to say what the image is, not to hold it",
        ));
    }
    let table = DeTable::parse(text).map_err(|error| at.of_toml(&error))?;
    known_keys(&at, table.get_ref())?;
    let raw: Raw = toml::from_str(text).map_err(|error| at.of_toml(&error))?;
    finish(&at, raw)
}

/// No key but those that mean something.
fn known_keys(at: &Text<'_>, table: &DeTable<'_>) -> Result<(), FileError> {
    check_keys(at, table, KEYS)?;
    check_step_keys(at, table, "step")
}

/// The same of the steps in the list `name` of a file.
///
/// # Errors
/// The first key that means nothing.
pub fn check_step_keys(at: &Text<'_>, table: &DeTable<'_>, name: &str) -> Result<(), FileError> {
    let steps = table.iter().find(|(key, _)| key.get_ref().as_ref() == name);
    let steps = steps.and_then(|(_, steps)| steps.get_ref().as_array());
    for step in steps.into_iter().flat_map(|steps| steps.iter()).filter_map(|step| step.get_ref().as_table())
    {
        let has = |name: &str| step.keys().any(|key| key.get_ref().as_ref() == name);
        match (has("run"), has("copy")) {
            (true, false) => check_keys(at, step, RUN_KEYS)?,
            (false, true) => check_keys(at, step, COPY_KEYS)?,
            _ => check_keys(at, step, &[RUN_KEYS, COPY_KEYS].concat())?,
        }
    }
    Ok(())
}

/// No key of `table` but the known ones.
///
/// # Errors
/// The first key that means nothing.
pub fn check_keys(at: &Text<'_>, table: &DeTable<'_>, known: &[&'static str]) -> Result<(), FileError> {
    let unknown = table.keys().find(|key| !known.contains(&key.get_ref().as_ref()));
    let Some(key) = unknown else { return Ok(()) };
    let wrong = Wrong::Key { key: key.get_ref().to_string(), known: known.to_vec() };
    Err(FileError { line: at.line(&key.span()), wrong })
}

fn finish(at: &Text<'_>, raw: Raw) -> Result<File, FileError> {
    let Some(base) = raw.base else {
        return Err(
            at.error(&(0..0), "no base: write the image that it starts from, as in base = \"debian:12\"")
        );
    };
    let name = |text: &Spanned<String>| {
        text.get_ref()
            .parse()
            .map_err(|error: crate::name::NameError| at.error(&text.span(), error.to_string()))
    };
    let workdir = raw.workdir.as_ref().map(|dir| absolute(at, dir)).transpose()?;
    let dir = workdir.as_deref().zip(raw.workdir.as_ref().map(|raw| at.line(&raw.span())));
    let steps = read_steps(at, &raw.packages.0, dir, raw.step)?;
    let words = |words: Option<Spanned<Vec<String>>>| words.map(|words| plain_words(at, &words)).transpose();
    Ok(File {
        name: raw.name.as_ref().map(name).transpose()?,
        base: name(&base)?,
        steps,
        user: raw.user.as_ref().map(|user| plain(at, user, "a user")).transpose()?,
        workdir,
        env: environment(at, raw.env)?,
        ports: raw.ports.0.iter().map(|port| read_port(at, port)).collect::<Result<_, _>>()?,
        publish: raw.publish.map(|list| At { line: at.line(&list.span()), value: list.into_inner() }),
        entrypoint: words(raw.entrypoint)?,
        command: words(raw.command)?,
        cpus: raw.cpus.as_ref().map(|cpus| read_cpus(at, cpus)).transpose()?,
        memory: raw.memory.map(|memory| At { line: at.line(&memory.span()), value: memory.into_inner() }),
        size: raw.size.as_ref().map(|size| read_size(at, size)).transpose()?,
        warm: raw.warm,
    })
}

/// What is done to install `packages`, to make the directory `dir`, which stands in some line, and then for `raw`.
///
/// # Errors
/// The first mistake.
pub fn read_steps(
    at: &Text<'_>,
    packages: &[Spanned<String>],
    dir: Option<(&str, usize)>,
    raw: Vec<Spanned<RawStep>>,
) -> Result<Vec<Step>, FileError> {
    let mut steps = Vec::new();
    if let Some(first) = packages.first() {
        let packages = packages.iter().map(|package| package_name(at, package)).collect::<Result<_, _>>()?;
        steps.push(Step { line: at.line(&first.span()), what: What::Packages(packages) });
    }
    if let Some((dir, line)) = dir {
        steps.push(Step { line, what: What::Workdir(dir.to_owned()) });
    }
    if let Some(step) = raw.get(MOST_STEPS) {
        return Err(at.error(&step.span(), format!("there are more than {MOST_STEPS} steps")));
    }
    for step in raw {
        let (line, span) = (at.line(&step.span()), step.span());
        let what = read_step(at, &span, step.into_inner(), dir.map(|(dir, _)| dir))?;
        steps.push(Step { line, what });
    }
    Ok(steps)
}

fn read_step(at: &Text<'_>, span: &Range<usize>, raw: RawStep, dir: Option<&str>) -> Result<What, FileError> {
    let raw = raw.0;
    match (raw.run, raw.copy) {
        (Some(line), None) => {
            let Some((text, argv)) = line.words() else {
                return Err(
                    at.error(span, "the step runs nothing: write a command, as in run = \"make install\"")
                );
            };
            Ok(What::Run(Run {
                text,
                argv,
                env: environment(at, raw.env)?,
                user: raw.user.as_ref().map(|user| plain(at, user, "a user")).transpose()?,
                workdir: raw.workdir.as_ref().map(|dir| absolute(at, dir)).transpose()?,
                timeout: raw.timeout.as_ref().map(|time| read_time(at, time)).transpose()?,
            }))
        }
        (None, Some(paths)) => {
            let (sources, to) = read_paths(at, &paths, dir)?;
            Ok(What::Copy(Copy {
                sources,
                to,
                owner: raw.owner.as_ref().map(|owner| plain(at, owner, "an owner")).transpose()?,
                mode: raw.mode.as_ref().map(|mode| read_mode(at, mode)).transpose()?,
                exclude: raw
                    .exclude
                    .0
                    .iter()
                    .map(|glob| plain(at, glob, "a pattern"))
                    .collect::<Result<_, _>>()?,
            }))
        }
        (Some(_), Some(_)) => Err(at.error(span, "the step has both run and copy: write two steps")),
        (None, None) => Err(at.error(span, "the step does nothing: give it a line run = … or copy = …")),
    }
}

/// The sources of a copy, and where they go.
fn read_paths(
    at: &Text<'_>,
    paths: &Spanned<Vec<String>>,
    dir: Option<&str>,
) -> Result<(Vec<String>, String), FileError> {
    let error = |message: String| at.error(&paths.span(), message);
    let Some((to, sources @ [_, ..])) = paths.get_ref().split_last() else {
        return Err(error(
            "copy has two paths or more, the last in the guest, as in copy = [\"app/\", \"/srv/app\"]"
                .to_owned(),
        ));
    };
    for source in sources {
        let leads_out = source.starts_with('/') || source.split('/').any(|part| part == "..");
        if leads_out || source.is_empty() || source.contains('\0') {
            return Err(error(format!(
                "'{source}' is not in the file's directory: copy takes paths that start there, without .."
            )));
        }
    }
    let to = match (to.starts_with('/'), dir) {
        (true, _) => to.clone(),
        (false, Some(dir)) => format!("{}/{to}", dir.trim_end_matches('/')),
        (false, None) => {
            return Err(error(format!(
                "'{to}' is not absolute: begin the path in the guest with /, or set workdir"
            )));
        }
    };
    if to.split('/').any(|part| part == "..") || to.contains('\0') {
        return Err(error(format!("'{to}' has .. in it: write the path in the guest without")));
    }
    if sources.len() > 1 && !to.ends_with('/') {
        return Err(error(format!("'{to}' is to take several files: write it as a directory, '{to}/'")));
    }
    Ok((sources.to_vec(), to))
}

/// An absolute path in the guest, without `..`.
///
/// # Errors
/// If it is none.
pub fn absolute(at: &Text<'_>, path: &Spanned<String>) -> Result<String, FileError> {
    let text = path.get_ref();
    if !text.starts_with('/') || text.contains('\0') || text.split('/').any(|part| part == "..") {
        return Err(
            at.error(&path.span(), format!("'{text}' is no absolute path without ..: begin it with /"))
        );
    }
    Ok(text.clone())
}

/// A word that can stand in a request to the guest.
///
/// # Errors
/// If it is none.
pub fn plain(at: &Text<'_>, text: &Spanned<String>, what: &str) -> Result<String, FileError> {
    let word = text.get_ref();
    if word.is_empty() || word.chars().any(char::is_control) {
        return Err(
            at.error(&text.span(), format!("{word:?} is not {what}: write plain text, or leave the key out"))
        );
    }
    Ok(word.clone())
}

fn plain_words(at: &Text<'_>, words: &Spanned<Vec<String>>) -> Result<Vec<String>, FileError> {
    match words.get_ref().iter().find(|word| word.contains('\0')) {
        Some(word) => {
            Err(at.error(&words.span(), format!("{word:?} has a zero byte, which no argument can have")))
        }
        None => Ok(words.get_ref().clone()),
    }
}

/// What a package manager takes for a package and not for an option.
fn package_name(at: &Text<'_>, package: &Spanned<String>) -> Result<String, FileError> {
    let text = package.get_ref();
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "+-._:=~<>/@*".contains(letter);
    if text.is_empty() || text.starts_with('-') || !text.chars().all(fits) {
        return Err(
            at.error(&package.span(), format!("'{text}' is no package's name: write one name a string"))
        );
    }
    Ok(text.clone())
}

/// Variables as `KEY=VALUE`, in the order of the keys.
///
/// # Errors
/// If it is none.
pub fn environment(
    at: &Text<'_>,
    env: Option<Spanned<BTreeMap<String, String>>>,
) -> Result<Vec<String>, FileError> {
    let Some(env) = env else { return Ok(Vec::new()) };
    let wrong = |(key, value): &(&String, &String)| {
        key.is_empty() || key.contains(['=', '\0']) || value.contains('\0')
    };
    if let Some((key, _)) = env.get_ref().iter().find(wrong) {
        return Err(
            at.error(&env.span(), format!("{key:?} is no variable's name, or its value has a zero byte"))
        );
    }
    Ok(env.get_ref().iter().map(|(key, value)| format!("{key}={value}")).collect())
}

/// `80`, `80/tcp` or `53/udp`; the first is TCP.
fn read_port(at: &Text<'_>, port: &Spanned<String>) -> Result<String, FileError> {
    let text = port.get_ref();
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let known = number.parse::<u16>().is_ok_and(|number| number != 0) && matches!(protocol, "tcp" | "udp");
    match known {
        true => Ok(format!("{number}/{protocol}")),
        false => Err(at.error(&port.span(), format!("'{text}' is no port: write it as in 80/tcp or 53/udp"))),
    }
}

/// A number of vCPUs.
///
/// # Errors
/// If it is none.
pub fn read_cpus(at: &Text<'_>, cpus: &Spanned<i64>) -> Result<u8, FileError> {
    let number = u8::try_from(*cpus.get_ref()).ok().filter(|number| *number > 0);
    number.ok_or_else(|| {
        at.error(&cpus.span(), format!("{} is no number of vCPUs: write one from 1 to 255", cpus.get_ref()))
    })
}

/// `20G`, `512M`: in bytes, a whole number of MiB.
fn read_size(at: &Text<'_>, size: &Spanned<String>) -> Result<At<u64>, FileError> {
    let text = size.get_ref();
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
    let unit = |letter: char, shift: u32| lower.strip_suffix(letter).map(|digits| (digits, 1_u64 << shift));
    let parts = unit('m', 20).or_else(|| unit('g', 30)).or_else(|| unit('t', 40));
    let bytes = parts
        .filter(|(digits, _)| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|(digits, unit)| digits.parse::<u64>().ok()?.checked_mul(unit))
        // What a disk can be: see qcow2.
        .filter(|bytes| (1 << 20..=1 << 50).contains(bytes));
    let wrong =
        || at.error(&size.span(), format!("'{text}' is no size of a disk: write it as in 20G or 512M"));
    Ok(At { line: at.line(&size.span()), value: bytes.ok_or_else(wrong)? })
}

/// `90s`, `10m`, `2h`: in seconds.
///
/// # Errors
/// If it is none.
pub fn read_time(at: &Text<'_>, time: &Spanned<String>) -> Result<u64, FileError> {
    let text = time.get_ref();
    let unit = |letter: char, seconds: u64| text.strip_suffix(letter).map(|digits| (digits, seconds));
    let parts = unit('s', 1).or_else(|| unit('m', 60)).or_else(|| unit('h', 3600));
    let seconds = parts.and_then(|(digits, unit)| digits.parse::<u64>().ok()?.checked_mul(unit));
    let seconds = seconds.filter(|seconds| (1..=365 * 86400).contains(seconds));
    seconds
        .ok_or_else(|| at.error(&time.span(), format!("'{text}' is no time: write it as in 90s, 10m or 2h")))
}

/// `0644`: octal, as chmod takes it.
fn read_mode(at: &Text<'_>, mode: &Spanned<String>) -> Result<u32, FileError> {
    let text = mode.get_ref();
    let digits = (3..=5).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let number = u32::from_str_radix(text, 8).ok().filter(|number| digits && *number <= 0o7777);
    number
        .ok_or_else(|| at.error(&mode.span(), format!("'{text}' is no mode: write it in octal, as in 0644")))
}
