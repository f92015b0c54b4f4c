//! A release's package archive, seen through an apt of its own below the target directory: its own
//! sources, lists and state, so that neither the machine's release nor its package state matters.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Release;
use super::mirror::Mirror;
use crate::progress::Step;
use crate::{paths, tool};

/// Lists older than this may name packages that the archive has replaced.
const LISTS_KEEP: Duration = Duration::from_secs(6 * 60 * 60);
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One release's archive.
pub struct Archive {
    release: Release,
    dir: PathBuf,
}

impl Archive {
    /// Sets up the private apt of `release` and reads its package lists unless they are fresh.
    ///
    /// # Errors
    /// When the directory cannot be written or the archive cannot be reached.
    pub fn open(release: Release) -> Result<Archive> {
        let dir = paths::target()?.join("apt").join(release.suite());
        let archive = Archive { release, dir };
        archive.configure()?;
        let stamp = archive.dir.join("lists.stamp");
        let age = fs::metadata(&stamp).and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
        if age.is_none_or(|age| age > LISTS_KEEP) {
            let step = Step::start(format!("reading the package lists of Debian {}", release.number()));
            tool::capture(archive.apt("apt-get").args([
                "--quiet",
                "-o",
                "APT::Update::Error-Mode=any",
                "update",
            ]))?;
            File::create(&stamp).with_context(|| format!("cannot write {}", stamp.display()))?;
            step.done();
        }
        Ok(archive)
    }

    fn configure(&self) -> Result<()> {
        for dir in ["lists/partial", "cache/archives/partial", "state"] {
            paths::make_dir(&self.dir.join(dir))?;
        }
        let mirror = Mirror::of_machine(Path::new("/etc/apt"))?;
        let suite = self.release.suite();
        // An old release's lists may be past their date for good; their signature still counts.
        let options = format!("[signed-by={KEYRING} check-valid-until=no]");
        let sources = format!(
            "deb {options} {} {suite} main\ndeb {options} {} {suite}-security main\n",
            mirror.archive, mirror.security
        );
        let dir = self.dir.display();
        let config = format!(
            "#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\nAPT::Sandbox::User \"root\";\n\
             Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n\
             Dir::State \"{dir}/state\";\nDir::State::lists \"{dir}/lists\";\nDir::State::status \"{dir}/state/status\";\n\
             Dir::Cache \"{dir}/cache\";\nDir::Etc::sourcelist \"{dir}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"/dev/null\";\n"
        );
        paths::write_whole(&self.dir.join("state/status"), b"")?;
        paths::write_whole(&self.dir.join("sources.list"), sources.as_bytes())?;
        paths::write_whole(&self.dir.join("apt.conf"), config.as_bytes())
    }

    /// An apt program with the private configuration, which as an option is read after the machine's own.
    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        apt.arg("--config-file").arg(self.dir.join("apt.conf")).env("LC_ALL", "C");
        apt
    }

    /// The versioned kernel package that the metapackage `meta` (`linux-image-amd64`) stands for now.
    ///
    /// # Errors
    /// When the archive has no such metapackage.
    pub fn kernel_package(&self, meta: &str) -> Result<String> {
        let shown = tool::capture(self.apt("apt-cache").args(["depends", "--important", meta]))?;
        let mut depends =
            shown.lines().filter_map(|line| line.trim().strip_prefix("Depends:")).map(str::trim);
        match depends.find(|package| package.starts_with("linux-image-")) {
            Some(package) => Ok(package.to_string()),
            None => bail!("{meta} of Debian {} names no kernel package", self.release.number()),
        }
    }

    /// A field of a package's newest record, such as `Version` or `Size`.
    fn field(&self, package: &str, field: &str) -> Result<String> {
        let shown = tool::capture(self.apt("apt-cache").args(["show", "--no-all-versions", package]))?;
        let prefix = format!("{field}: ");
        let value = shown.lines().find_map(|line| line.strip_prefix(&prefix));
        value
            .map(str::to_string)
            .with_context(|| format!("{package} has no field {field} in the package lists"))
    }

    /// Fetches a package into the empty directory `dir` and returns its file.
    ///
    /// # Errors
    /// When the archive does not have it or the transfer fails.
    pub fn download(&self, package: &str, dir: &Path) -> Result<PathBuf> {
        let size: u64 = self.field(package, "Size")?.parse().with_context(|| format!("size of {package}"))?;
        let step = Step::start(format!(
            "fetching {package} of Debian {}, {:.1} MB",
            self.release.number(),
            mega(size)
        ));
        let noise = dir.join("apt.log");
        let log = File::create(&noise).with_context(|| format!("cannot write {}", noise.display()))?;
        let mut command = self.apt("apt-get");
        command.args(["--quiet", "download", package]).current_dir(dir).stdin(Stdio::null());
        let mut child = command.stdout(log.try_clone()?).stderr(log).spawn().context("cannot run apt-get")?;
        let status = loop {
            if let Some(status) = child.try_wait().context("waiting for apt-get")? {
                break status;
            }
            step.detail(format!("{:.0} %", 100.0 * bytes_below(dir) as f64 / size.max(1) as f64));
            std::thread::sleep(Duration::from_millis(100));
        };
        if !status.success() {
            bail!("apt-get could not fetch {package}:\n{}", fs::read_to_string(&noise).unwrap_or_default());
        }
        let files = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
        let mut files = files.flatten().map(|entry| entry.path());
        let file = files.find(|file| file.extension().is_some_and(|end| end == "deb"));
        step.done();
        file.with_context(|| format!("apt-get left no package file for {package}"))
    }

    /// The version of a package, for the record.
    pub fn version(&self, package: &str) -> Result<String> {
        self.field(package, "Version")
    }
}

fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn bytes_below(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
}
