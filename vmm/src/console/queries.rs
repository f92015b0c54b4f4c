//! What a guest once asked of its terminal, taken out of what is shown again later.
//!
//! A shell asks for the cursor's place (`ESC [ 6 n`), an editor what terminal it has (`ESC [ c`). Replayed, the question would be
//! answered by another terminal, and the answer typed into whatever reads its keys then.

const ESCAPE: u8 = 0x1b;

/// `text` without device status and device attributes requests: control sequences (ECMA-48, 5.4) that end in `n` or `c`.
#[must_use]
pub fn without_queries(text: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        match query(rest) {
            Some(len) => rest = rest.get(len..).unwrap_or_default(),
            None => {
                kept.push(first);
                rest = after;
            }
        }
    }
    kept
}

/// The length of the request that `text` begins with.
fn query(text: &[u8]) -> Option<usize> {
    let body = text.strip_prefix(&[ESCAPE, b'['])?;
    // Parameter bytes and intermediate bytes, then the one that says what it is.
    let len = body.iter().position(|byte| !(0x20..=0x3f).contains(byte))?;
    matches!(body.get(len), Some(b'n' | b'c')).then_some(len.checked_add(3)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_go_and_everything_else_stays() {
        for (text, kept) in [
            (&b"guest:/# \x1b[6nls\n"[..], &b"guest:/# ls\n"[..]),
            (b"\x1b[c\x1b[>0c\x1b[?6n\x1b[5n", b""),
            (b"\x1b[1;31mred\x1b[0m\x1b[2K\x1b[10;20H", b"\x1b[1;31mred\x1b[0m\x1b[2K\x1b[10;20H"),
            // Not finished, and no sequence at all.
            (b"\x1b[6", b"\x1b[6"),
            (b"\x1b", b"\x1b"),
            (b"[6n", b"[6n"),
            (b"", b""),
        ] {
            assert_eq!(without_queries(text), kept, "{:?}", String::from_utf8_lossy(text));
        }
    }
}
