//! [`Case`]: one test of a matrix, on one image with one choice of everything else.

use std::collections::BTreeSet;

use vmm::spec::Memory;

use super::suite::{MOST_TESTS, Suite};
use crate::exit::Usage;

/// The longest part of a test's name that becomes a file's name, in bytes.
const LONGEST_SLUG: usize = 100;

/// One test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// For people: the image, and what of the matrix has several values: `debian:12 cpus=2 LANG=C`.
    pub name: String,
    /// What the same is without the image.
    pub variant: String,
    /// A file's name, no other test's.
    pub slug: String,
    /// The image.
    pub image: String,
    /// How many vCPUs; otherwise as the image says.
    pub cpus: Option<u8>,
    /// How much memory; otherwise as the image says.
    pub memory: Option<Memory>,
    /// `KEY=VALUE`, of the matrix.
    pub env: Vec<String>,
}

/// All tests of `suite` that its patterns let through, image by image.
pub fn cases(suite: &Suite) -> Result<Vec<Case>, Usage> {
    let mut wanted: Vec<&String> = Vec::new();
    for image in &suite.on {
        if !wanted.contains(&image) {
            wanted.push(image);
        }
    }
    let variants = variants(suite);
    let count = wanted.len().saturating_mul(variants.len());
    if count > MOST_TESTS {
        return Err(Usage(format!(
            "the matrix has {count} tests, and {MOST_TESTS} is the most: leave some values out, or run them one after the other"
        )));
    }
    let mut slugs = BTreeSet::new();
    let mut cases = Vec::new();
    for image in wanted {
        for variant in &variants {
            let name = format!("{image} {}", variant.shown).trim_end().to_owned();
            if chosen(suite, &name) {
                let slug = unique(&slug(&name), &mut slugs);
                cases.push(Case { name, slug, image: image.clone(), ..variant.case() });
            }
        }
    }
    Ok(cases)
}

/// A choice of all that is not the image.
#[derive(Clone, Default)]
struct Variant {
    cpus: Option<u8>,
    memory: Option<Memory>,
    env: Vec<String>,
    shown: String,
}

impl Variant {
    fn case(&self) -> Case {
        Case {
            name: String::new(),
            variant: self.shown.clone(),
            slug: String::new(),
            image: String::new(),
            cpus: self.cpus,
            memory: self.memory,
            env: self.env.clone(),
        }
    }

    /// The same, with this said of it if there is more than one choice.
    fn with(&self, shown: &str, choices: usize, change: impl FnOnce(&mut Self)) -> Self {
        let mut other = self.clone();
        if choices > 1 {
            other.shown = format!("{} {shown}", self.shown).trim_start().to_owned();
        }
        change(&mut other);
        other
    }
}

/// In the order of the file: the last variable changes fastest. No more than one too many for the caller to refuse.
fn variants(suite: &Suite) -> Vec<Variant> {
    let mut all = vec![Variant::default()];
    let grow = |all: &[Variant], choices: &mut dyn FnMut(&Variant) -> Vec<Variant>| -> Vec<Variant> {
        all.iter().flat_map(choices).take(MOST_TESTS.saturating_add(1)).collect()
    };
    if !suite.cpus.is_empty() {
        let many = suite.cpus.len();
        all = grow(&all, &mut |one| {
            let with = |cpus: &u8| one.with(&format!("cpus={cpus}"), many, |other| other.cpus = Some(*cpus));
            suite.cpus.iter().map(with).collect()
        });
    }
    if !suite.memory.is_empty() {
        let many = suite.memory.len();
        all = grow(&all, &mut |one| {
            let with =
                |size: &Memory| one.with(&format!("memory={size}"), many, |other| other.memory = Some(*size));
            suite.memory.iter().map(with).collect()
        });
    }
    for (key, values) in &suite.env_matrix {
        all = grow(&all, &mut |one| {
            let with = |value: &String| {
                let pair = format!("{key}={value}");
                one.with(&pair, values.len(), |other| other.env.push(pair.clone()))
            };
            values.iter().map(with).collect()
        });
    }
    all
}

fn chosen(suite: &Suite, name: &str) -> bool {
    let any = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, name));
    (suite.include.is_empty() || any(&suite.include)) && !any(&suite.exclude)
}

/// Whether `name` matches: has it in it, or if there is a `*` or `?` in the pattern, is as it says from end to end.
pub fn matches(pattern: &str, name: &str) -> bool {
    if !pattern.contains(['*', '?']) {
        return name.contains(pattern);
    }
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // The last star, and how much of the name it stands for: it is enough to go back to that one.
    let (mut at, mut of, mut star) = (0_usize, 0_usize, None);
    while let Some(letter) = name.get(of) {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, of));
                at = at.saturating_add(1);
            }
            Some(wanted) if *wanted == '?' || wanted == letter => {
                (at, of) = (at.saturating_add(1), of.saturating_add(1));
            }
            _ => match star {
                Some((back, so_far)) => {
                    star = Some((back, so_far.saturating_add(1)));
                    (at, of) = (back.saturating_add(1), so_far.saturating_add(1));
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(at).all(|letter| *letter == '*')
}

/// `name` as a file can be called, and part of a VM's name.
fn slug(name: &str) -> String {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let mut text = String::new();
    for letter in name.chars() {
        let letter = if fits(letter) { letter } else { '-' };
        if text.len() < LONGEST_SLUG && !(letter == '-' && text.ends_with('-')) {
            text.push(letter);
        }
    }
    let text = text.trim_start_matches(['-', '.', '_']).trim_end_matches('-');
    if text.is_empty() { "test".to_owned() } else { text.to_owned() }
}

fn unique(wanted: &str, taken: &mut BTreeSet<String>) -> String {
    let numbered = (2_u64..).map(|number| format!("{wanted}-{number}"));
    let mut names = std::iter::once(wanted.to_owned()).chain(numbered);
    let free = names.find(|name| !taken.contains(name)).unwrap_or_default();
    taken.insert(free.clone());
    free
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn suite(on: &[&str]) -> Suite {
        Suite { on: on.iter().map(|image| (*image).to_owned()).collect(), ..Suite::default() }
    }

    fn names(suite: &Suite) -> Vec<String> {
        cases(suite).unwrap().into_iter().map(|case| case.name).collect()
    }

    #[test]
    fn a_name_says_what_has_several_values_and_no_more() {
        let mut suite = suite(&["debian:11", "debian:12", "debian:11"]);
        assert_eq!(names(&suite), ["debian:11", "debian:12"]);
        suite.cpus = vec![2];
        suite.env_matrix.insert("LANG".to_owned(), vec!["C".to_owned(), "de".to_owned()]);
        assert_eq!(
            names(&suite),
            ["debian:11 LANG=C", "debian:11 LANG=de", "debian:12 LANG=C", "debian:12 LANG=de"]
        );
        let first = cases(&suite).unwrap().remove(0);
        assert_eq!(
            (first.cpus, first.env, first.variant.as_str()),
            (Some(2), vec!["LANG=C".to_owned()], "LANG=C")
        );
        assert_eq!(first.slug, "debian-11-LANG-C");
    }

    #[test]
    fn patterns_choose_among_the_tests() {
        let mut suite = suite(&["debian:11", "debian:12", "alpine:3"]);
        suite.include = vec!["debian:*".to_owned()];
        assert_eq!(names(&suite), ["debian:11", "debian:12"]);
        suite.exclude = vec!["12".to_owned()];
        assert_eq!(names(&suite), ["debian:11"]);
        suite.include = vec!["none".to_owned()];
        assert!(names(&suite).is_empty());
    }

    #[test]
    fn stars_and_question_marks_match() {
        for (pattern, name, does) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abbcd", false),
            ("*b*b*", "abcb", true),
            ("?", "ä", true),
            ("a?", "a", false),
            ("bb", "abba", true),
            ("**a", "xa", true),
        ] {
            assert_eq!(matches(pattern, name), does, "{pattern} {name}");
        }
    }

    #[test]
    fn a_matrix_has_bounds() {
        let mut suite = suite(&["a"]);
        for key in ["A", "B", "C", "D"] {
            suite.env_matrix.insert(key.to_owned(), (0..40).map(|n| n.to_string()).collect());
        }
        assert!(cases(&suite).unwrap_err().0.contains("is the most"));
    }

    proptest! {
        #[test]
        fn every_test_has_a_directory_of_its_own_that_is_a_plain_name(
            on in prop::collection::vec("\\PC{0,12}", 0..8),
            values in prop::collection::vec("\\PC{0,12}", 1..4),
        ) {
            let mut suite = Suite { on, ..Suite::default() };
            suite.env_matrix.insert("X".to_owned(), values);
            let cases = cases(&suite).unwrap();
            let slugs: BTreeSet<&String> = cases.iter().map(|case| &case.slug).collect();
            prop_assert_eq!(slugs.len(), cases.len());
            for slug in slugs {
                prop_assert!(!slug.is_empty() && !slug.starts_with('.') && slug.is_ascii() && !slug.contains('/'));
            }
        }

        #[test]
        fn a_pattern_of_a_name_with_stars_put_in_matches_it(name in "[a-c]{0,10}", cuts in prop::collection::vec(0_usize..10, 1..4)) {
            let mut pattern: Vec<char> = name.chars().collect();
            for cut in cuts {
                pattern.insert(cut.min(pattern.len()), '*');
            }
            prop_assert!(matches(&pattern.iter().collect::<String>(), &name));
        }
    }
}
