//! A VM's memory.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ParseError;
use super::options::{self, Given, Names, Part, Value};
use super::text::text;

/// The least memory that a VM can have, in bytes.
pub const MIN_MEMORY: u64 = arch::layout::MIN_MEMORY;
/// Memory is given in multiples of this, in bytes.
pub const MEMORY_STEP: u64 = 1 << 20;
/// The size of a huge page, in bytes.
pub const HUGE_PAGE: u64 = 2 << 20;
/// The fields of a [`MemorySpec`], by the names that text and files give them.
pub const MEMORY_KEYS: &[&str] = &["size", "hugepages", "overcommit"];

/// A VM's memory, written `2G` or `2G,hugepages=on,overcommit=on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySpec {
    /// At least [`MIN_MEMORY`] and a multiple of [`MEMORY_STEP`].
    pub size: Memory,
    /// Of the host's reserved huge pages of 2 MiB (hugetlbfs), all taken at the start.
    pub hugepages: bool,
    /// It may be more than the host has.
    pub overcommit: bool,
}

/// An amount of memory in bytes, written `512M`, `4G` or as a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory(pub u64);

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

text!(Memory, "512M");

impl Part for MemorySpec {
    const NAMES: &'static Names = &Names {
        whose: "the memory's",
        one: "the memory",
        keys: MEMORY_KEYS,
        bare: Some("size"),
        lacks: "says not how much memory: write a size such as 2G",
        example: "2G,hugepages=on",
    };
    type Draft = (Option<Memory>, bool, bool);

    fn set((size, hugepages, overcommit): &mut Self::Draft, given: Given) -> Result<(), ParseError> {
        match given.key {
            "hugepages" => *hugepages = given.switch()?,
            "overcommit" => *overcommit = given.switch()?,
            _ => *size = Some(given.text("an amount such as 2G")?.parse()?),
        }
        Ok(())
    }

    fn finish((size, hugepages, overcommit): Self::Draft, subject: &str) -> Result<Self, ParseError> {
        let size = size.ok_or_else(|| Self::NAMES.lacking(subject))?;
        Ok(Self { size, hugepages, overcommit })
    }

    fn pairs(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("size", Value::text(self.size)),
            ("hugepages", Value::Switch(self.hugepages)),
            ("overcommit", Value::Switch(self.overcommit)),
        ]
    }
}

impl FromStr for MemorySpec {
    type Err = ParseError;

    /// `SIZE[,hugepages=on|off][,overcommit=on|off]`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        options::parse(text)
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

impl Serialize for MemorySpec {
    /// As text: it is short.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemorySpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        options::deserialize(deserializer)
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
}
