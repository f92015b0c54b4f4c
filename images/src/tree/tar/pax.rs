//! [`Pax`]: an extended header, which says what has no place in a header.

/// The most attributes that one may have. Linux lists 64 KiB of a file's names, and the shortest is `user.x` with a zero.
const MOST_ATTRIBUTES: usize = (64 << 10) / 7;
/// One that is none.
const NONE: &str = "an extended header that is none";
/// One with more attributes.
const TOO_MANY: &str = "an extended header with more than 9362 attributes, which no file of Linux has";

/// What one says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Sparse,
}

/// What it says of holes, as GNU tar does: `GNU.sparse.…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sparse {
    /// 1: the map is in front of the data.
    pub major: Option<u64>,
    pub name: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub parts: Vec<(u64, u64)>,
    /// The offset of a part whose length is still to come.
    offset: Option<u64>,
}

impl Pax {
    /// Records of `LENGTH KEY=VALUE\n`, where the length is that of the whole record. An error says what these are instead.
    pub fn parse(mut bytes: &[u8]) -> Result<Self, &'static str> {
        let mut pax = Self::default();
        // Some programs fill it up with zeroes.
        while bytes.first().is_some_and(|byte| *byte != 0) {
            let (key, value, rest) = record(bytes).ok_or(NONE)?;
            pax.set(key, value).ok_or(NONE)?;
            if pax.xattrs.len() > MOST_ATTRIBUTES {
                return Err(TOO_MANY);
            }
            bytes = rest;
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let text = || Some(value.to_vec()).filter(|value| !value.is_empty());
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            if name.is_empty() {
                return None;
            }
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Some(());
        }
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.major" => self.sparse.major = Some(decimal(value)?),
            b"GNU.sparse.name" => self.sparse.name = text(),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = Some(decimal(value)?),
            b"GNU.sparse.offset" => self.sparse.offset = Some(decimal(value)?),
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.offset.take()?;
                self.sparse.parts.push((offset, decimal(value)?));
            }
            b"GNU.sparse.map" => self.sparse.parts = parts(value)?,
            _ => {}
        }
        Some(())
    }
}

/// The first record's key and value, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(bytes.get(..space)?)?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, rest))
}

/// Offsets and lengths with commas between.
fn parts(text: &[u8]) -> Option<Vec<(u64, u64)>> {
    let numbers: Option<Vec<u64>> = text.split(|byte| *byte == b',').map(decimal).collect();
    let numbers = if text.is_empty() { Vec::new() } else { numbers? };
    let pairs = numbers.chunks_exact(2);
    let whole = pairs.remainder().is_empty();
    whole.then(|| pairs.filter_map(|pair| Some((*pair.first()?, *pair.get(1)?))).collect())
}

/// Digits and nothing else.
pub fn decimal(text: &[u8]) -> Option<u64> {
    let digits = text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// Seconds, with a fraction or without, before 1970 too.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |text| (true, text));
    let dot = text.iter().position(|byte| *byte == b'.').unwrap_or(text.len());
    let seconds = i64::try_from(decimal(text.get(..dot)?)?).ok()?;
    let fraction = text.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanoseconds = digits.fold(0_u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    match (negative, nanoseconds) {
        (false, nanoseconds) => Some((seconds, nanoseconds)),
        (true, 0) => Some((-seconds, 0)),
        (true, nanoseconds) => Some((-seconds - 1, 1_000_000_000 - nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read() {
        let pax = Pax::parse(b"9 path=x\n29 mtime=1350244992.02396010\n8 uid=7\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"x"[..]));
        assert_eq!(pax.mtime, Some((1_350_244_992, 23_960_100)));
        assert_eq!(pax.uid, Some(7));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(parts(b"0,512,4096,1"), Some(vec![(0, 512), (4096, 1)]));
        assert_eq!(parts(b"0,512,4096"), None);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for bytes in [
            "12 path=x\n",
            "10 path=x",
            "x",
            "10path=x\n",
            "11 path=xx",
            "7 path\n",
            "99999999999999999999 a=b\n",
            "0 a=b\n",
            "9 uid=-1\n",
            // Costs memory, and no file has one.
            "18 SCHILY.xattr.=\n",
        ] {
            assert_eq!(Pax::parse(bytes.as_bytes()), Err(NONE), "{bytes}");
        }
    }
    #[test]
    fn more_attributes_than_a_file_can_have_are_refused() {
        let attribute = b"24 SCHILY.xattr.user.x=\n";
        let pax = Pax::parse(&attribute.repeat(MOST_ATTRIBUTES)).unwrap();
        assert_eq!(pax.xattrs.len(), MOST_ATTRIBUTES);
        assert_eq!(Pax::parse(&attribute.repeat(MOST_ATTRIBUTES + 1)), Err(TOO_MANY));
        assert!(TOO_MANY.contains(&format!(" {MOST_ATTRIBUTES} ")));
    }
}
