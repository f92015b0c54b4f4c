//! [`Plan`]: what is to be done for a file, each step with a key by which its result is found again.
//!
//! ```text
//! key 0 = digest of   this build of skiff · the base's ID · the size of the root disk
//! key n = digest of   key n-1 · what step n does · content, names and modes of the files that it copies
//! image = digest of   the last key · the image's defaults
//! ```
//! What a step only is shown by, and how long it may take, is in no key.

use serde::Serialize;

use super::context::{Context, ContextError, Tree};
use super::{Copy, File, Run, What, merged};
use crate::digest::Digest;
use crate::manifest::Defaults;

/// Goes up when the same file is to be built anew, for what a build does has changed.
const GENERATION: u32 = 2;

/// Installs the packages that are its arguments, and leaves nothing behind that they do not need. A guest is ready before its network may be: a guest
/// that has one gets a while to find its way out.
const INSTALL: &str = r#"
online() {
    for at in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
        [ "$(echo /sys/class/net/*)" = /sys/class/net/lo ] && return
        cut -f 2 /proc/net/route | grep -qx 00000000 && return
        sleep 1
    done
    echo "the guest has found no way out to a network" >&2
}
if command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    online
    apt-get -q -o APT::Update::Error-Mode=any -o Acquire::Retries=3 update
    apt-get -qy -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 install --no-install-recommends -- "$@"
    apt-get -q clean
    rm -rf /var/lib/apt/lists/*
elif command -v apk >/dev/null; then
    online
    apk add --no-cache "$@"
elif command -v dnf >/dev/null; then
    online
    dnf -qy install "$@"
    dnf -q clean all
else
    echo "the base has no package manager that skiff knows (apt-get, apk, dnf): install with a run step" >&2
    exit 1
fi
"#;

/// What is to be done.
#[derive(Debug)]
pub struct Plan {
    /// Of the base, before any step.
    pub start: Digest,
    /// In order.
    pub steps: Vec<Planned>,
    /// Of the finished image.
    pub image: Digest,
    /// What the image's VMs have if nobody says otherwise.
    pub defaults: Defaults,
}

/// A step of a [`Plan`].
#[derive(Debug)]
pub struct Planned {
    /// Of the file.
    pub line: usize,
    /// For people: `run make install`.
    pub title: String,
    /// All that its result depends on.
    pub key: Digest,
    /// What is done.
    pub action: Action,
}

/// What is done for a step.
#[derive(Debug)]
pub enum Action {
    /// Run this in the guest.
    Run(Exec),
    /// Copy these files into the guest.
    Copy(Copy, Tree),
}

/// A command with all that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Exec {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// `KEY=VALUE`.
    pub env: Vec<String>,
    /// Who runs it; otherwise root.
    pub user: Option<String>,
    /// Where it starts; otherwise the user's home.
    pub cwd: Option<String>,
    /// How long it may take, in seconds.
    #[serde(skip)]
    pub timeout: Option<u64>,
}

/// What all keys stand on.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ground<'a> {
    /// skiff's version.
    pub version: &'a str,
    /// The base's ID.
    pub base: Digest,
    /// The size of the root disk in bytes.
    pub size: u64,
}

/// What a key is the digest of, as JSON.
#[derive(Serialize)]
struct Keyed<'a, T> {
    generation: u32,
    after: Option<Digest>,
    what: &'a T,
}

fn key<T: Serialize>(after: Option<Digest>, what: &T) -> Digest {
    let keyed = Keyed { generation: GENERATION, after, what };
    // None of these types can fail to be JSON: they have no maps but by text.
    Digest::of(&serde_json::to_vec(&keyed).unwrap_or_default())
}

/// What is to be done for `file` on a base that has the defaults `base`. Files that are copied are read for their digests; `read` is told how many
/// bytes that were.
///
/// # Errors
/// If a file that is to be copied is not there, or cannot be.
pub fn plan(
    file: &File,
    ground: &Ground<'_>,
    base: &Defaults,
    context: &Context,
    read: &mut dyn FnMut(u64),
) -> Result<Plan, ContextError> {
    let defaults = file.defaults(base);
    let start = key(None, ground);
    let (mut steps, mut last) = (Vec::with_capacity(file.steps.len()), start);
    for step in &file.steps {
        let (title, action) = action(&step.what, &defaults, context, step.line, read)?;
        last = match &action {
            Action::Run(exec) => key(Some(last), exec),
            Action::Copy(copy, tree) => key(Some(last), &(&copy.to, &copy.owner, &copy.mode, tree.digest())),
        };
        steps.push(Planned { line: step.line, title, key: last, action });
    }
    let image = key(Some(last), &defaults);
    Ok(Plan { start, steps, image, defaults })
}

fn action(
    what: &What,
    defaults: &Defaults,
    context: &Context,
    line: usize,
    read: &mut dyn FnMut(u64),
) -> Result<(String, Action), ContextError> {
    let root = |argv: Vec<String>| Exec {
        argv,
        env: defaults.env.clone(),
        cwd: Some("/".to_owned()),
        ..Exec::default()
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    Ok(match what {
        What::Packages(packages) => {
            let mut argv = words(&["/bin/sh", "-ec", INSTALL, "packages"]);
            argv.extend(packages.iter().cloned());
            (format!("packages {}", packages.join(" ")), Action::Run(root(argv)))
        }
        What::Workdir(dir) => {
            (format!("workdir {dir}"), Action::Run(root(words(&["/bin/mkdir", "-p", "--", dir]))))
        }
        What::Run(run) => (format!("run {}", one_line(&run.text)), Action::Run(exec(run, defaults))),
        What::Copy(copy) => {
            let title = format!("copy {} {}", copy.sources.join(" "), copy.to);
            let tree = context.find(copy, line, read)?;
            (title, Action::Copy(copy.clone(), tree))
        }
    })
}

fn exec(run: &Run, defaults: &Defaults) -> Exec {
    let cwd = run.workdir.clone().unwrap_or_else(|| defaults.cwd.clone());
    Exec {
        argv: run.argv.clone(),
        env: merged(&defaults.env, &run.env),
        user: run.user.clone(),
        cwd: Some(cwd).filter(|cwd| !cwd.is_empty()),
        timeout: run.timeout,
    }
}

/// The first line of `text`, and a sign that there are more.
fn one_line(text: &str) -> String {
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    if lines.next().is_some() { format!("{first} …") } else { first.to_owned() }
}
