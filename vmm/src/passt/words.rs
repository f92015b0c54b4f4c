//! What passt says, and which of it is worth repeating.

/// How much of it is kept, in bytes.
const KEPT: usize = 4096;
/// How many lines make an error.
const LINES: usize = 4;
/// Lines that begin so explain nothing: the first comes with each line where there is no system logger.
const NOISE: [&str; 3] = ["Failed to send ", "Don't run as root.", "Started as root"];

/// The last of what a process said, bounded.
#[derive(Debug, Default)]
pub(super) struct Words(Vec<u8>);

impl Words {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let excess = self.0.len().saturating_sub(KEPT);
        self.0.drain(..excess);
    }

    /// The lines that matter, on one line, without control characters.
    pub(super) fn summary(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let mut lines: Vec<String> = text
            .lines()
            // After a wrong option comes all of the help.
            .take_while(|line| !line.starts_with("Usage: "))
            .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned())
            .filter(|line| !line.is_empty() && !NOISE.iter().any(|noise| line.starts_with(noise)))
            .collect();
        lines.drain(..lines.len().saturating_sub(LINES));
        lines.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(text: &str) -> String {
        let mut words = Words::default();
        words.push(text.as_bytes());
        words.summary()
    }

    #[test]
    fn the_reason_is_found_among_the_noise() {
        let text = "Failed to send 47 bytes to syslog\nDon't run as root. Changing to nobody...\n\
                    Failed to send 66 bytes to syslog\nFailed to bind any port for '-t 127.0.0.1/8099:80', exiting\n";
        assert_eq!(summary(text), "Failed to bind any port for '-t 127.0.0.1/8099:80', exiting");
        let text =
            "passt: unrecognized option '--fd'\nUsage: passt [OPTION]...\n\n  -d, --debug\tBe verbose\n";
        assert_eq!(summary(text), "passt: unrecognized option '--fd'");
        assert_eq!(summary(""), "");
    }

    #[test]
    fn a_flood_is_cut_and_cannot_reach_the_terminal() {
        let mut words = Words::default();
        for n in 0..10_000 {
            words.push(format!("\x1b[2Jline {n}\n").as_bytes());
        }
        assert_eq!(words.0.len(), KEPT);
        assert_eq!(words.summary(), "[2Jline 9996; [2Jline 9997; [2Jline 9998; [2Jline 9999");
    }
}
