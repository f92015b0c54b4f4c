//! What a system calls itself: os-release(5).

/// The longest name, in characters.
const LONGEST: usize = 100;

/// The name of a system by its os-release: `PRETTY_NAME`, else `NAME`.
#[must_use]
pub fn name(text: &str) -> Option<String> {
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
        clean(line.trim().trim_matches(['"', '\'']))
    };
    value("PRETTY_NAME").or_else(|| value("NAME"))
}

/// A name that somebody else has chosen, as it can be shown on one line of a terminal; `None`: nothing is left of it.
#[must_use]
pub fn clean(name: &str) -> Option<String> {
    let clean: String = name.chars().filter(|letter| !letter.is_control()).take(LONGEST).collect();
    let clean = clean.trim();
    (!clean.is_empty()).then(|| clean.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_systems_name_is_one_clean_line() {
        for (text, wanted) in [
            (
                "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
                Some("Debian GNU/Linux 12 (bookworm)"),
            ),
            ("NAME='Alpine'\nPRETTY_NAME=\"\"\n", Some("Alpine")),
            ("PRETTY_NAME=\"\x1b[31mred\"\n", Some("[31mred")),
            ("PRETTY_NAMES=x", None),
            ("", None),
        ] {
            assert_eq!(name(text).as_deref(), wanted, "{text:?}");
        }
        assert_eq!(name(&format!("NAME={}", "x".repeat(1000))).unwrap().len(), LONGEST);
    }
}
