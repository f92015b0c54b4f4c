//! Which host to fetch Debian packages from: the one that this machine's apt is set up with.

use std::fs;
use std::path::{Path, PathBuf};

/// The archive's address and that of its security updates, without a slash at the end.
#[derive(Debug, PartialEq, Eq)]
pub struct Mirror {
    pub archive: String,
    pub security: String,
}

impl Mirror {
    /// Reads apt's sources below `etc` (`/etc/apt`). Debian's own address stands in for what is not there.
    pub fn of_machine(etc: &Path) -> Mirror {
        let mut files = vec![etc.join("sources.list")];
        let parts = fs::read_dir(etc.join("sources.list.d")).into_iter().flatten().flatten();
        let mut parts: Vec<PathBuf> = parts.map(|entry| entry.path()).collect();
        parts.sort();
        files.extend(parts);
        let texts: Vec<String> = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
        Mirror::of_sources(texts.iter().map(String::as_str))
    }

    fn of_sources<'a>(texts: impl Iterator<Item = &'a str>) -> Mirror {
        let uris: Vec<&str> =
            texts.flat_map(str::lines).flat_map(uris_of_line).map(|uri| uri.trim_end_matches('/')).collect();
        let ending = |end: &str| uris.iter().find(|uri| uri.ends_with(end)).map(|uri| (*uri).to_string());
        Mirror {
            archive: ending("/debian").unwrap_or_else(|| "http://mirror.example/debian".into()),
            security: ending("/debian-security")
                .unwrap_or_else(|| "http://mirror.example/debian-security".into()),
        }
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
        let mirror = Mirror::of_sources([list, sources].into_iter());
        assert_eq!(mirror.archive, "http://one.example/debian");
        assert_eq!(mirror.security, "http://one.example/debian-security");
    }

    #[test]
    fn a_machine_of_another_distribution_gets_debians_address() {
        let mirror = Mirror::of_sources(["deb http://archive.example/ubuntu noble main"].into_iter());
        assert_eq!(mirror.archive, "http://mirror.example/debian");
    }
}
