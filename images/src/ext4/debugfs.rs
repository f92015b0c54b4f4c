//! [`Debugfs`].

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::run::{Output, command, run, run_into, said, with_file};
use super::{Error, io};

/// Its name.
const PROGRAM: &str = "debugfs";
/// The longest path that it is asked about, in bytes.
const PATH_LIMIT: usize = 1000;
/// The most names that a directory is listed with.
const NAMES: usize = 100_000;
/// The longest target of a link, in bytes: Linux's.
const TARGET: u64 = 4096;

/// An ext4 file system in a file, with nobody else at work on it. Paths are a guest's, absolute; links on the way are followed, the last
/// name is not.
#[derive(Debug)]
pub struct Debugfs {
    image: File,
    offset: u64,
    writable: bool,
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
}

/// A name in a directory. Names that debugfs cannot be asked about are left out.
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
    /// A symbolic link of root's, in a directory that is there.
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
    /// The file system that begins `offset` bytes into the file `image`, to read it, and to change it if `writable`.
    ///
    /// # Errors
    /// If it is none, or debugfs is missing.
    pub fn open(image: &Path, offset: u64, writable: bool) -> Result<Self, Error> {
        let image = File::options().read(true).write(writable).open(image).map_err(io("open", image))?;
        let opened = Self { image, offset, writable };
        match opened.stat("/")? {
            Some(Stat { kind: Kind::Directory, .. }) => Ok(opened),
            _ => Err(Error::Failed {
                program: PROGRAM,
                said: "the file system has no root directory".to_owned(),
            }),
        }
    }

    /// What is known of a file; `None`: it is not there.
    ///
    /// # Errors
    /// [`Error`].
    pub fn stat(&self, path: &str) -> Result<Option<Stat>, Error> {
        let output = self.ask(&format!("stat {}", quoted(path)?))?;
        if is_missing(&output.stderr) {
            return Ok(None);
        }
        complain(&output)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let stat = Stat::parse(&text);
        stat.map(Some)
            .ok_or_else(|| Error::Failed { program: PROGRAM, said: format!("no answer about {path}") })
    }

    /// What is in a directory, without `.` and `..`; at most 100,000 names.
    ///
    /// # Errors
    /// [`Error::Missing`] and others.
    pub fn list(&self, path: &str) -> Result<Vec<Entry>, Error> {
        let output = self.ask(&format!("ls -p {}", quoted(path)?))?;
        if is_missing(&output.stderr) {
            return Err(Error::Missing { path: path.to_owned() });
        }
        complain(&output)?;
        Ok(entries(&output.stdout))
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
        let missing = || Error::Missing { path: path.to_owned() };
        let stat = self.stat(path)?.filter(|stat| stat.kind == Kind::File).ok_or_else(missing)?;
        if stat.size > limit {
            return Err(Error::TooLarge { path: path.to_owned(), size: stat.size, limit });
        }
        let copied = self.cat(path, into, stat.size)?;
        if copied != stat.size {
            let said = format!("{copied} of {} bytes of {path}", stat.size);
            return Err(Error::Failed { program: PROGRAM, said });
        }
        Ok(copied)
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// [`Error::Missing`] if it is none, and others.
    pub fn read_link(&self, path: &str) -> Result<String, Error> {
        let missing = || Error::Missing { path: path.to_owned() };
        let stat = self.stat(path)?.filter(|stat| stat.kind == Kind::Symlink).ok_or_else(missing)?;
        if stat.size > TARGET {
            return Err(Error::TooLarge { path: path.to_owned(), size: stat.size, limit: TARGET });
        }
        let output = self.ask(&format!("stat {}", quoted(path)?))?;
        let text = String::from_utf8_lossy(&output.stdout);
        // Short ones are in the inode.
        if let Some(line) = text.lines().find_map(|line| line.strip_prefix("Fast link dest: \"")) {
            return line.strip_suffix('"').map(str::to_owned).ok_or_else(missing);
        }
        let mut target = Vec::new();
        self.cat(path, &mut target, stat.size)?;
        String::from_utf8(target).map_err(|_| missing())
    }

    /// Makes these changes, in order.
    ///
    /// # Errors
    /// [`Error`]; some may have been made.
    pub fn edit(&self, changes: &[Change]) -> Result<(), Error> {
        for change in changes {
            match change {
                Change::Directory { path } => self.make_directory(path)?,
                Change::File { path, mode, content } => self.write(path, *mode, content)?,
                Change::Symlink { path, target } => {
                    self.remove(path)?;
                    let (_, name) = self.parent(path)?;
                    self.change(path, &format!("symlink {} {}", quoted_name(name)?, quoted_name(target)?))?;
                }
                Change::Remove { path } => self.remove(path)?,
            }
        }
        Ok(())
    }

    fn make_directory(&self, path: &str) -> Result<(), Error> {
        let mut upto = String::new();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            upto = format!("{upto}/{name}");
            // Behind the slash a link is followed.
            match self.stat(&format!("{upto}/."))? {
                Some(_) => {}
                None => self.change(&upto, &format!("mkdir {}", quoted_name(name)?))?,
            }
        }
        Ok(())
    }

    fn write(&self, path: &str, mode: u32, content: &[u8]) -> Result<(), Error> {
        self.remove(path)?;
        let (_, name) = self.parent(path)?;
        let name = quoted_name(name)?;
        let failed = |source| Error::Io { doing: format!("keep what becomes {path}"), source };
        let memory = rustix::fs::memfd_create("content", rustix::fs::MemfdFlags::empty());
        let mut file = File::from(memory.map_err(|errno| failed(errno.into()))?);
        file.write_all(content).map_err(failed)?;
        // It is inherited: nothing closes it when the program starts.
        let from = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let mode = 0o100_000 | mode & 0o7777;
        self.change(path, &format!("write {from} {name}\nset_inode_field {name} mode 0{mode:o}"))?;
        match self.stat(path)? {
            Some(stat) if stat.size == content.len() as u64 && stat.kind == Kind::File => Ok(()),
            _ => Err(Error::Failed { program: PROGRAM, said: format!("{path} is not as it was written") }),
        }
    }

    fn remove(&self, path: &str) -> Result<(), Error> {
        match self.stat(path)? {
            None => Ok(()),
            Some(_) => {
                let (_, name) = self.parent(path)?;
                self.change(path, &format!("rm {}", quoted_name(name)?))
            }
        }
    }

    /// The directory of a path, which is there, and the last name.
    fn parent<'a>(&self, path: &'a str) -> Result<(String, &'a str), Error> {
        let (parent, name) = path.rsplit_once('/').ok_or_else(|| Error::Path { path: path.to_owned() })?;
        let parent = format!("{parent}/.");
        match self.stat(&parent)? {
            Some(Stat { kind: Kind::Directory, .. }) => Ok((parent, name)),
            _ => Err(Error::Missing { path: parent }),
        }
    }

    /// Does something in the directory of `path`.
    fn change(&self, path: &str, doing: &str) -> Result<(), Error> {
        let (parent, _) = self.parent(path)?;
        if !self.writable {
            return Err(Error::Failed { program: PROGRAM, said: "it was opened to be read".to_owned() });
        }
        let script = format!("cd {}\n{doing}\n", quoted(&parent)?);
        let failed = |source| Error::Io { doing: "keep commands for debugfs".to_owned(), source };
        let memory = rustix::fs::memfd_create("script", rustix::fs::MemfdFlags::empty());
        let mut file = File::from(memory.map_err(|errno| failed(errno.into()))?);
        file.write_all(script.as_bytes()).map_err(failed)?;
        let mut command = command(PROGRAM);
        let device = with_file(&mut command, &self.image, self.offset)?;
        let script = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        command.args(["-w", "-f", &script, &device]);
        complain(&run(PROGRAM, command)?)
    }

    /// Copies a file; says how much.
    fn cat(&self, path: &str, into: &mut dyn Write, size: u64) -> Result<u64, Error> {
        let mut command = command(PROGRAM);
        let device = with_file(&mut command, &self.image, self.offset)?;
        command.args(["-R", &format!("cat {}", quoted(path)?), &device]);
        // One more, so that it ends by itself.
        let (output, copied) = run_into(PROGRAM, command, into, size.saturating_add(1))?;
        complain(&output)?;
        Ok(copied)
    }

    fn ask(&self, request: &str) -> Result<Output, Error> {
        let mut command = command(PROGRAM);
        let device = with_file(&mut command, &self.image, self.offset)?;
        command.args(["-R", request, &device]);
        run(PROGRAM, command)
    }
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let first = lines.next()?;
        let kind = match word_after(first, "Type:")? {
            "regular" => Kind::File,
            "directory" => Kind::Directory,
            "symlink" => Kind::Symlink,
            _ => Kind::Other,
        };
        let mode = u32::from_str_radix(word_after(first, "Mode:")?, 8).ok()?;
        let owner = lines.find(|line| line.starts_with("User:"))?;
        Some(Self {
            kind,
            mode,
            uid: word_after(owner, "User:")?.parse().ok()?,
            gid: word_after(owner, "Group:")?.parse().ok()?,
            size: word_after(owner, "Size:")?.parse().ok()?,
        })
    }
}

fn word_after<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_once(key)?.1.split_whitespace().next()
}

/// Lines of `/INODE/MODE/UID/GID/NAME/SIZE/`. A name cannot have a slash; one with a newline makes lines that are none, or the name of
/// something that is not there.
fn entries(text: &[u8]) -> Vec<Entry> {
    let lines = text.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    let parsed = lines.filter_map(|line| {
        let fields: Vec<&str> = line.split('/').collect();
        let [_, inode, mode, _, _, name, ..] = fields[..] else { return None };
        let removed = inode == "0" || matches!(name, "." | ".." | "");
        let kind = match u32::from_str_radix(mode, 8).ok()? & 0o170_000 {
            0o100_000 => Kind::File,
            0o040_000 => Kind::Directory,
            0o120_000 => Kind::Symlink,
            _ => Kind::Other,
        };
        (!removed && quoted_name(name).is_ok()).then(|| Entry { name: name.to_owned(), kind })
    });
    parsed.take(NAMES).collect()
}

/// A path as one word of a request.
fn quoted(path: &str) -> Result<String, Error> {
    if !path.starts_with('/') {
        return Err(Error::Path { path: path.to_owned() });
    }
    quoted_name(path)
}

/// A text as one word of a request. debugfs reads lines; in quotes nothing but a quote means anything to it.
fn quoted_name(text: &str) -> Result<String, Error> {
    let strange = |letter: char| letter.is_control() || letter == '"';
    if text.is_empty() || text.len() > PATH_LIMIT || text.contains(strange) {
        return Err(Error::Path { path: text.chars().take(PATH_LIMIT).collect() });
    }
    Ok(format!("\"{text}\""))
}

/// What it says about a path that leads nowhere.
fn is_missing(stderr: &str) -> bool {
    stderr.contains("File not found by ext2_lookup") || stderr.contains("Ext2 inode is not a directory")
}

/// Its exit code says nothing: what it complains about is an error. It says its version there, too.
fn complain(output: &Output) -> Result<(), Error> {
    let lines: Vec<&str> = output.stderr.lines().filter(|line| !line.starts_with("debugfs 1.")).collect();
    if output.success && lines.iter().all(|line| line.trim().is_empty()) {
        return Ok(());
    }
    Err(Error::Failed { program: PROGRAM, said: said(&lines.join("\n")) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_has_no_more_words_than_were_meant() {
        assert_eq!(quoted("/a b\\").unwrap(), "\"/a b\\\"");
        for path in ["a", "", "/a\"b", "/a\nrm /b", "/\u{7f}"] {
            assert!(quoted(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn names_are_listed_without_those_that_cannot_be_asked_about() {
        let text = b"/2/040755/0/0/.//\n/12/100644/0/0/file/6/\n/13/120777/0/0/a link/1/\n/0/100644/0/0/gone/6/\n/14/100644/0/0/qu\"ote/6/\nnoise\n";
        let names: Vec<_> = entries(text).into_iter().map(|entry| (entry.name, entry.kind)).collect();
        assert_eq!(names, [("file".to_owned(), Kind::File), ("a link".to_owned(), Kind::Symlink)]);
    }

    proptest! {
        #[test]
        fn hostile_answers_are_no_panic(text in ".{0,200}") {
            let _ = Stat::parse(&text);
            let _ = entries(text.as_bytes());
        }
    }
}
