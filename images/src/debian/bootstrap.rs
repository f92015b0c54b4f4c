//! [`bootstrap`]: mmdebstrap, from a recipe to an archive of a root file system.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::follow::Follower;
use super::place::Place;
use super::recipe::{Recipe, Source};
use super::{Error, Mirror, newest};
use crate::progress::Progress;

const PROGRAM: &str = "mmdebstrap";
/// Keys of Debian's archives, of the package debian-archive-keyring.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
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
    let packages = newest::resolve(recipe, mirror, work, progress)?;
    let mut command = command(recipe, &packages, variant, mirror, work)?;
    let place = Place::new(work)
        .map_err(|source| Error::Io { doing: format!("make a directory for {PROGRAM}"), source })?;
    command.stdin(Stdio::null()).stdout(output).stderr(Stdio::piped());
    let mut running =
        place.start(&mut command).map_err(|source| Error::Program { program: PROGRAM, source })?;
    let mut follower = Follower::default();
    if let Some(stderr) = running.child().stderr.take() {
        let mut lines = BufReader::new(stderr);
        loop {
            let mut line = Vec::new();
            match (&mut lines).take(LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => follower.line(&String::from_utf8_lossy(&line), progress),
            }
        }
    }
    let status =
        running.end().map_err(|source| Error::Io { doing: format!("wait for {PROGRAM}"), source })?;
    if status.success() {
        return Ok(());
    }
    let (said, hint) = (follower.reasons(), hint(&follower.all(), mirror));
    Err(Error::Failed { program: PROGRAM, said, hint })
}

/// What most likely is to be done.
pub fn hint(said: &str, mirror: &Mirror) -> String {
    let any = |parts: &[&str]| parts.iter().any(|part| said.contains(part));
    if any(&["NO_PUBKEY", "not signed", "keyring"]) {
        return "install the package debian-archive-keyring, or a newer one".to_owned();
    }
    if any(&["subuid", "unshare", "newuidmap", "user namespace", "unable to pick chroot mode"]) {
        return "it needs root, or user namespaces: the package uidmap, and a line for you in /etc/subuid and /etc/subgid".to_owned();
    }
    if any(&["is expired", "is not valid yet"]) {
        return format!(
            "by this machine's clock the archive's lists are not of today: if date -u shows a wrong time, set the clock; if not, {} is not kept up to \
             date, and --mirror names another",
            mirror.archive
        );
    }
    if any(&["No space left", "enough free space"]) {
        return "it works below $TMPDIR, as root below $XDG_DATA_HOME: name a directory with 2 GiB to spare"
            .to_owned();
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

fn command(
    recipe: &Recipe,
    packages: &[String],
    variant: Variant,
    mirror: &Mirror,
    work: &Path,
) -> Result<Command, Error> {
    let mut command = Command::new(PROGRAM);
    command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
    // Verbose, so that apt and dpkg say how far they are.
    command.args(["--verbose", "--architectures=amd64", "--format=tar", "--skip=output/mknod"]);
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
    command.arg(format!("--include={}", packages.join(",")));
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
    fn what_is_to_be_done_follows_from_what_it_says() {
        for (said, advice) in [
            ("E: You don't have enough free space in /tmp", "TMPDIR"),
            ("E: Release file for http://m/InRelease is expired (invalid since 15d). 404", "date -u"),
            ("E: Failed to fetch http://m/x", "--mirror"),
            ("E: NO_PUBKEY 0", "keyring"),
            ("E: Could not resolve 'm'", "--mirror"),
            ("E: unable to pick chroot mode automatically (use --mode for manual selection)", "/etc/subuid"),
            ("W: /etc/subuid does not exist", "/etc/subuid"),
            ("E: unshare() failed: Operation not permitted", "the package uidmap"),
            ("E: cannot find newuidmap", "the package uidmap"),
            ("E: The following signatures couldn't be verified: NO_PUBKEY 0", "debian-archive-keyring"),
            (
                "E: The repository 'http://m/debian bookworm InRelease' is not signed.",
                "debian-archive-keyring",
            ),
            ("E: Release file for http://m/InRelease is not valid yet (invalid for 2h)", "http://m/debian"),
            ("dpkg: error: cannot copy: No space left on device", "2 GiB"),
            ("E: Unable to fetch some archives", "SKIFF"),
            ("E: apt-get --yes install failed", "it has said why"),
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
