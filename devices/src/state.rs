//! What saved state is made of, and what is wrong with it.
//!
//! State says what the guest can see of a device at an instant, and never what the host has it on. It is written as JSON by serde:
//! a field that is added later has a default. Whoever reads it does not trust it: each device checks what it is given and either
//! takes all of it or says which field is wrong ([`RestoreError`]).

use std::fmt;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};

/// A device cannot be put where its saved state says.
#[derive(Debug, thiserror::Error)]
#[error("the saved state of {device} cannot be restored: {field}: {reason}")]
pub struct RestoreError {
    /// The device's name, such as `disk0`.
    pub device: String,
    /// Which part of its state, such as `queues[1].size`.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl RestoreError {
    /// `field` of the state of `device` cannot be used, and why.
    pub fn new(device: &str, field: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self { device: device.to_owned(), field: field.into(), reason: reason.to_string() }
    }
}

/// Bytes that nothing here looks into, as a string of hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Hex(pub Vec<u8>);

impl From<Vec<u8>> for Hex {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: Option<Vec<u8>> =
            text.bytes().map(|digit| char::from(digit).to_digit(16).map(|value| value as u8)).collect();
        let digits = digits.filter(|digits| digits.len().is_multiple_of(2));
        let digits = digits.ok_or_else(|| D::Error::custom("not an even number of hexadecimal digits"))?;
        let (pairs, _) = digits.as_chunks::<2>();
        Ok(Self(pairs.iter().map(|[high, low]| high << 4 | low).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_digits_and_back() {
        let bytes = Hex(vec![0, 0x1f, 0xff]);
        let text = serde_json::to_string(&bytes).unwrap();
        assert_eq!(text, r#""001fff""#);
        assert_eq!(serde_json::from_str::<Hex>(&text).unwrap(), bytes);
        assert_eq!(serde_json::from_str::<Hex>(r#""""#).unwrap(), Hex::default());
        for wrong in [r#""1""#, r#""1g""#, r#""é""#, "1", "[]"] {
            assert!(serde_json::from_str::<Hex>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_error_names_the_device_and_the_field() {
        let error = RestoreError::new("disk0", "queues[1].size", "3 is no power of two");
        assert_eq!(
            error.to_string(),
            "the saved state of disk0 cannot be restored: queues[1].size: 3 is no power of two"
        );
    }
}
