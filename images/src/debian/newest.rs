//! [`resolve`]: the newest packages of a kind, where a recipe cannot know their names: `linux-image-5.10.0-*-cloud-amd64`, with a number for the star.
//!
//! An apt with lists, sources and state of its own is asked, which checks the archive's signatures and need not be root's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::bootstrap::{KEYRING, hint, line};
use super::follow::Follower;
use super::recipe::Recipe;
use super::{Error, Mirror, failed};
use crate::child::{self, Ending};
use crate::progress::Progress;

/// The packages of `recipe`, each with its whole name.
pub fn resolve(
    recipe: &Recipe,
    mirror: &Mirror,
    work: &Path,
    progress: &mut dyn Progress,
) -> Result<Vec<String>, Error> {
    if !recipe.packages.iter().any(|package| package.contains('*')) {
        return Ok(recipe.packages.clone());
    }
    progress.step("looking for the newest packages");
    let apt = Apt::open(recipe, mirror, work)?;
    let whole = |package: &String| match package.split_once('*') {
        None => Ok(package.clone()),
        Some((before, after)) => {
            let names = apt.run("apt-cache", &["pkgnames", before], mirror)?;
            newest(&names, before, after)
                .ok_or_else(|| Error::NoPackage { like: package.clone(), archive: mirror.archive.clone() })
        }
    };
    recipe.packages.iter().map(whole).collect()
}

/// The name, one a line, that has the highest number between these two.
fn newest(names: &str, before: &str, after: &str) -> Option<String> {
    let number = |name: &&str| -> Option<u64> {
        let digits = name.strip_prefix(before)?.strip_suffix(after)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let numbered = names.lines().filter_map(|name| Some((number(&name)?, name)));
    numbered.max().map(|(_, name)| name.to_owned())
}

/// An apt that sees the archive of a recipe and nothing of this machine.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn open(recipe: &Recipe, mirror: &Mirror, work: &Path) -> Result<Self, Error> {
        let dir = work.join("apt");
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part)).map_err(failed("create directories for apt"))?;
        }
        let sources: String =
            recipe.sources.iter().map(|source| line(source, recipe, mirror) + "\n").collect();
        fs::write(dir.join("sources.list"), sources).map_err(failed("write apt's sources"))?;
        fs::write(dir.join("status"), "").map_err(failed("write apt's state"))?;
        let apt = Self { dir };
        apt.run("apt-get", &["--quiet", "update"], mirror)?;
        Ok(apt)
    }

    /// Runs one of its programs, and returns what it prints.
    fn run(&self, program: &'static str, words: &[&str], mirror: &Mirror) -> Result<String, Error> {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        for (option, path) in [
            ("Dir::State", "state"),
            ("Dir::State::Lists", "state/lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
            ("Dir::Etc::SourceList", "sources.list"),
        ] {
            command.arg("-o").arg(format!("{option}={}", self.dir.join(path).display()));
        }
        if Path::new(KEYRING).is_file() {
            command.arg("-o").arg(format!("Dir::Etc::Trusted={KEYRING}"));
        }
        for option in [
            "Dir::Etc::SourceParts=/dev/null",
            "APT::Architecture=amd64",
            "APT::Architectures=amd64",
            "APT::Sandbox::User=root",
            "APT::Update::Error-Mode=any",
            "Acquire::Languages=none",
        ] {
            command.args(["-o", option]);
        }
        command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).env("TMPDIR", &self.dir);
        let running =
            child::start(&mut command, Ending::Kill).map_err(|source| Error::Program { program, source })?;
        let output = running.output().map_err(failed("wait for apt"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let mut follower = Follower::default();
        String::from_utf8_lossy(&output.stderr).lines().for_each(|line| follower.line(line, &mut ()));
        Err(Error::Failed { program, said: follower.reasons(), hint: hint(&follower.all(), mirror) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_has_the_highest_number() {
        let names = "linux-image-5.10.0-9-cloud-amd64\nlinux-image-5.10.0-46-cloud-amd64\nlinux-image-5.10.0-46-cloud-amd64-dbg\n\
                     linux-image-5.10.0-99-amd64\nlinux-image-5.10.0-0.deb10.99-cloud-amd64\nlinux-image-5.10.0--cloud-amd64\n";
        let newest = |names: &str| newest(names, "linux-image-5.10.0-", "-cloud-amd64");
        assert_eq!(newest(names).as_deref(), Some("linux-image-5.10.0-46-cloud-amd64"));
        assert_eq!(newest("linux-image-5.10.0\n\n"), None);
    }
}
