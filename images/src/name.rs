//! [`Name`]: what users call an image.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The tag that nobody wrote.
pub const DEFAULT_TAG: &str = "latest";

/// `debian:12`, `web`, `registry.example:5000/team/app:1.2`: a repository and a tag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Name {
    repository: String,
    tag: String,
}

/// A text is no [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no image's name: write it as in debian:12, of small letters, digits and . _ - /, with a tag of at most 128 letters, digits and . _ -"
)]
pub struct NameError(String);

impl Name {
    /// All before the tag.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// What stands after the colon.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

/// By the grammar of the OCI distribution specification ("Pulling manifests"), with the host and port of a registry before it.
impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError(text.chars().take(100).collect());
        let (repository, tag) = match text.rsplit_once(':') {
            // A colon before a slash is that of a port.
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (text, DEFAULT_TAG),
        };
        let mut parts = repository.split('/').enumerate();
        let parts_fit = parts.all(|(at, part)| is_component(part) || at == 0 && is_host(part, repository));
        if text.len() > 255 || !parts_fit || !is_tag(tag) {
            return Err(wrong());
        }
        Ok(Self { repository: repository.to_owned(), tag: tag.to_owned() })
    }
}

/// Letters and digits, with single separators between them: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_component(part: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends = bytes.first().is_some_and(alphanumeric) && bytes.last().is_some_and(alphanumeric);
    let runs = part.split(|letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit());
    ends && runs
        .into_iter()
        .all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|byte| byte == b'-'))
}

/// A registry's host with a port, as the first of several parts.
fn is_host(part: &str, repository: &str) -> bool {
    let Some((host, port)) = part.split_once(':') else {
        return false;
    };
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    repository.contains('/')
        && !host.is_empty()
        && host.bytes().all(letters)
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_repository_and_a_tag() {
        for (text, repository, tag) in [
            ("debian:12", "debian", "12"),
            ("web", "web", "latest"),
            ("debian:12-backports", "debian", "12-backports"),
            ("localhost:5000/team/app", "localhost:5000/team/app", "latest"),
            ("reg.example/a/b__c:v1.2_X", "reg.example/a/b__c", "v1.2_X"),
        ] {
            let name: Name = text.parse().unwrap();
            assert_eq!((name.repository(), name.tag()), (repository, tag), "{text}");
            assert_eq!(name.to_string().parse(), Ok(name));
        }
    }

    #[test]
    fn nothing_that_leads_elsewhere_is_a_name() {
        for text in [
            "",
            ":",
            "a:",
            ":12",
            "../etc",
            "a//b",
            "/a",
            "a/",
            "A",
            "a b",
            "a:b:c",
            ".a",
            "a/..",
            "x:99999/a",
            "é",
            "a:-x",
        ] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }
}
