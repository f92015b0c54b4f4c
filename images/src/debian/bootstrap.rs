//! [`bootstrap`]: mmdebstrap, from a recipe to an archive of a root file system.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::recipe::{Recipe, Source};
use super::{Error, Mirror};
use crate::progress::Progress;

const PROGRAM: &str = "mmdebstrap";
/// Keys of Debian's archives, of the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What nobody reads in a guest, but for the copyrights.
const EXCLUDED: &[&str] = &[
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/lintian/*",
];
/// How many of its last lines are kept for an error.
const LINES: usize = 8;
/// The longest line that is kept, in bytes.
const LINE: u64 = 4096;

/// How much of a system is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Installed, with apt and all that is essential.
    System,
    /// Packages and what they need, unpacked and no more: for that nobody need be root.
    Files,
}

/// Makes the archive `into`, a new file.
pub fn bootstrap(
    recipe: &Recipe,
    variant: Variant,
    mirror: &Mirror,
    work: &Path,
    into: &Path,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let output = File::create_new(into)
        .map_err(|source| Error::Io { doing: format!("create {}", into.display()), source })?;
    let mut command = command(recipe, variant, mirror, work)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Program { program: PROGRAM, source })?;
    let mut last = VecDeque::new();
    if let Some(stderr) = child.stderr.take() {
        let mut lines = BufReader::new(stderr);
        loop {
            let mut line = Vec::new();
            match (&mut lines).take(LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => said(&String::from_utf8_lossy(&line), progress, &mut last),
            }
        }
    }
    let status = child.wait().map_err(|source| Error::Io { doing: format!("wait for {PROGRAM}"), source })?;
    if status.success() {
        return Ok(());
    }
    let all = last.iter().map(String::as_str).collect::<Vec<_>>().join("; ");
    Err(Error::Failed { program: PROGRAM, said: reasons(&last), hint: hint(&all, mirror) })
}

/// The errors among the last lines, each once, without that a program is no longer run because another has failed; all lines if there are none.
fn reasons(last: &VecDeque<String>) -> String {
    let mut reasons: Vec<&str> = Vec::new();
    for error in last.iter().filter_map(|line| line.strip_prefix("E: ")) {
        let follows = error.ends_with("failed to run") || error.ends_with("-oDpkg::Use-Pty=false failed");
        if !follows && !reasons.contains(&error) {
            reasons.push(error);
        }
    }
    if reasons.is_empty() {
        reasons.extend(last.iter().map(String::as_str));
    }
    reasons.join("; ")
}

/// A line: a step (`I: …`), or something to remember.
fn said(line: &str, progress: &mut dyn Progress, last: &mut VecDeque<String>) {
    let line: String = line.trim().chars().filter(|letter| !letter.is_control()).collect();
    if let Some(step) = line.strip_prefix("I: ") {
        if let Some((_, shown)) = STEPS.iter().find(|(start, _)| step.starts_with(start)) {
            progress.step(shown);
        }
        return;
    }
    if !line.is_empty() {
        last.push_back(line);
    }
    if last.len() > LINES {
        last.pop_front();
    }
}

/// How its steps begin, and what they are called.
const STEPS: &[(&str, &str)] = &[
    ("running apt-get update", "fetching lists of packages"),
    ("downloading packages", "fetching packages"),
    ("extracting archives", "unpacking the essential packages"),
    ("installing essential", "installing the essential packages"),
    ("installing remaining", "installing packages and the kernel"),
    ("cleaning package lists", "cleaning up"),
    ("creating tarball", "packing"),
];

/// What most likely is to be done.
fn hint(said: &str, mirror: &Mirror) -> String {
    let any = |parts: &[&str]| parts.iter().any(|part| said.contains(part));
    if any(&["NO_PUBKEY", "not signed", "keyring"]) {
        return "install the package debian-archive-keyring, or a newer one".to_owned();
    }
    if any(&["subuid", "unshare", "newuidmap", "user namespace"]) {
        return "it needs root, or user namespaces: the package uidmap, and a line for you in /etc/subuid and /etc/subgid".to_owned();
    }
    if any(&["is expired", "is not valid yet"]) {
        return "is this machine's clock right? Otherwise the mirror is not kept up to date: --mirror names another".to_owned();
    }
    if any(&["No space left", "enough free space"]) {
        return "it works below $TMPDIR: name a directory with 2 GiB to spare".to_owned();
    }
    if any(&["Could not resolve", "Failed to fetch", "Unable to fetch", "Could not connect", "404"]) {
        return format!(
            "is {} right? --mirror and ${} name another",
            mirror.archive,
            super::mirror::VARIABLE
        );
    }
    "it has said why".to_owned()
}

fn command(recipe: &Recipe, variant: Variant, mirror: &Mirror, work: &Path) -> Result<Command, Error> {
    let mut command = Command::new(PROGRAM);
    command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["--architectures=amd64", "--format=tar", "--skip=output/mknod"]);
    match variant {
        Variant::System => command.args(["--variant=minbase", "--mode=auto"]),
        Variant::Files => command.args(["--variant=extract", "--mode=chrootless"]),
    };
    for option in EXCLUDED {
        command.arg(format!("--dpkgopt={option}"));
    }
    if Path::new(KEYRING).is_file() {
        command.arg(format!("--keyring={KEYRING}"));
    }
    command.arg(format!("--include={}", recipe.packages.join(",")));
    if variant == Variant::System {
        early(recipe, work, &mut command)?;
    }
    let suite = recipe.sources.first().map(|source| source.suite.as_str()).unwrap_or_default();
    command.args([suite, "-"]);
    command.args(recipe.sources.iter().map(|source| line(source, recipe, mirror)));
    Ok(command)
}

/// Files that have to be there before packages are configured are put there by a hook.
fn early(recipe: &Recipe, work: &Path, command: &mut Command) -> Result<(), Error> {
    for (at, (path, text)) in recipe.early.iter().enumerate() {
        let file: PathBuf = work.join(format!("early-{at}"));
        std::fs::write(&file, text)
            .map_err(|source| Error::Io { doing: format!("write {}", file.display()), source })?;
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        // The path of the work directory is the user's own, and may hold anything.
        let from = file.display().to_string().replace('\'', "'\\''");
        command.arg(format!("--essential-hook=mkdir -p \"$1/{parent}\""));
        command.arg(format!("--essential-hook=upload '{from}' '/{path}'"));
    }
    Ok(())
}

/// For apt's sources.
pub fn line(source: &Source, recipe: &Recipe, mirror: &Mirror) -> String {
    format!("deb {} {} {}", mirror.address(&source.archive), source.suite, recipe.components.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_and_complaints_are_kept() {
        struct Steps(Vec<String>);
        impl Progress for Steps {
            fn step(&mut self, what: &str) {
                self.0.push(what.to_owned());
            }
            fn advance(&mut self, _: u64, _: Option<u64>) {}
        }
        let (mut steps, mut last) = (Steps(Vec::new()), VecDeque::new());
        for line in ["I: downloading packages with apt...\n", "I: something else", "E: \x1b[31mno\n", "\n"] {
            said(line, &mut steps, &mut last);
        }
        assert_eq!(steps.0, ["fetching packages"]);
        assert_eq!(last, ["E: [31mno"]);
        (0..50).for_each(|_| said("W: more", &mut steps, &mut last));
        assert_eq!(last.len(), LINES);
    }

    #[test]
    fn of_what_it_says_at_its_end_the_reasons_are_told_and_what_to_do() {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<VecDeque<_>>();
        let last = lines(&[
            "Need to get 25.4 MB of archives.",
            "E: You don't have enough free space in /tmp/x/.",
            "E: You don't have enough free space in /tmp/x/.",
            "E: apt-get --yes -oAPT::Status-Fd=<$fd> -oDpkg::Use-Pty=false failed",
            "E: mmdebstrap failed to run",
        ]);
        assert_eq!(reasons(&last), "You don't have enough free space in /tmp/x/.");
        assert_eq!(reasons(&lines(&["one", "two"])), "one; two");
        for (said, advice) in [
            ("E: You don't have enough free space in /tmp", "TMPDIR"),
            ("E: Release file for http://m/InRelease is expired (invalid since 15d). 404", "clock"),
            ("E: Failed to fetch http://m/x", "--mirror"),
            ("E: NO_PUBKEY 0", "keyring"),
            ("E: Could not resolve 'm'", "--mirror"),
        ] {
            let hint = hint(said, &Mirror::at("http://m/debian"));
            assert!(hint.contains(advice), "{said}: {hint}");
        }
    }

    #[test]
    fn sources_are_of_the_mirror() {
        let recipe = Recipe::named(&"debian:12".parse().unwrap()).unwrap();
        let lines: Vec<String> = recipe
            .sources
            .iter()
            .map(|source| line(source, recipe, &Mirror::at("http://m.example/debian")))
            .collect();
        assert_eq!(lines[0], "deb http://m.example/debian bookworm main");
        assert_eq!(lines[2], "deb http://m.example/debian-security bookworm-security main");
    }
}
