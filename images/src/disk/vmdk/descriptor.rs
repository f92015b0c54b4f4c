//! The text that says which files a disk is made of.

use super::super::error::Malformed;

/// What there is of it that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub kind: Kind,
}

/// Where the content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// In one sparse file: the one in which the descriptor is, if it is in one.
    Sparse { sectors: u64, name: String },
    /// In one file, as it is.
    Flat { extent: Extent, name: String },
}

/// Which part of a flat file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub sectors: u64,
    /// Where it starts in the file, in sectors.
    pub offset: u64,
}

impl Descriptor {
    /// Read a descriptor, which may have zeroes behind it.
    ///
    /// # Errors
    /// If it is none, or the disk is not in one file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = String::from_utf8_lossy(bytes);
        let mut kind = None;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(found) = extent(line)? {
                if kind.is_some() {
                    let (Kind::Sparse { name, .. } | Kind::Flat { name, .. }) = found;
                    return Err(Malformed::NeedsFile(name));
                }
                kind = Some(found);
            } else {
                check_line(line)?;
            }
        }
        let kind = kind.ok_or(Malformed::Outside { what: "the descriptor's extent", offset: 0 })?;
        Ok(Self { kind })
    }
}

/// Refuse what lies on another disk, or is encrypted.
fn check_line(line: &str) -> Result<(), Malformed> {
    let Some((key, value)) = line.split_once('=') else { return Ok(()) };
    let (key, value) = (key.trim().to_ascii_lowercase(), value.trim().trim_matches('"'));
    match key.as_str() {
        "parentcid" if !value.eq_ignore_ascii_case("ffffffff") => {
            Err(Malformed::NeedsFile("the disk that it was made from".to_owned()))
        }
        "parentfilenamehint" => Err(Malformed::NeedsFile(shown(value))),
        key if key.starts_with("encryption.") => Err(Malformed::Encrypted),
        _ => Ok(()),
    }
}

/// `RW 4192256 SPARSE "disk.vmdk"`, `RW 20480 FLAT "disk-flat.vmdk" 0`; `None` if the line is another one.
fn extent(line: &str) -> Result<Option<Kind>, Malformed> {
    let (access, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    if !matches!(access, "RW" | "RDONLY" | "NOACCESS") {
        return Ok(None);
    }
    let bad = || Malformed::Damaged { what: "an extent of the descriptor", offset: 0 };
    let (sectors, rest) = rest.trim_start().split_once(char::is_whitespace).ok_or_else(bad)?;
    let sectors: u64 = sectors.parse().map_err(|_| bad())?;
    let (kind, rest) = rest.trim_start().split_once(char::is_whitespace).unwrap_or((rest.trim(), ""));
    let (name, rest) = match rest.trim_start().strip_prefix('"') {
        Some(quoted) => quoted.split_once('"').ok_or_else(bad)?,
        None => ("", rest),
    };
    match (access, kind) {
        ("RW" | "RDONLY", "SPARSE") => Ok(Some(Kind::Sparse { sectors, name: shown(name) })),
        ("RW" | "RDONLY", "FLAT" | "VMFS") => {
            let offset = match rest.trim() {
                "" => 0,
                text => text.parse().map_err(|_| bad())?,
            };
            Ok(Some(Kind::Flat { extent: Extent { sectors, offset }, name: name.to_owned() }))
        }
        ("RW" | "RDONLY", "SESPARSE" | "VMFSSPARSE") => {
            Err(Malformed::Unsupported("a sparse extent of an ESX host"))
        }
        _ => Err(Malformed::Unsupported("an extent that is no file")),
    }
}

/// As it can stand in a message.
fn shown(name: &str) -> String {
    name.chars().take(100).flat_map(char::escape_default).collect()
}
