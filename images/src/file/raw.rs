//! Values as TOML has them, for the parsers of this file and of others that have steps. What they cannot be is said in a user's words.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use toml::Spanned;

/// A list of texts, each with its place.
#[derive(Default)]
pub struct Texts(pub Vec<Spanned<String>>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Read;

        impl<'de> Visitor<'de> for Read {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts, as in [\"a\", \"b\"]")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, texts: A) -> Result<Texts, A::Error> {
                all(texts).map(Texts)
            }
        }

        from.deserialize_any(Read)
    }
}

/// A step: for [`read_steps`](super::parse::read_steps). A text alone is what it runs.
pub struct RawStep(pub(super) Keys);

/// The keys of a step.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keys {
    pub(super) run: Option<Line>,
    pub(super) copy: Option<Spanned<Vec<String>>>,
    pub(super) env: Option<Spanned<BTreeMap<String, String>>>,
    pub(super) user: Option<Spanned<String>>,
    pub(super) workdir: Option<Spanned<String>>,
    pub(super) timeout: Option<Spanned<String>>,
    pub(super) owner: Option<Spanned<String>>,
    pub(super) mode: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) exclude: Texts,
}

impl<'de> Deserialize<'de> for RawStep {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Read;

        impl<'de> Visitor<'de> for Read {
            type Value = RawStep;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a step: a line for the shell, or a table with run or copy")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawStep, E> {
                Ok(RawStep(Keys { run: Some(Line::Shell(text.to_owned())), ..Keys::default() }))
            }

            fn visit_map<A: MapAccess<'de>>(self, keys: A) -> Result<RawStep, A::Error> {
                Keys::deserialize(MapAccessDeserializer::new(keys)).map(RawStep)
            }
        }

        from.deserialize_any(Read)
    }
}

/// A command: for a shell, or in words.
pub enum Line {
    /// For `sh -ec`.
    Shell(String),
    /// A program and its arguments.
    Words(Vec<String>),
}

impl Line {
    /// As people read it, and the program with its arguments; nothing if it runs nothing.
    #[must_use]
    pub fn words(self) -> Option<(String, Vec<String>)> {
        let (text, argv) = match self {
            Self::Shell(text) => {
                let argv = vec!["/bin/sh".to_owned(), "-ec".to_owned(), text.clone()];
                (text.trim().to_owned(), argv)
            }
            Self::Words(words) => (words.join(" "), words),
        };
        let runs = !text.is_empty() && !argv.iter().any(|word| word.contains('\0'));
        runs.then_some((text, argv))
    }
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Read;

        impl<'de> Visitor<'de> for Read {
            type Value = Line;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a line for the shell, or a list of a program and its arguments")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Line, E> {
                Ok(Line::Shell(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, words: A) -> Result<Line, A::Error> {
                all(words).map(Line::Words)
            }
        }

        from.deserialize_any(Read)
    }
}

fn all<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(mut list: A) -> Result<Vec<T>, A::Error> {
    let mut all = Vec::new();
    while let Some(one) = list.next_element()? {
        all.push(one);
    }
    Ok(all)
}
