//! Which host to fetch Debian packages from: the one that this machine's apt is set up with.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The archive's address and that of its security updates, without a slash at the end.
#[derive(Debug, PartialEq, Eq)]
pub struct Mirror {
    pub archive: String,
    pub security: String,
}

impl Mirror {
    /// Reads apt's sources below `etc` (`/etc/apt`). Security updates that are not named are looked for beside the archive.
    ///
    /// # Errors
    /// If no archive of Debian is among them.
    pub fn of_machine(etc: &Path) -> Result<Mirror> {
        let mut files = vec![etc.join("sources.list")];
        let parts = fs::read_dir(etc.join("sources.list.d")).into_iter().flatten().flatten();
        let mut parts: Vec<PathBuf> = parts.map(|entry| entry.path()).collect();
        parts.sort();
        files.extend(parts);
        let texts: Vec<String> = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
        let found = Mirror::of_sources(texts.iter().map(String::as_str));
        found.with_context(|| {
            format!(
                "apt knows no archive of Debian: add one whose address ends in /debian below {}",
                etc.display()
            )
        })
    }

    fn of_sources<'a>(texts: impl Iterator<Item = &'a str>) -> Option<Mirror> {
        let uris: Vec<&str> =
            texts.flat_map(str::lines).flat_map(uris_of_line).map(|uri| uri.trim_end_matches('/')).collect();
        let ending = |end: &str| uris.iter().find(|uri| uri.ends_with(end)).map(|uri| (*uri).to_string());
        let archive = ending("/debian")?;
        let security = ending("/debian-security").unwrap_or_else(|| format!("{archive}-security"));
        Some(Mirror { archive, security })
    }
}

/// The http addresses in a line of either format: `deb [options] URI suite…` and `URIs: URI…`.
fn uris_of_line(line: &str) -> Vec<&str> {
    let mut words = line.split_whitespace();
    if !matches!(words.next(), Some("deb" | "URIs:")) {
        return Vec::new();
    }
    words.filter(|word| word.starts_with("http://") || word.starts_with("https://")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_are_read_and_other_archives_passed_over() {
        let list = "deb [signed-by=/k.gpg] https://other.example/apt stable main\n# deb http://no.example/debian x main\n\
                    deb http://one.example/debian/ bookworm main\n";
        let sources = "Types: deb\nURIs: http://one.example/debian-security\nSuites: bookworm-security\n";
        let mirror = Mirror::of_sources([list, sources].into_iter()).unwrap();
        assert_eq!(mirror.archive, "http://one.example/debian");
        assert_eq!(mirror.security, "http://one.example/debian-security");
    }

    #[test]
    fn security_updates_are_beside_an_archive_that_stands_alone() {
        let mirror =
            Mirror::of_sources(["deb http://one.example/debian/ bookworm main"].into_iter()).unwrap();
        assert_eq!(mirror.security, "http://one.example/debian-security");
    }

    #[test]
    fn a_machine_of_another_distribution_has_none() {
        assert_eq!(Mirror::of_sources(["deb http://archive.example/ubuntu noble main"].into_iter()), None);
    }
}
