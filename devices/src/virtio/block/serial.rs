//! A disk's serial number: how a guest tells its disks apart (`/dev/disk/by-id/virtio-…`).

use std::str::FromStr;

use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;

const LEN: usize = VIRTIO_BLK_ID_BYTES as usize;

/// Up to 20 printable ASCII characters, padded with zeroes (virtio 1.2, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serial([u8; LEN]);

/// A serial number cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the serial number {0:?} cannot be used: take 1 to {LEN} letters, digits, or other printable ASCII without spaces"
)]
pub struct SerialError(String);

impl FromStr for Serial {
    type Err = SerialError;

    fn from_str(text: &str) -> Result<Self, SerialError> {
        let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.is_empty() || text.len() > LEN || !printable {
            return Err(SerialError(text.to_owned()));
        }
        Ok(Self::of_device(text))
    }
}

impl Serial {
    /// The serial number of a disk that was given none: the device's name, as far as it fits.
    pub(super) fn of_device(id: &str) -> Self {
        let mut bytes = [0; LEN];
        bytes.iter_mut().zip(id.bytes()).for_each(|(byte, from)| *byte = from);
        Self(bytes)
    }

    /// As the guest reads it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_ones_are_padded_and_unfit_ones_refused() {
        assert_eq!(Serial::from_str("root-1").unwrap().bytes(), b"root-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(Serial::from_str("12345678901234567890").unwrap().bytes(), b"12345678901234567890");
        for unfit in ["", "123456789012345678901", "a b", "ü"] {
            assert!(Serial::from_str(unfit).unwrap_err().to_string().contains("1 to 20"));
        }
    }
}
