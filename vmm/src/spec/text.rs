//! A spec's values as text: what stands after a flag, and in a file.

use std::fmt;
use std::str::FromStr;

use super::{DISK_KEYS, DiskIo, DiskSpec, Memory, MemorySpec, Stream, Transport};

/// A value that was given could not be understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// Not an amount of memory.
    #[error("'{0}' is not an amount of memory: write a number with K, M or G, such as 512M")]
    Memory(String),
    /// Not a stream.
    #[error("'{0}' is not one of stdio, file=PATH and null")]
    Stream(String),
    /// Not a transport.
    #[error("'{0}' is not a transport: write pci or mmio")]
    Transport(String),
    /// Not a MAC address that a device can have.
    #[error(
        "'{0}' is not a device's MAC address: write six bytes such as 52:54:00:12:34:56, the first of them even"
    )]
    Mac(String),
    /// Not a port forwarding.
    #[error(
        "'{0}' forwards no port: write HOST:GUEST or ADDRESS:HOST:GUEST, with /udp after it for UDP, as in 127.0.0.1:8080:80"
    )]
    Port(String),
    /// A disk without a path.
    #[error("'{0}' names no file: write path=FILE, as in path=disk.img,readonly=on")]
    DiskPath(String),
    /// A disk's option that does not exist.
    #[error("a disk has no option '{0}': there are {keys}", keys = DISK_KEYS.join(", "))]
    DiskKey(String),
    /// A disk's option that was given twice.
    #[error("the disk's {0} is given twice: keep one")]
    DiskTwice(String),
    /// A disk's option with a value that it cannot have.
    #[error("the disk's {key} cannot be '{value}': write {wanted}")]
    DiskValue {
        /// The option.
        key: &'static str,
        /// What was given.
        value: String,
        /// What can be given.
        wanted: &'static str,
    },
}

impl FromStr for Memory {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::Memory(text.to_owned());
        let lower = text.trim().to_ascii_lowercase();
        let lower = lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
        let unit = |name: char, shift: u32| lower.strip_suffix(name).map(|digits| (digits, shift));
        let (digits, shift) = unit('k', 10)
            .or_else(|| unit('m', 20))
            .or_else(|| unit('g', 30))
            .or_else(|| unit('t', 40))
            .unwrap_or((lower, 0));
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        let number: u64 = digits.parse().map_err(|_| bad())?;
        number.checked_mul(1_u64 << shift).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for Memory {
    /// The largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
            if self.0 != 0 && self.0.is_multiple_of(1_u64 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl From<Memory> for String {
    fn from(memory: Memory) -> Self {
        memory.to_string()
    }
}

impl TryFrom<String> for Memory {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl FromStr for MemorySpec {
    type Err = ParseError;

    /// `SIZE[,hugepages=on|off][,overcommit=on|off]`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        Ok(Self { size: text.parse()?, hugepages: false, overcommit: false })
    }
}

impl fmt::Display for MemorySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.size)?;
        for (name, on) in [("hugepages", self.hugepages), ("overcommit", self.overcommit)] {
            if on {
                write!(f, ",{name}=on")?;
            }
        }
        Ok(())
    }
}

impl From<MemorySpec> for String {
    fn from(memory: MemorySpec) -> Self {
        memory.to_string()
    }
}

impl TryFrom<String> for MemorySpec {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl FromStr for Stream {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.split_once('=') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "null" => Ok(Self::Null),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(ParseError::Stream(text.to_owned())),
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::File(path) => write!(f, "file={}", path.display()),
            Self::Null => f.write_str("null"),
        }
    }
}

impl From<Stream> for String {
    fn from(stream: Stream) -> Self {
        stream.to_string()
    }
}

impl TryFrom<String> for Stream {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl FromStr for Transport {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "pci" => Ok(Self::Pci),
            "mmio" => Ok(Self::Mmio),
            _ => Err(ParseError::Transport(text.to_owned())),
        }
    }
}

impl FromStr for DiskSpec {
    type Err = ParseError;

    /// `path=FILE[,KEY=VALUE]…`. `readonly` and `direct` may stand without a value. A comma in a value is doubled.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut disk = Self::new("");
        let mut seen: Vec<&str> = Vec::new();
        let options = split_options(text);
        for option in &options {
            let (key, value) = match option.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (option.as_str(), None),
            };
            if seen.contains(&key) {
                return Err(ParseError::DiskTwice(key.to_owned()));
            }
            seen.push(key);
            match (key, value) {
                ("path", Some(path)) => disk.path = path.into(),
                ("readonly", value) => disk.readonly = switch("readonly", value)?,
                ("direct", value) => disk.direct = switch("direct", value)?,
                ("serial", Some(serial)) => disk.serial = Some(serial.to_owned()),
                ("queues", Some(queues)) => disk.queues = Some(parse_queues(queues)?),
                ("io", Some(io)) => disk.io = parse_io(io)?,
                // A bare word that is no key is most likely the file itself.
                (_, None) => return Err(ParseError::DiskPath(text.to_owned())),
                (key, Some(_)) => return Err(ParseError::DiskKey(key.to_owned())),
            }
        }
        if disk.path.as_os_str().is_empty() {
            return Err(ParseError::DiskPath(text.to_owned()));
        }
        Ok(disk)
    }
}

/// Split at single commas; a doubled one stands for itself.
fn split_options(text: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            options.push(String::new());
        } else if let Some(last) = options.last_mut() {
            last.push(c);
        }
    }
    options
}

fn switch(key: &'static str, value: Option<&str>) -> Result<bool, ParseError> {
    match value {
        None | Some("on" | "true") => Ok(true),
        Some("off" | "false") => Ok(false),
        Some(other) => Err(ParseError::DiskValue { key, value: other.to_owned(), wanted: "on or off" }),
    }
}

fn parse_queues(text: &str) -> Result<u16, ParseError> {
    text.parse().map_err(|_| ParseError::DiskValue {
        key: "queues",
        value: text.to_owned(),
        wanted: "a number from 1 to 16",
    })
}

fn parse_io(text: &str) -> Result<DiskIo, ParseError> {
    match text {
        "auto" => Ok(DiskIo::Auto),
        "uring" => Ok(DiskIo::Uring),
        "plain" => Ok(DiskIo::Plain),
        _ => Err(ParseError::DiskValue { key: "io", value: text.to_owned(), wanted: "auto, uring or plain" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_with_units_and_written_with_the_largest_that_fits() {
        for (text, bytes, shown) in [
            ("512M", 512 << 20, "512M"),
            ("512MiB", 512 << 20, "512M"),
            ("4g", 4 << 30, "4G"),
            ("1048576", 1 << 20, "1M"),
            ("1536m", 1536 << 20, "1536M"),
            ("100", 100, "100"),
        ] {
            let memory: Memory = text.parse().unwrap();
            assert_eq!(memory, Memory(bytes), "{text}");
            assert_eq!(memory.to_string(), shown);
        }
        for text in ["", "M", "-1M", "1.5G", "12X", "99999999999G", "1MM"] {
            assert!(text.parse::<Memory>().is_err(), "{text}");
        }
    }

    #[test]
    fn streams_are_read_as_they_are_written() {
        for text in ["stdio", "null", "file=/tmp/a=b"] {
            assert_eq!(text.parse::<Stream>().unwrap().to_string(), text);
        }
        for text in ["", "file=", "tty", "null=x", "stdio "] {
            assert!(text.parse::<Stream>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_disk_is_read_with_all_its_options() {
        let disk: DiskSpec =
            "path=/d=1,,2.img,readonly=on,direct,serial=S1,queues=2,io=plain".parse().unwrap();
        let wanted = DiskSpec {
            readonly: true,
            direct: true,
            serial: Some("S1".to_owned()),
            queues: Some(2),
            io: DiskIo::Plain,
            ..DiskSpec::new("/d=1,2.img")
        };
        assert_eq!(disk, wanted);
        assert_eq!("path=a".parse::<DiskSpec>().unwrap(), DiskSpec::new("a"));
        assert_eq!("readonly=off,path=a".parse::<DiskSpec>().unwrap(), DiskSpec::new("a"));
    }

    #[test]
    fn a_wrong_disk_is_told_what_to_write() {
        for (text, message) in [
            ("", "'' names no file: write path=FILE, as in path=disk.img,readonly=on"),
            ("disk.img", "'disk.img' names no file: write path=FILE, as in path=disk.img,readonly=on"),
            ("path=", "'path=' names no file: write path=FILE, as in path=disk.img,readonly=on"),
            (
                "path=a,ro=on",
                "a disk has no option 'ro': there are path, readonly, direct, serial, queues, io",
            ),
            ("path=a,path=b", "the disk's path is given twice: keep one"),
            ("path=a,readonly=yes", "the disk's readonly cannot be 'yes': write on or off"),
            ("path=a,queues=many", "the disk's queues cannot be 'many': write a number from 1 to 16"),
            ("path=a,io=aio", "the disk's io cannot be 'aio': write auto, uring or plain"),
        ] {
            assert_eq!(text.parse::<DiskSpec>().unwrap_err().to_string(), message);
        }
    }
}
