//! Lines of bounded length.

use std::io::{self, BufRead, Read};

/// Why there is no line.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    /// It does not end where it should.
    #[error("a line is longer than {0} bytes")]
    TooLong(usize),
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Read a line of at most `most` bytes, its end included. `None` at the end; the last one may lack its end.
pub(super) fn read_line(reader: &mut impl BufRead, most: usize) -> Result<Option<Vec<u8>>, LineError> {
    let mut line = Vec::new();
    reader.by_ref().take(most as u64).read_until(b'\n', &mut line)?;
    if line.len() >= most && !line.ends_with(b"\n") {
        return Err(LineError::TooLong(most));
    }
    Ok(Some(line).filter(|line| !line.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_where_they_should() {
        let mut text: &[u8] = b"one\n\n1234567\nend";
        let mut next = || read_line(&mut text, 8).unwrap();
        assert_eq!(next().as_deref(), Some(&b"one\n"[..]));
        assert_eq!(next().as_deref(), Some(&b"\n"[..]));
        assert_eq!(next().as_deref(), Some(&b"1234567\n"[..]));
        assert_eq!(next().as_deref(), Some(&b"end"[..]));
        assert_eq!(next(), None);
        assert!(matches!(read_line(&mut &b"12345678\n"[..], 8), Err(LineError::TooLong(8))));
    }
}
