//! Public keys of ssh, as a line of `authorized_keys` (sshd(8)) without options.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::SeedError;

/// What servers of today take.
const KINDS: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// Whether `text` begins as a key does, and is not a file's name.
#[must_use]
pub fn is_key(text: &str) -> bool {
    KINDS
        .iter()
        .any(|kind| text.trim_start().strip_prefix(kind).is_some_and(|rest| rest.starts_with([' ', '\t'])))
}

/// The keys in `text`, one a line; lines that are empty or begin with `#` are none.
///
/// # Errors
/// If a line is no key, or there is none.
pub fn parse(text: &str) -> Result<Vec<String>, SeedError> {
    if text.contains("PRIVATE KEY") {
        return Err(SeedError::PrivateKey);
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<String> = lines.map(key).collect::<Result<_, _>>()?;
    if keys.is_empty() { Err(SeedError::NoKey) } else { Ok(keys) }
}

fn key(line: &str) -> Result<String, SeedError> {
    let shown: String = line.chars().filter(|letter| !letter.is_control()).take(40).collect();
    let mut words = line.split_whitespace();
    let (kind, data) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if !KINDS.contains(&kind) {
        return Err(SeedError::Key { shown, kinds: KINDS.join(", ") });
    }
    // It says its own kind again, behind that text's length (RFC 4253, 6.6).
    let decoded = STANDARD.decode(data).unwrap_or_default();
    let len = decoded.first_chunk().map_or(0, |len| u32::from_be_bytes(*len) as usize);
    let inside = decoded.get(4..).and_then(|rest| rest.get(..len));
    if inside != Some(kind.as_bytes()) || decoded.len() < len + 4 + 32 {
        return Err(SeedError::Damaged { shown });
    }
    Ok(line.chars().filter(|letter| !letter.is_control()).collect())
}
