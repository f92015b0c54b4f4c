//! A job in a process of its own, which is root in a user namespace: [`run`] is the one side of it, [`answer`] the other.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use super::{Error, Job, Outcome, VERB, job};
use crate::progress::Progress;

/// The job, in its directory.
const FILE: &str = "job.json";
/// The longest line of an answer, in bytes.
const LINE: u64 = 64 << 10;
/// The most IDs that are mapped: all that 16 bits have.
const IDS: u32 = 1 << 16;

/// What the process says, one a line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Said {
    /// It is in its namespace, and waits for its IDs.
    Ready,
    /// There is no namespace for it: the errno.
    Refused(i32),
    Step(String),
    Advance(u64, Option<u64>),
    Done(Outcome),
    /// The chain of errors, on one line.
    Failed(String),
}

/// Starts the process, maps its IDs and listens to it.
pub fn run(job: &Job, progress: &mut dyn Progress) -> Result<Outcome, Error> {
    let user = User::of_this_process()?;
    let file = job.work.join(FILE);
    let text = serde_json::to_vec(job).map_err(|error| super::io("write", &file)(error.into()))?;
    fs::write(&file, text).map_err(super::io("write", &file))?;
    let mut child = Command::new("/proc/self/exe")
        .arg(VERB)
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| Error::Io { doing: "start a process for the work".to_owned(), source })?;
    let outcome = listen(&mut child, &user, progress);
    // If it has not ended it never will: nobody listens any more.
    let _ = child.kill();
    let _ = child.wait();
    outcome
}

fn listen(child: &mut Child, user: &User, progress: &mut dyn Progress) -> Result<Outcome, Error> {
    let silent = || Error::Failed("the process that unpacks has ended without a word".to_owned());
    let mut answers = BufReader::new(child.stdout.take().ok_or_else(silent)?);
    loop {
        let mut line = Vec::new();
        let got = (&mut answers).take(LINE).read_until(b'\n', &mut line);
        got.map_err(|source| Error::Io { doing: "listen to the process that unpacks".to_owned(), source })?;
        match serde_json::from_slice(&line).map_err(|_| silent())? {
            Said::Ready => {
                user.map(child.id())?;
                if let Some(mut stdin) = child.stdin.take() {
                    // If it does not read that, it has ended.
                    let _ = stdin.write_all(b"\n");
                }
            }
            Said::Refused(errno) => return Err(refused(io::Error::from_raw_os_error(errno))),
            Said::Step(what) => progress.step(&what),
            Said::Advance(done, total) => progress.advance(done, total),
            Said::Done(outcome) => return Ok(outcome),
            Said::Failed(what) => return Err(Error::Failed(what)),
        }
    }
}

/// Which of the host's settings it is.
fn refused(source: io::Error) -> Error {
    let is = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
    let fix = if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "sysctl kernel.unprivileged_userns_clone=1 allows them"
    } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0 allows them"
    } else if is("/proc/sys/user/max_user_namespaces", "0") {
        "sysctl user.max_user_namespaces=10000 allows them"
    } else {
        "run this as root, or outside of the sandbox or container that forbids them"
    };
    Error::Namespace { fix: fix.to_owned(), source }
}

/// Whether the user of this process has IDs.
pub fn has_ids() -> Result<(), Error> {
    User::of_this_process().map(drop)
}

/// Who this is, and the IDs that are theirs.
struct User {
    name: String,
    uids: (u32, u32),
    gids: (u32, u32),
}

impl User {
    fn of_this_process() -> Result<Self, Error> {
        let uid = rustix::process::getuid().as_raw();
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let name = name_of(&passwd, uid).unwrap_or_else(|| uid.to_string());
        let ids = |file: &'static str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            range(&text, &name, uid).ok_or_else(|| Error::NoIds { file, user: name.clone() })
        };
        let (uids, gids) = (ids("/etc/subuid")?, ids("/etc/subgid")?);
        Ok(Self { name, uids, gids })
    }

    /// Root in it is this user; the others follow.
    fn map(&self, process: u32) -> Result<(), Error> {
        let own = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        for (program, own, (first, count)) in
            [("newuidmap", own.0, self.uids), ("newgidmap", own.1, self.gids)]
        {
            let numbers = [process, 0, own, 1, 1, first, count].map(|number| number.to_string());
            let output = Command::new(program).args(numbers).stdin(Stdio::null()).output();
            let said = match output {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    "install the package uidmap".to_owned()
                }
                Err(error) => error.to_string(),
                Ok(output) if output.status.success() => continue,
                Ok(output) => {
                    let text = String::from_utf8_lossy(&output.stderr);
                    format!("{} (for {})", text.trim().replace('\n', "; "), self.name)
                }
            };
            return Err(Error::Mapping { program, said });
        }
        Ok(())
    }
}

/// From lines of passwd(5).
fn name_of(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// The largest range of subuid(5) for a user by name or number: its first ID, and how many of them are used.
fn range(text: &str, name: &str, uid: u32) -> Option<(u32, u32)> {
    let ranges = text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let who = fields.next()?;
        let (first, count) = (fields.next()?.parse::<u32>().ok()?, fields.next()?.parse::<u32>().ok()?);
        ((who == name || who.parse() == Ok(uid)) && count > 0).then_some((first, count.min(IDS)))
    });
    ranges.max_by_key(|(_, count)| *count)
}

/// If this process was started to do a job, does it and says the exit code; `None`: it was not. For the start of `main`, while there is
/// only one thread.
#[must_use]
pub fn answer(mut arguments: impl Iterator<Item = OsString>) -> Option<u8> {
    if arguments.nth(1).as_deref() != Some(OsStr::new(VERB)) {
        return None;
    }
    let said = match arguments.next() {
        None => Said::Failed(format!("{VERB} is for skiff itself")),
        Some(file) => match do_job(Path::new(&file)) {
            Ok(outcome) => Said::Done(outcome),
            Err(said) => said,
        },
    };
    say(&said);
    Some(u8::from(!matches!(said, Said::Done(_))))
}

fn do_job(file: &Path) -> Result<Outcome, Said> {
    let failed = |error: &dyn std::error::Error| Said::Failed(chain(error));
    let job: Job = fs::read(file)
        .map_err(|error| failed(&error))
        .and_then(|text| serde_json::from_slice(&text).map_err(|error| failed(&error)))?;
    // SAFETY: descriptors stay as they are; of this process only its user namespace changes, and it has one thread.
    let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) };
    unshared.map_err(|errno| Said::Refused(errno.raw_os_error()))?;
    say(&Said::Ready);
    let mut byte = [0];
    io::stdin().read_exact(&mut byte).map_err(|error| failed(&error))?;
    become_root().map_err(|errno| failed(&io::Error::from(errno)))?;
    job::work(&job, &mut Aloud).map_err(|error| failed(&error))
}

/// The IDs of the process in its namespace.
fn become_root() -> rustix::io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
    // Groups of the user's that have no number in here go.
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    // Files are made with the modes that archives say.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    Ok(())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn say(said: &Said) {
    if let Ok(text) = serde_json::to_string(said) {
        let mut stdout = io::stdout().lock();
        // Nobody listens: then the next one who looks is the one who waits for this process.
        let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    }
}

/// Progress for the one who listens.
struct Aloud;

impl Progress for Aloud {
    fn step(&mut self, what: &str) {
        say(&Said::Step(what.to_owned()));
    }

    fn advance(&mut self, done: u64, total: Option<u64>) {
        say(&Said::Advance(done, total));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_range_of_a_user_is_taken() {
        let text = "other:1:9\nme:100000:10\nme:200000:65536\n1000:5:7\nbroken\nme:x:1\nme:1:0\n";
        assert_eq!(range(text, "me", 1000), Some((200_000, 65_536)));
        assert_eq!(range(text, "nobody", 1000), Some((5, 7)));
        assert_eq!(range(text, "nobody", 1001), None);
        assert_eq!(range("me:1:4000000000", "me", 1), Some((1, IDS)));
    }

    #[test]
    fn users_are_known_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n";
        assert_eq!(name_of(passwd, 1000).as_deref(), Some("me"));
        assert_eq!(name_of(passwd, 7), None);
    }

    #[test]
    fn only_the_verb_is_answered() {
        assert_eq!(answer(["skiff".into(), "run".into()].into_iter()), None);
        assert_eq!(answer(["skiff".into()].into_iter()), None);
    }
}
