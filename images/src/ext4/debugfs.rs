//! [`Debugfs`]: files of an ext4 file system that is not mounted.
//!
//! Each question is a `debugfs` of its own. It works in the image's directory, so that no path of the host is part of a command, and only reads the
//! image but for changes. What it prints is the guest's: names and targets can be anything, and are read as such.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::Error;

/// The most that is read of what debugfs says of a file or a directory, in bytes.
const MAX_SAID: u64 = 64 << 20;
/// The most names of a directory.
const MAX_NAMES: usize = 100_000;
/// The longest path in a guest, in bytes.
const MAX_PATH: usize = 1000;

/// An ext4 file system in a file, with nobody else at work on it. Paths are a guest's, absolute; links on the way are followed, the last
/// name is not.
#[derive(Debug)]
pub struct Debugfs {
    image: PathBuf,
    offset: u64,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else.
    Other,
}

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its length in bytes.
    pub size: u64,
    /// Where a symbolic link leads, if that is in its inode: below 60 bytes.
    pub target: Option<String>,
}

/// A name in a directory. Names that a debugfs cannot be asked about are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name alone.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

/// A change. What is in its place goes first; a directory that is there stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A directory, with those that it is in, root's, 0755.
    Directory {
        /// Its path.
        path: String,
    },
    /// A file of root's, in a directory that is there.
    File {
        /// Its path.
        path: String,
        /// Permission bits.
        mode: u32,
        /// What it holds.
        content: Vec<u8>,
    },
    /// A symbolic link of root's.
    Symlink {
        /// Its path.
        path: String,
        /// Where it leads.
        target: String,
    },
    /// A file or link goes. What is not there is no error.
    Remove {
        /// Its path.
        path: String,
    },
}

impl Debugfs {
    /// The file system that begins `offset` bytes into the file `image`.
    ///
    /// # Errors
    /// If it is none, or debugfs is missing.
    pub fn open(image: &Path, offset: u64) -> Result<Self, Error> {
        let this = Self { image: image.to_owned(), offset };
        match this.stat("/")? {
            Some(Stat { kind: Kind::Directory, .. }) => Ok(this),
            _ => Err(Error::Failed { program: PROGRAM, said: "it finds no file system".to_owned() }),
        }
    }

    /// Where it begins in its file, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Replay its journal if that was not done, and nothing else. A change before that would be undone by the guest's own replay.
    ///
    /// # Errors
    /// If it cannot be replayed, or e2fsck is missing.
    pub fn replay(image: &Path, offset: u64) -> Result<(), Error> {
        let this = Self { image: image.to_owned(), offset };
        let mut command = this.command("e2fsck");
        command.args(["-y", "-E", "journal_only"]).arg(this.device()?);
        let (_, said, code) = finish(start(&mut command, "e2fsck")?, "e2fsck", MAX_SAID)?;
        // 1: errors were corrected (e2fsck(8)).
        match code {
            Some(0 | 1) => Ok(()),
            _ => Err(Error::Failed { program: "e2fsck", said }),
        }
    }

    /// What is known of a file; `None`: it is not there.
    ///
    /// # Errors
    /// [`Error`].
    pub fn stat(&self, path: &str) -> Result<Option<Stat>, Error> {
        let (out, said) = self.ask(&format!("stat {}", quoted(path)?), MAX_SAID)?;
        if out.is_empty() && is_missing(&said) {
            return Ok(None);
        }
        parse_stat(&String::from_utf8_lossy(&out)).map(Some).ok_or(Error::Failed { program: PROGRAM, said })
    }

    /// What is in a directory, without `.` and `..`; at most 100,000 names.
    ///
    /// # Errors
    /// [`Error`].
    pub fn list(&self, path: &str) -> Result<Vec<Entry>, Error> {
        let (out, said) = self.ask(&format!("ls -p {}", quoted(path)?), MAX_SAID)?;
        if out.is_empty() && is_missing(&said) {
            return Err(Error::Missing { path: path.to_owned() });
        }
        let lines = out.split(|byte| *byte == b'\n');
        Ok(lines.filter_map(|line| parse_entry(std::str::from_utf8(line).ok()?)).take(MAX_NAMES).collect())
    }

    /// What a file holds, of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::TooLarge`] and others.
    pub fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let mut content = Vec::new();
        self.read_to(path, &mut content, limit)?;
        Ok(content)
    }

    /// As [`Self::read`], but for files that are too large for memory. Says the length.
    ///
    /// # Errors
    /// The same.
    pub fn read_to(&self, path: &str, into: &mut dyn Write, limit: u64) -> Result<u64, Error> {
        let size = match self.stat(path)? {
            Some(Stat { kind: Kind::File, size, .. }) => size,
            _ => return Err(Error::Missing { path: path.to_owned() }),
        };
        if size > limit {
            return Err(Error::TooLarge { path: path.to_owned(), size, limit });
        }
        let mut command = self.command(PROGRAM);
        command.arg("-R").arg(format!("cat {}", quoted(path)?)).arg(self.device()?);
        let mut child = start(&mut command, PROGRAM)?;
        let io = |source| Error::Io { doing: format!("read {path} in the file system"), source };
        let copied = match child.stdout.take() {
            Some(out) => io::copy(&mut out.take(size.saturating_add(1)), into).map_err(io),
            None => Ok(0),
        };
        // The pipe is closed: it ends soon.
        let (_, said, _) = finish(child, PROGRAM, 0)?;
        if copied? != size {
            return Err(Error::Failed { program: PROGRAM, said });
        }
        Ok(size)
    }

    /// Makes these changes, in order.
    ///
    /// # Errors
    /// [`Error`]; some may have been made.
    pub fn edit(&self, changes: &[Change]) -> Result<(), Error> {
        changes.iter().try_for_each(|change| match change {
            Change::Directory { path } => self.make_directory(path),
            Change::File { path, mode, content } => self.make_file(path, *mode, content),
            Change::Symlink { path, target } => {
                self.remove(path)?;
                // The target is quoted by the same rules.
                let target = word(target).ok_or_else(|| Error::Path { path: target.clone() })?;
                self.change(&[format!("symlink {} {target}", quoted(path)?)])?;
                self.must_be(path, Kind::Symlink)
            }
            Change::Remove { path } => self.remove(path),
        })
    }

    fn make_directory(&self, path: &str) -> Result<(), Error> {
        let mut so_far = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            so_far = format!("{so_far}/{part}");
            match self.stat(&so_far)?.map(|stat| stat.kind) {
                Some(Kind::Directory | Kind::Symlink) => {}
                Some(_) => return Err(Error::Missing { path: format!("{so_far}/") }),
                None => {
                    self.change(&[format!("mkdir {}", quoted(&so_far)?)])?;
                    self.must_be(&so_far, Kind::Directory)?;
                }
            }
        }
        Ok(())
    }

    fn make_file(&self, path: &str, mode: u32, content: &[u8]) -> Result<(), Error> {
        let (dir, name) = path.rsplit_once('/').ok_or_else(|| Error::Path { path: path.to_owned() })?;
        let dir = if dir.is_empty() { "/" } else { dir };
        // By its own entry: the directory may be behind a link.
        if self.stat(&format!("{dir}/."))?.is_none_or(|stat| stat.kind != Kind::Directory) {
            return Err(Error::Missing { path: dir.to_owned() });
        }
        self.remove(path)?;
        let aside = self.aside();
        let io = |source| Error::Io { doing: format!("write {}", aside.display()), source };
        fs::write(&aside, content).map_err(io)?;
        let aside_name = aside.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let place = quoted(path)?;
        let written = self.change(&[
            format!("cd {}", quoted(&format!("{dir}/."))?),
            format!(
                "write {aside_name} {}",
                word(name).ok_or_else(|| Error::Path { path: path.to_owned() })?
            ),
            format!("set_inode_field {place} mode 0{:o}", 0o100_000 | mode & 0o7777),
            format!("set_inode_field {place} uid 0"),
            format!("set_inode_field {place} gid 0"),
        ]);
        // The first error is the one that matters.
        let _ = fs::remove_file(&aside);
        written?;
        match self.stat(path)? {
            Some(Stat { kind: Kind::File, size, .. }) if size == content.len() as u64 => Ok(()),
            _ => {
                Err(Error::Failed { program: PROGRAM, said: format!("{path} was not written: is it full?") })
            }
        }
    }

    fn remove(&self, path: &str) -> Result<(), Error> {
        match self.stat(path)?.map(|stat| stat.kind) {
            None => Ok(()),
            Some(Kind::Directory) => {
                Err(Error::Failed { program: PROGRAM, said: format!("{path} is a directory") })
            }
            Some(_) => self.change(&[format!("rm {}", quoted(path)?)]),
        }
    }

    fn must_be(&self, path: &str, kind: Kind) -> Result<(), Error> {
        match self.stat(path)? {
            Some(stat) if stat.kind == kind => Ok(()),
            _ => Err(Error::Failed { program: PROGRAM, said: format!("{path} was not made: is it full?") }),
        }
    }

    /// Ask without changing. Returns what it answers, and its messages.
    fn ask(&self, request: &str, limit: u64) -> Result<(Vec<u8>, String), Error> {
        let mut command = self.command(PROGRAM);
        // Without the bitmaps, which nothing here needs: damaged ones do not matter.
        command.args(["-c", "-R", request]).arg(self.device()?);
        let (out, said, code) = finish(start(&mut command, PROGRAM)?, PROGRAM, limit)?;
        if code != Some(0) || said.contains("while trying to open") {
            return Err(Error::Failed { program: PROGRAM, said });
        }
        Ok((out, said))
    }

    fn change(&self, requests: &[String]) -> Result<(), Error> {
        let mut command = self.command(PROGRAM);
        command.args(["-w", "-f", "-"]).arg(self.device()?).stdin(Stdio::piped());
        let mut child = start(&mut command, PROGRAM)?;
        let text: String = requests.iter().map(|request| format!("{request}\n")).collect();
        if let Some(mut stdin) = child.stdin.take() {
            // One that has ended says by its code why.
            let _ = stdin.write_all(text.as_bytes());
        }
        let (_, said, code) = finish(child, PROGRAM, MAX_SAID)?;
        if code != Some(0) || said.contains("while trying to open") {
            return Err(Error::Failed { program: PROGRAM, said });
        }
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        // Those who are not root have no sbin in their PATH, and that is where they are.
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        path.push(":/usr/sbin:/sbin");
        let mut command = Command::new(program);
        let dir = self.image.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        command.current_dir(dir).env("PATH", path).env("LC_ALL", "C").env("DEBUGFS_PAGER", "__none__");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The image as e2fsprogs take it, in its directory.
    fn device(&self) -> Result<OsString, Error> {
        let name = self.image.file_name().filter(|name| !name.as_encoded_bytes().contains(&b'?'));
        let name = name.ok_or_else(|| Error::Path { path: self.image.display().to_string() })?;
        let mut device = OsString::from("./");
        device.push(name);
        if self.offset > 0 {
            device.push(format!("?offset={}", self.offset));
        }
        Ok(device)
    }

    /// A file beside the image, for what is to be put into it.
    fn aside(&self) -> PathBuf {
        self.image.with_file_name(format!(".put-{}", std::process::id()))
    }
}

const PROGRAM: &str = "debugfs";

fn start(command: &mut Command, program: &'static str) -> Result<Child, Error> {
    command.spawn().map_err(|source| Error::Program { program, source })
}

/// Wait for its end. Returns the first `limit` bytes of its output, the end of its messages, and its exit code.
fn finish(
    mut child: Child,
    program: &'static str,
    limit: u64,
) -> Result<(Vec<u8>, String, Option<i32>), Error> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    // Both at once: a program that waits for a reader of one would never end the other.
    let messages = std::thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(mut stderr) = stderr {
            // What is behind a megabyte of messages is of no use.
            let _ = stderr.by_ref().take(1 << 20).read_to_end(&mut said);
        }
        said
    });
    let mut out = Vec::new();
    let read = stdout.map_or(Ok(0), |stdout| stdout.take(limit).read_to_end(&mut out));
    let status = child.wait();
    let said = messages.join().unwrap_or_default();
    let io = |source| Error::Io { doing: format!("run {program}"), source };
    read.map_err(io)?;
    Ok((out, last_lines(&said), status.map_err(io)?.code()))
}

/// The end of messages, without the program's version and in one line.
fn last_lines(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("debugfs 1.") && !line.starts_with("e2fsck 1."));
    let mut lines: Vec<&str> = lines.collect();
    let from = lines.len().saturating_sub(5);
    let text = lines.split_off(from).join(", ");
    text.chars().filter(|letter| !letter.is_control()).take(1000).collect()
}

fn is_missing(said: &str) -> bool {
    said.contains("File not found") || said.contains("Ext2 inode is not a directory")
}

/// `text` as one word of a request, if it can be one.
fn word(text: &str) -> Option<String> {
    let fits = !text.is_empty()
        && text.len() <= MAX_PATH
        && !text.chars().any(|letter| letter.is_control() || letter == '"' || letter == '\\');
    fits.then(|| format!("\"{text}\""))
}

/// A path as a word. One that begins with `<` would be an inode's number.
fn quoted(path: &str) -> Result<String, Error> {
    let wrong = || Error::Path { path: path.chars().take(200).collect() };
    word(path).filter(|_| path.starts_with('/')).ok_or_else(wrong)
}

/// The number behind `key` in `line`.
fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_once(key)?.1.split_whitespace().next()
}

/// What `stat` prints. The lines that count are the first of their kind: below them stand texts of the guest.
fn parse_stat(text: &str) -> Option<Stat> {
    let first = text.lines().find(|line| line.starts_with("Inode:"))?;
    let owner = text.lines().find(|line| line.starts_with("User:"))?;
    let kind = match field(first, "Type:")? {
        "regular" => Kind::File,
        "directory" => Kind::Directory,
        "symlink" => Kind::Symlink,
        _ => Kind::Other,
    };
    let target = || {
        let line = text.lines().rev().find_map(|line| line.strip_prefix("Fast link dest: \""))?;
        Some(line.strip_suffix('"')?.to_owned())
    };
    Some(Stat {
        kind,
        mode: u32::from_str_radix(field(first, "Mode:")?, 8).ok()? & 0o7777,
        uid: field(owner, "User:")?.parse().ok()?,
        gid: field(owner, "Group:")?.parse().ok()?,
        size: field(owner, "Size:")?.parse().ok()?,
        target: if kind == Kind::Symlink { target() } else { None },
    })
}

/// A line of `ls -p`: `/INODE/MODE/UID/GID/NAME/SIZE/`.
fn parse_entry(line: &str) -> Option<Entry> {
    let mut parts = line.strip_prefix('/')?.strip_suffix('/')?.split('/');
    let inode: u64 = parts.next()?.parse().ok()?;
    let mode = u32::from_str_radix(parts.next()?, 8).ok()?;
    let name = parts.nth(2)?;
    // Without a size behind it, it goes on in the next line.
    parts.next()?;
    let kind = match mode & 0o170_000 {
        0o100_000 => Kind::File,
        0o040_000 => Kind::Directory,
        0o120_000 => Kind::Symlink,
        _ => Kind::Other,
    };
    let plain = inode != 0 && !matches!(name, "." | "..") && word(name).is_some();
    plain.then(|| Entry { name: name.to_owned(), kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ext4 file system with a few files, `offset` bytes into a file.
    fn image(dir: &Path, offset: u64) -> PathBuf {
        let tree = dir.join("tree");
        fs::create_dir_all(tree.join("etc/with space")).unwrap();
        fs::write(tree.join("etc/os-release"), "NAME=x\n").unwrap();
        fs::write(tree.join("etc/with space/it's"), vec![7; 100_000]).unwrap();
        fs::write(tree.join("etc/new\nline"), "").unwrap();
        std::os::unix::fs::symlink("../etc", tree.join("etc/self")).unwrap();
        std::os::unix::fs::symlink("x".repeat(100), tree.join("etc/long")).unwrap();
        let image = dir.join("disk image");
        fs::File::create(&image).unwrap().set_len(offset + (20 << 20)).unwrap();
        let mut command = Command::new("mkfs.ext4");
        command.args(["-q", "-F", "-E", &format!("offset={offset}"), "-d"]).arg(&tree).arg(&image).arg("20M");
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        assert!(command.env("PATH", path).status().unwrap().success());
        image
    }

    #[test]
    fn files_are_read_without_a_mount_wherever_the_file_system_begins() {
        for offset in [0, 1 << 20] {
            let dir = tempfile::tempdir().unwrap();
            let image = image(dir.path(), offset);
            let files = Debugfs::open(&image, offset).unwrap();
            let stat = files.stat("/etc/os-release").unwrap().unwrap();
            assert_eq!((stat.kind, stat.size), (Kind::File, 7));
            assert_eq!(files.stat("/etc/nothing").unwrap(), None);
            assert_eq!(files.stat("/etc/os-release/nothing").unwrap(), None);
            assert_eq!(files.stat("/etc/self").unwrap().unwrap().target.as_deref(), Some("../etc"));
            assert_eq!(files.stat("/etc/long").unwrap().unwrap().target, None, "it is not in the inode");
            assert_eq!(files.read("/etc/self/os-release", 7).unwrap(), b"NAME=x\n");
            assert_eq!(files.read("/etc/with space/it's", 1 << 20).unwrap(), vec![7; 100_000]);
            assert!(matches!(files.read("/etc/os-release", 6), Err(Error::TooLarge { size: 7, .. })));
            assert!(matches!(files.read("/etc", 6), Err(Error::Missing { .. })));
            assert!(matches!(files.list("/nothing"), Err(Error::Missing { .. })));
            let mut names: Vec<_> = files.list("/etc").unwrap().into_iter().map(|entry| entry.name).collect();
            names.sort();
            assert_eq!(names, ["long", "os-release", "self", "with space"], "what has a newline is left out");
            for path in ["etc", "/a\"b", "/a\nrm /etc", "<2>", "", "/a\\b"] {
                assert!(matches!(files.stat(path), Err(Error::Path { .. })), "{path:?}");
            }
            assert!(Debugfs::open(&image, offset + 512).is_err());
        }
    }

    #[test]
    fn changes_are_roots_and_leave_a_sound_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let offset = 1 << 20;
        let image = image(dir.path(), offset);
        let files = Debugfs::open(&image, offset).unwrap();
        let file = |path: &str, content: &[u8]| Change::File {
            path: path.into(),
            mode: 0o755,
            content: content.into(),
        };
        let link = |path: &str| Change::Symlink { path: path.into(), target: "../unit".into() };
        files
            .edit(&[
                Change::Directory { path: "/usr/lib/a b".into() },
                Change::Directory { path: "/usr/lib/a b".into() },
                file("/usr/lib/a b/program", b"one"),
                file("/usr/lib/a b/program", &[9; 3_000_000]),
                file("/etc/self/through", b"link"),
                link("/usr/lib/link"),
                link("/usr/lib/link"),
                Change::Remove { path: "/etc/os-release".into() },
                Change::Remove { path: "/etc/os-release".into() },
            ])
            .unwrap();
        let stat = files.stat("/usr/lib/a b/program").unwrap().unwrap();
        assert_eq!((stat.mode, stat.uid, stat.gid, stat.size), (0o755, 0, 0, 3_000_000));
        assert_eq!(files.read("/usr/lib/a b/program", 1 << 30).unwrap(), vec![9; 3_000_000]);
        assert_eq!(files.read("/etc/through", 4).unwrap(), b"link");
        assert_eq!(files.stat("/usr/lib/link").unwrap().unwrap().target.as_deref(), Some("../unit"));
        assert_eq!(files.stat("/etc/os-release").unwrap(), None);
        assert!(files.edit(&[file("/nowhere/file", b"")]).is_err());
        assert!(files.edit(&[file("/too-large", &[1; 30 << 20])]).is_err(), "it is full");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing stays beside the image");
        Debugfs::replay(&image, offset).unwrap();
        let mut check = files.command("e2fsck");
        check.args(["-fn"]).arg(files.device().unwrap());
        assert_eq!(check.output().unwrap().status.code(), Some(0), "{:?}", check.output());
    }
}
