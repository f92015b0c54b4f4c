//! Small JSON files that tell when a bit of them has changed, and are replaced at once or not at all.
//!
//! The last line of such a file is a checksum over all before it, so that people can read the whole with any JSON tool.

use std::io;
use std::path::{Path, PathBuf};

use devices::storage::Storage;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest file that is read, in bytes: the manifest of a VM with very many disks is far below.
const MAX: u64 = 4 << 20;
/// How long the last lines are: `,\n  "checksum": "01234567"\n}\n`.
const TAIL: usize = 29;

/// Such a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// It is not there, or the host fails.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// It is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It is of a format that this build does not know.
    #[error("it has format {found}, written by a newer skiff; this one knows {known}: update skiff")]
    Newer {
        /// The file's.
        found: u64,
        /// This build's.
        known: u32,
    },
}

/// `value`, whose text is a JSON object with fields, with a checksum.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn seal(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)?;
    if !text.ends_with(b"\n}") {
        return Err(io::Error::other("only an object with fields can be sealed"));
    }
    text.truncate(text.len().saturating_sub(2));
    let tail = tail(&text);
    text.extend(tail.into_bytes());
    Ok(text)
}

fn tail(body: &[u8]) -> String {
    format!(",\n  \"checksum\": \"{:08x}\"\n}}\n", crc32fast::hash(body))
}

/// Read what [`seal`] wrote, of a `format` up to `known`.
///
/// # Errors
/// If it is damaged, or of a newer format.
pub fn unseal<T: DeserializeOwned>(text: &[u8], known: u32) -> Result<T, SealedError> {
    let damaged = |why: &str| SealedError::Damaged(why.to_owned());
    let at = text.len().checked_sub(TAIL).ok_or_else(|| damaged("it is too short"))?;
    let (body, end) = text.split_at(at);
    if end != tail(body).as_bytes() {
        return Err(damaged("its checksum is wrong"));
    }
    let value: serde_json::Value =
        serde_json::from_slice(text).map_err(|error| SealedError::Damaged(error.to_string()))?;
    let format = value.get("format").and_then(serde_json::Value::as_u64);
    match format.ok_or_else(|| damaged("it names no format"))? {
        found if found > u64::from(known) => Err(SealedError::Newer { found, known }),
        _ => serde_json::from_value(value).map_err(|error| SealedError::Damaged(error.to_string())),
    }
}

/// All of a small file.
///
/// # Errors
/// If it is longer than any such file, is not there, or the host fails.
pub fn read_small(storage: &dyn Storage, path: &Path) -> io::Result<Vec<u8>> {
    let file = storage.open(path, false)?;
    let len = file.len()?;
    if len > MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is far too long"));
    }
    let mut data = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_exact_at(&mut data, 0)?;
    Ok(data)
}

/// Let the file at `path` have this content: the old one or the new one whatever happens, and the new one, power cuts
/// included, from the return on.
///
/// # Errors
/// If the host fails: whichever it is by then, it is whole.
pub fn replace(storage: &dyn Storage, path: &Path, content: &[u8]) -> io::Result<()> {
    let aside = beside(path, ".new")?;
    let result = write_new(storage, &aside, content).and_then(|()| storage.rename(&aside, path));
    if result.is_err() {
        // A leftover is overwritten by the next who comes.
        let _ = storage.remove_file(&aside);
    }
    result?;
    storage.sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// The same for a file that several processes may write at once, each the same.
///
/// # Errors
/// If the host fails: whichever it is by then, it is whole.
pub fn replace_together(storage: &dyn Storage, path: &Path, content: &[u8]) -> io::Result<()> {
    let aside = beside(path, &format!(".{}.new", std::process::id()))?;
    let result = write_new(storage, &aside, content).and_then(|()| storage.rename(&aside, path));
    if result.is_err() {
        let _ = storage.remove_file(&aside);
    }
    result?;
    storage.sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Let the file at `path` have this content, soon: a power cut may leave anything there. Several processes can at once.
///
/// # Errors
/// If the host fails.
pub fn replace_soon(storage: &dyn Storage, path: &Path, content: &[u8]) -> io::Result<()> {
    let aside = beside(path, &format!(".{}.new", std::process::id()))?;
    storage.remove_file(&aside)?;
    let result = storage.create(&aside).and_then(|file| file.write_all_at(content, 0));
    let result = result.and_then(|()| storage.rename(&aside, path));
    if result.is_err() {
        let _ = storage.remove_file(&aside);
    }
    result
}

/// Write a file that may be there from an earlier try, and sync it.
///
/// # Errors
/// If the host fails.
pub fn write_new(storage: &dyn Storage, path: &Path, content: &[u8]) -> io::Result<()> {
    storage.remove_file(path)?;
    let file = storage.create(path)?;
    file.write_all_at(content, 0)?;
    file.sync()
}

fn beside(path: &Path, ending: &str) -> io::Result<PathBuf> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(ending);
    Ok(path.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Thing {
        format: u32,
        name: String,
    }

    #[test]
    fn a_flipped_bit_anywhere_and_any_cut_is_found() {
        let thing = Thing { format: 1, name: "a".to_owned() };
        let text = seal(&thing).unwrap();
        assert_eq!(unseal::<Thing>(&text, 1).unwrap(), thing);
        let _: serde_json::Value = serde_json::from_slice(&text).unwrap();
        for bit in 0..text.len() * 8 {
            let mut bad = text.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(unseal::<Thing>(&bad, 1), Err(SealedError::Damaged(_))), "bit {bit}");
        }
        for len in 0..text.len() {
            assert!(matches!(unseal::<Thing>(&text[..len], 1), Err(SealedError::Damaged(_))), "{len}");
        }
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let text = seal(&Thing { format: 2, name: "a".to_owned() }).unwrap();
        let error = unseal::<Thing>(&text, 1).unwrap_err();
        assert!(matches!(error, SealedError::Newer { found: 2, known: 1 }), "{error}");
    }
}
