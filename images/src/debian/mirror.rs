//! [`Mirror`]: where Debian's packages are fetched from.

use std::fs;
use std::path::{Path, PathBuf};

/// Debian's own, by the name that images keep.
pub const PUBLIC: &str = "http://deb.debian.org";
/// The variable that names another.
pub const VARIABLE: &str = "SKIFF_DEBIAN_MIRROR";

/// The addresses of archives, without a slash at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Of `debian`.
    pub archive: String,
    /// Of `debian-security`.
    pub security: String,
}

impl Mirror {
    /// The one that was asked for, else that of [`VARIABLE`], else that of this machine's apt, else Debian's own.
    #[must_use]
    pub fn choose(asked: Option<&str>) -> Self {
        let variable = std::env::var(VARIABLE).ok().filter(|address| !address.is_empty());
        if let Some(address) = asked.map(str::to_owned).or(variable) {
            return Self::at(&address);
        }
        let sources = texts(Path::new("/etc/apt"));
        Self::of_sources(sources.iter().map(String::as_str)).unwrap_or_else(Self::public)
    }

    /// Debian's own.
    #[must_use]
    pub fn public() -> Self {
        Self { archive: format!("{PUBLIC}/debian"), security: format!("{PUBLIC}/debian-security") }
    }

    /// The archive `address`; its security updates are beside it.
    #[must_use]
    pub fn at(address: &str) -> Self {
        let archive = address.trim_end_matches('/').to_owned();
        Self { security: format!("{archive}-security"), archive }
    }

    /// The address of an archive by the name that it has in recipes.
    #[must_use]
    pub fn address(&self, archive: &str) -> String {
        match archive {
            "debian" => self.archive.clone(),
            "debian-security" => self.security.clone(),
            // Others are beside them.
            other => format!("{}/{other}", self.archive.trim_end_matches("/debian")),
        }
    }

    /// From apt's sources. Security updates that are not among them are beside the archive.
    fn of_sources<'a>(texts: impl Iterator<Item = &'a str>) -> Option<Self> {
        let addresses: Vec<&str> = texts
            .flat_map(str::lines)
            .flat_map(addresses)
            .map(|address| address.trim_end_matches('/'))
            .collect();
        let ending = |end: &str| addresses.iter().find(|address| address.ends_with(end)).copied();
        let found = Self::at(ending("/debian")?);
        Some(match ending("/debian-security") {
            Some(security) => Self { security: security.to_owned(), ..found },
            None => found,
        })
    }
}

/// apt's sources below `etc`.
fn texts(etc: &Path) -> Vec<String> {
    let parts = fs::read_dir(etc.join("sources.list.d")).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = parts.map(|entry| entry.path()).collect();
    files.sort();
    files.insert(0, etc.join("sources.list"));
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect()
}

/// The addresses in a line of either format: `deb [options] ADDRESS suite…` and `URIs: ADDRESS…`.
fn addresses(line: &str) -> Vec<&str> {
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
        let sources = "Types: deb\nURIs: http://two.example/debian-security\nSuites: bookworm-security\n";
        let mirror = Mirror::of_sources([list, sources].into_iter()).unwrap();
        assert_eq!(mirror.address("debian"), "http://one.example/debian");
        assert_eq!(mirror.address("debian-security"), "http://two.example/debian-security");
        assert_eq!(mirror.address("debian-ports"), "http://one.example/debian-ports");
    }

    #[test]
    fn security_updates_are_beside_an_archive_that_stands_alone() {
        let list = ["deb http://one.example/debian/ bookworm main"];
        assert_eq!(Mirror::of_sources(list.into_iter()), Some(Mirror::at("http://one.example/debian")));
        assert_eq!(Mirror::at("http://one.example/debian/").security, "http://one.example/debian-security");
        assert_eq!(Mirror::of_sources(["deb http://archive.example/ubuntu noble main"].into_iter()), None);
    }
}
