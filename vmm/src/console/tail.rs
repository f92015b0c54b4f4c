//! The last lines that a guest printed, for the report of its end.

use super::ring::Ring;

/// How much is kept.
const KEPT: usize = 8192;
/// How many lines are reported. Linux gives the reason for a panic first, and some forty lines of stack and
/// registers after it.
const LINES: usize = 64;

/// The end of a guest's output, bounded.
#[derive(Debug)]
pub(crate) struct Tail(Ring);

impl Default for Tail {
    fn default() -> Self {
        Self(Ring::new(KEPT))
    }
}

impl Tail {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.push(bytes);
    }

    /// The last lines, oldest first. Control characters are taken out: a guest must not drive the terminal of
    /// whoever reads the report.
    pub(crate) fn lines(&self) -> Vec<String> {
        let bytes = self.0.bytes();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>().trim_end().to_owned())
            .filter(|line: &String| !line.is_empty())
            .collect();
        lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_no_more() {
        let mut tail = Tail::default();
        for n in 0..10_000 {
            tail.push(format!("line {n}\r\n").as_bytes());
        }
        let lines = tail.lines();
        assert_eq!(lines.len(), LINES);
        assert_eq!(lines.first().map(String::as_str), Some("line 9936"));
        assert_eq!(lines.last().map(String::as_str), Some("line 9999"));
        tail.push(&[b'x'; 3 * KEPT]);
        assert_eq!(tail.0.bytes().len(), KEPT);
    }

    #[test]
    fn escape_sequences_cannot_reach_the_terminal() {
        let mut tail = Tail::default();
        tail.push(b"\x1b]0;title\x07a\x1b[2Jb\xff\n\n  \n");
        assert_eq!(tail.lines(), ["]0;titlea[2Jb\u{fffd}"]);
    }
}
