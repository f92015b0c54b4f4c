//! [`Sink`]: where a report goes.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::cmd::print;
use crate::exit::Usage;
use crate::held::Dir;

/// Settled before all tests run: a guest that has the folder too cannot lead it elsewhere.
#[derive(Debug)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// What was there before: a file, a device, a pipe.
    There(File, PathBuf),
    /// A new file in a directory.
    New(Dir, OsString),
}

impl Sink {
    /// `path`, or standard output for `-`. What is there stays as it is for now.
    pub fn open(path: &Path) -> Result<Self> {
        let cannot = |error| Usage(format!("cannot write {}: {error}: name another file", path.display()));
        if path.as_os_str() == "-" {
            return Ok(Self::Stdout);
        }
        match OpenOptions::new().write(true).open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            opened => return Ok(Self::There(opened.map_err(cannot)?, path.to_owned())),
        }
        let name = path.file_name().with_context(|| format!("{} names no file", path.display()))?;
        let dir = Dir::open(path.parent().unwrap_or(Path::new(""))).map_err(cannot)?;
        // To be known now whether it can be made. An empty file would be read as a report of nothing.
        dir.replace(name, b"").map_err(cannot)?;
        dir.remove(name)?;
        Ok(Self::New(dir, name.to_owned()))
    }

    /// Let it hold `text`.
    pub fn write(self, text: &str) -> Result<()> {
        match self {
            Self::Stdout => print(text).map(drop),
            Self::There(mut file, path) => {
                let is_file = file.metadata().is_ok_and(|found| found.is_file());
                let cut = if is_file { file.set_len(0) } else { Ok(()) };
                cut.and_then(|()| file.write_all(text.as_bytes()))
                    .with_context(|| format!("cannot write {}", path.display()))
            }
            Self::New(dir, name) => dir
                .replace(&name, text.as_bytes())
                .with_context(|| format!("cannot write {}", dir.path().join(&name).display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_cannot_be_written_is_known_before_and_what_is_there_stays_until_then() {
        let dir = tempfile::tempdir().unwrap();
        let (there, new) = (dir.path().join("there.xml"), dir.path().join("new.xml"));
        std::fs::write(&there, "something old").unwrap();
        let sinks = [&there, &new].map(|path| Sink::open(path).unwrap());
        assert!(std::fs::read_to_string(&there).unwrap() == "something old" && !new.exists());
        for sink in sinks {
            sink.write("report").unwrap();
        }
        assert_eq!([&there, &new].map(|path| std::fs::read_to_string(path).unwrap()), ["report"; 2]);
        let error = Sink::open(&dir.path().join("no/such.xml")).unwrap_err();
        assert!(error.is::<Usage>() && error.to_string().contains("no/such.xml"), "{error:#}");
    }

    #[test]
    fn a_link_that_a_guest_makes_meanwhile_leads_no_report_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("profile"), "mine").unwrap();
        std::fs::write(dir.path().join("there.xml"), "").unwrap();
        let paths = ["there.xml", "new.xml"].map(|name| dir.path().join(name));
        let sinks = [Sink::open(&paths[0]).unwrap(), Sink::open(&paths[1]).unwrap()];
        std::fs::remove_file(&paths[0]).unwrap();
        paths.iter().for_each(|path| std::os::unix::fs::symlink("profile", path).unwrap());
        for sink in sinks {
            sink.write("theirs").unwrap();
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("profile")).unwrap(), "mine");
        assert_eq!(std::fs::read_to_string(&paths[1]).unwrap(), "theirs");
    }
}
