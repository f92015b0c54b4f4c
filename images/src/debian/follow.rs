//! [`Follower`]: what mmdebstrap, and apt and dpkg below it, say of how far they are, and why they have failed.

use std::collections::VecDeque;

use crate::progress::Progress;

/// How many of its last lines are kept for an error.
const LINES: usize = 8;

/// How mmdebstrap's steps begin, and what they are called.
const STEPS: &[(&str, &str)] = &[
    ("running apt-get update", "fetching lists of packages"),
    ("downloading packages", "fetching packages"),
    ("extracting archives", "unpacking the essential packages"),
    ("installing essential", "installing the essential packages"),
    ("installing remaining", "fetching the other packages"),
    ("cleaning package lists", "cleaning up"),
    ("creating tarball", "packing"),
];
/// The step that begins when all of this one is there.
const AFTER_FETCHING: (&str, &str) = ("fetching the other packages", "installing packages and the kernel");

/// Reads line after line.
#[derive(Debug, Default)]
pub struct Follower {
    /// The last that are errors, and the last of all that are not of a step's usual course.
    errors: VecDeque<String>,
    others: VecDeque<String>,
    step: &'static str,
    /// Bytes that the step has fetched, and those that it must.
    fetched: u64,
    to_fetch: Option<u64>,
    /// Packages that were unpacked or set up, and how many times something is to be done: each package is first the one and then the other, and what
    /// several have asked for, such as an initial RAM disk, comes last.
    handled: u64,
    to_handle: u64,
}

impl Follower {
    /// The next line.
    pub fn line(&mut self, line: &str, progress: &mut dyn Progress) {
        let line: String = line.trim().chars().filter(|letter| !letter.is_control()).collect();
        if let Some(step) = line.strip_prefix("I: ") {
            if let Some((_, shown)) = STEPS.iter().find(|(start, _)| step.starts_with(start)) {
                self.begin(shown, progress);
            }
        } else if line.starts_with("Get:") {
            self.fetched = self.fetched.saturating_add(bracketed(&line).unwrap_or(0));
            if let Some(total) = self.to_fetch {
                progress.advance(self.fetched.min(total), Some(total));
            }
        } else if let Some(rest) = line.strip_prefix("Need to get ") {
            // Of `1 MB/3 MB` the second is all of it, the first what is not there already.
            let amount = rest.split_once(" of archives").map_or("", |(amount, _)| amount);
            self.to_fetch = bytes(amount.split('/').next().unwrap_or_default());
        } else if let Some(count) = newly_installed(&line) {
            self.to_handle = count.saturating_mul(2).saturating_add(1);
        } else if line.starts_with("Unpacking ") || line.starts_with("Setting up ") {
            if self.step == AFTER_FETCHING.0 {
                self.begin(AFTER_FETCHING.1, progress);
            }
            self.handled = self.handled.saturating_add(1);
            if self.to_handle > 0 {
                progress.share(self.handled.min(self.to_handle), self.to_handle);
            }
        } else if !line.is_empty() {
            let list = if line.starts_with("E: ") { &mut self.errors } else { &mut self.others };
            list.push_back(line);
            if list.len() > LINES {
                list.pop_front();
            }
        }
    }

    fn begin(&mut self, step: &'static str, progress: &mut dyn Progress) {
        (self.step, self.fetched, self.to_fetch, self.handled) = (step, 0, None, 0);
        progress.step(step);
    }

    /// Its errors, each once, without that a program is no longer run because another has failed; the last lines if there are none.
    pub fn reasons(&self) -> String {
        let mut reasons: Vec<&str> = Vec::new();
        for error in self.errors.iter().filter_map(|line| line.strip_prefix("E: ")) {
            let follows = error.ends_with("failed to run") || error.ends_with("-oDpkg::Use-Pty=false failed");
            if !follows && !reasons.contains(&error) {
                reasons.push(error);
            }
        }
        if reasons.is_empty() {
            reasons.extend(self.others.iter().map(String::as_str));
        }
        reasons.join("; ")
    }

    /// All that is kept.
    pub fn all(&self) -> String {
        self.errors.iter().chain(&self.others).map(String::as_str).collect::<Vec<_>>().join("; ")
    }
}

/// `8790 kB`, as apt writes it: with powers of 1000.
fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = text.trim().split_once(' ')?;
    let factor = match unit {
        "B" => 1,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    let (whole, tenths) = number.split_once('.').unwrap_or((number, "0"));
    let tenths: u64 = tenths.parse().ok().filter(|tenths| *tenths < 10)?;
    let tenths = whole.replace(',', "").parse::<u64>().ok()?.checked_mul(10)?.checked_add(tenths)?;
    Some(tenths.checked_mul(factor)? / 10)
}

/// What stands in brackets at the end of `Get:7 http://… Packages [8790 kB]`.
fn bracketed(line: &str) -> Option<u64> {
    bytes(line.strip_suffix(']')?.rsplit_once('[')?.1)
}

/// Of `0 upgraded, 69 newly installed, 0 to remove and 0 not upgraded.`
fn newly_installed(line: &str) -> Option<u64> {
    let (before, _) = line.split_once(" newly installed, ")?;
    before.rsplit_once(' ')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Seen(Vec<String>);

    impl Progress for Seen {
        fn step(&mut self, what: &str) {
            self.0.push(what.to_owned());
        }
        fn advance(&mut self, done: u64, total: Option<u64>) {
            self.0.push(format!("{done} of {} bytes", total.unwrap()));
        }
        fn share(&mut self, done: u64, total: u64) {
            self.0.push(format!("{done} of {total}"));
        }
    }

    fn follow(lines: &str) -> (Follower, Vec<String>) {
        let (mut follower, mut seen) = (Follower::default(), Seen::default());
        lines.lines().for_each(|line| follower.line(line, &mut seen));
        (follower, seen.0)
    }

    #[test]
    fn what_is_fetched_and_what_is_installed_is_counted_by_what_apt_has_announced() {
        let (_, seen) = follow(
            "I: running apt-get update...\nGet:1 http://m/debian bookworm InRelease [151 kB]\nI: something else\n\
             I: installing remaining packages inside the chroot...\n\
             0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.\nNeed to get 29.7 MB/30 MB of archives.\n\
             Get:1 http://m/debian bookworm/main amd64 x amd64 1-2 [9700 kB]\nGet:2 http://m/y [90 MB]\n\
             Unpacking x (1-2) ...\nUnpacking y (3) ...\nSetting up x (1-2) ...\n",
        );
        let wanted = [
            "fetching lists of packages",
            "fetching the other packages",
            "9700000 of 29700000 bytes",
            "29700000 of 29700000 bytes",
            "installing packages and the kernel",
            "1 of 5",
            "2 of 5",
            "3 of 5",
        ];
        assert_eq!(seen, wanted);
    }

    #[test]
    fn of_what_it_says_at_its_end_the_reasons_are_told() {
        let (follower, _) = follow(
            "Need to get 25.4 MB of archives.\nE: You don't have enough free space in /tmp/x/.\n\
             E: You don't have enough free space in /tmp/x/.\nE: apt-get --yes -oAPT::Status-Fd=<$fd> -oDpkg::Use-Pty=false failed\n\
             E: mmdebstrap failed to run\nnoise\n",
        );
        assert_eq!(follower.reasons(), "You don't have enough free space in /tmp/x/.");
        let (follower, _) = follow("one\n\x1b[31mtwo\n\n");
        assert_eq!(follower.reasons(), "one; [31mtwo");
        let (follower, _) = follow(&"E: no\nW: more\n".repeat(50));
        assert_eq!((follower.errors.len(), follower.others.len()), (LINES, LINES));
    }

    #[test]
    fn amounts_are_read_as_apt_writes_them() {
        for (text, amount) in [
            ("151 kB", Some(151_000)),
            ("0 B", Some(0)),
            ("37.6 kB", Some(37_600)),
            ("1 TB", None),
            ("", None),
        ] {
            assert_eq!(bytes(text), amount, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read(line in "(Get:|Need to get |I: )?.{0,40}( newly installed, )?.{0,9}\\]?") {
            let _ = follow(&line);
        }
    }
}
