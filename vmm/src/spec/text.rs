//! A spec's values as text: what stands after a flag, and in a file.

use std::fmt;
use std::str::FromStr;

use super::{Stream, Transport};

/// Give a type that is text everywhere its form in files, which is the same.
macro_rules! text {
    ($type:ty, $example:literal) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                // A visitor's errors have the line of the value, those of a conversion that of the whole.
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str(concat!("a text such as ", $example))
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}
pub(super) use text;

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
    /// A text or a table that lacks what it must have.
    #[error("{subject} {lacks}")]
    Lacks {
        /// The text in quotes, or what the table stands for.
        subject: String,
        /// What it lacks, and what to write.
        lacks: &'static str,
    },
    /// A comma with nothing before or after it.
    #[error("'{0}' has a comma too many: take it out, or double it if it belongs to a name")]
    EmptyOption(String),
    /// A key that does not exist.
    #[error("{one} has no key '{key}': {fix}")]
    Key {
        /// What has no such key.
        one: &'static str,
        /// The key.
        key: String,
        /// What was most likely meant, or what there is.
        fix: String,
    },
    /// A key that was given twice.
    #[error("{whose} {key} is given twice: keep one")]
    Twice {
        /// What it belongs to.
        whose: &'static str,
        /// The key.
        key: &'static str,
    },
    /// A key without its value.
    #[error("{whose} {key} has no value: write {wanted}")]
    NoValue {
        /// What it belongs to.
        whose: &'static str,
        /// The key.
        key: &'static str,
        /// What can be given.
        wanted: &'static str,
    },
    /// A value that the key cannot have.
    #[error("{whose} {key} cannot be '{value}': write {wanted}")]
    Value {
        /// What it belongs to.
        whose: &'static str,
        /// The key.
        key: &'static str,
        /// What was given.
        value: String,
        /// What can be given.
        wanted: &'static str,
    },
    /// Two places where one network leads.
    #[error("a network leads to one place: write one of tap=NAME, fd=N and user, or a network for each")]
    Backends,
    /// Two places of one socket.
    #[error("a vsock has one socket: write auto or path=FILE")]
    Sockets,
    /// A folder that is one and is none.
    #[error("a folder is at one place: write empty or path=DIR")]
    Folders,
    /// A burst of nothing.
    #[error("{whose} burst belongs to no rate: give bandwidth or ops with it")]
    Burst {
        /// What it belongs to.
        whose: &'static str,
    },
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

text!(Stream, "stdio, file=PATH or null");

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_read_as_they_are_written() {
        for text in ["stdio", "null", "file=/tmp/a=b"] {
            assert_eq!(text.parse::<Stream>().unwrap().to_string(), text);
        }
        for text in ["", "file=", "tty", "null=x", "stdio "] {
            assert!(text.parse::<Stream>().is_err(), "{text}");
        }
    }
}
