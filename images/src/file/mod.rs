//! One file that says what an image is: [`File`].
//!
//! ```toml
//! name = "web"                       # what the image is called; otherwise as the file's directory
//! base = "debian:12"                 # the image that it starts from
//! packages = ["nginx", "git"]        # installed by the guest's own package manager, in one step before all others
//! user = "www-data"                  # who commands of the finished image run as; steps run as root
//! workdir = "/srv"                   # where commands start, and steps; made if it is not there
//! env = { LANG = "C.UTF-8" }         # for commands and for steps
//! ports = ["80/tcp"]                 # what its programs listen on
//! publish = ["8080:80"]              # as `--publish` takes them
//! entrypoint = []                    # what a command is put behind
//! command = ["nginx", "-g", "daemon off;"]
//! cpus = 2
//! memory = "1G"
//! size = "20G"                       # of the root disk
//! warm = true                        # take a snapshot after a boot, from which VMs of the image start
//!
//! [[step]]
//! copy = ["app/", "/srv/app"]        # from the file's directory; of a directory, what is in it
//! owner = "www-data:www-data"        # otherwise root
//! mode = "0644"                      # of files; directories can be entered by whoever can read them
//! exclude = ["*.o", ".git"]          # names and paths that stay out
//!
//! [[step]]
//! run = "make -C /srv/app install"   # a line for sh -ec, or a list: a program and its arguments
//! env = { PREFIX = "/usr" }
//! user = "root"
//! workdir = "/srv/app"
//! timeout = "10m"
//! ```
//! Only `base` must be there. What the file leaves out is as in the base; `env` and `ports` add to it, and an `entrypoint` without a
//! `command` has none.
//!
//! [`parse`] reads the text alone. [`plan`](plan::plan) turns the file into steps with [keys](plan::Planned::key): the digest of all that
//! a step's result depends on. [`context`] finds the files that are copied and never looks outside the file's directory. [`cache`] remembers
//! which step's result is where. Nothing here runs a VM, and all of it is the caller's thread.

pub mod cache;
pub mod context;
pub mod parse;
pub mod plan;
pub mod raw;

use crate::manifest::Defaults;
use crate::name::Name;

pub use parse::{FileError, Wrong, parse};

/// What a file asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// What the image is called, if the file says so.
    pub name: Option<Name>,
    /// The image that it starts from.
    pub base: Name,
    /// In the order in which they are done.
    pub steps: Vec<Step>,
    /// Who commands run as.
    pub user: Option<String>,
    /// Where commands start: absolute.
    pub workdir: Option<String>,
    /// `KEY=VALUE`, in the order of the keys.
    pub env: Vec<String>,
    /// Such as `80/tcp`.
    pub ports: Vec<String>,
    /// As `--publish` takes them; not looked at here.
    pub publish: Option<At<Vec<String>>>,
    /// What a command line is put behind.
    pub entrypoint: Option<Vec<String>>,
    /// The command line if none is given.
    pub command: Option<Vec<String>>,
    /// How many vCPUs.
    pub cpus: Option<u8>,
    /// Such as `1G`; not looked at here.
    pub memory: Option<At<String>>,
    /// The size of the root disk in bytes.
    pub size: Option<At<u64>>,
    /// Whether it carries a snapshot taken after a boot.
    pub warm: bool,
}

/// Something, and the line of the file that says it, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<T> {
    /// Of the file.
    pub line: usize,
    /// What stands there.
    pub value: T,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The line of the file where it begins.
    pub line: usize,
    /// What is done.
    pub what: What,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Install these with the guest's package manager.
    Packages(Vec<String>),
    /// Make this directory, if it is not there.
    Workdir(String),
    /// Run a command.
    Run(Run),
    /// Copy files of the file's directory.
    Copy(Copy),
}

/// A command of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// As the file has it: for people.
    pub text: String,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// `KEY=VALUE`, over those of the file.
    pub env: Vec<String>,
    /// Who runs it; otherwise root.
    pub user: Option<String>,
    /// Where it starts; otherwise where commands of the image do.
    pub workdir: Option<String>,
    /// How long it may take, in seconds.
    pub timeout: Option<u64>,
}

/// Files to copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// Relative, without `..`.
    pub sources: Vec<String>,
    /// Absolute. What ends with a slash is a directory.
    pub to: String,
    /// Whose they become, as `USER` or `USER:GROUP`; otherwise root's.
    pub owner: Option<String>,
    /// The mode of files.
    pub mode: Option<u32>,
    /// Patterns of names and paths that stay out.
    pub exclude: Vec<String>,
}

impl File {
    /// The defaults of the image, on a base that has `base`.
    #[must_use]
    pub fn defaults(&self, base: &Defaults) -> Defaults {
        let command = match (&self.command, &self.entrypoint) {
            (Some(command), _) => command.clone(),
            (None, Some(_)) => Vec::new(),
            (None, None) => base.command.clone(),
        };
        let mut ports = base.ports.clone();
        ports.extend(self.ports.iter().filter(|port| !base.ports.contains(port)).cloned());
        Defaults {
            cpus: self.cpus.or(base.cpus),
            memory: self.memory.as_ref().map(|memory| memory.value.clone()).or_else(|| base.memory.clone()),
            user: self.user.clone().unwrap_or_else(|| base.user.clone()),
            env: merged(&base.env, &self.env),
            cwd: self.workdir.clone().unwrap_or_else(|| base.cwd.clone()),
            entrypoint: self.entrypoint.clone().unwrap_or_else(|| base.entrypoint.clone()),
            command,
            ports,
            publish: self
                .publish
                .as_ref()
                .map_or_else(|| base.publish.clone(), |publish| publish.value.clone()),
        }
    }
}

/// `lower` with what `upper` has instead or beside it. Each is `KEY=VALUE`.
fn merged(lower: &[String], upper: &[String]) -> Vec<String> {
    let key = |pair: &String| pair.split_once('=').map_or(pair.clone(), |(key, _)| key.to_owned());
    let replaced = |pair: &&String| upper.iter().any(|other| key(other) == key(pair));
    lower.iter().filter(|pair| !replaced(pair)).chain(upper).cloned().collect()
}

#[cfg(test)]
mod tests;
