//! Keys and values: how a part of a spec (a disk, a network, …) is written as text, `KEY=VALUE,KEY=VALUE`, and as a
//! table of a file. There is one parser for both, so that both know the same keys and refuse the same things.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::{DeserializeSeed, Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serializer};

use super::{Memory, ParseError};

/// What messages call a part, and which keys it has.
#[derive(Debug)]
pub struct Names {
    /// As in "the disk's".
    pub whose: &'static str,
    /// As in "a disk".
    pub one: &'static str,
    /// Every key.
    pub keys: &'static [&'static str],
    /// The key that a text's first value may leave out.
    pub bare: Option<&'static str>,
    /// What is said of a text or a table that lacks what it must have.
    pub lacks: &'static str,
    /// An example, for a value of the wrong type.
    pub example: &'static str,
}

impl Names {
    /// Whether `word` is almost a key.
    fn misspells(&self, word: &str) -> bool {
        let letters = word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        letters && likest(word, self.keys.iter().copied()).is_some_and(|(likeness, _)| likeness > 0.85)
    }

    /// The error of `subject` (a quoted text, or [`Self::one`]), which lacks what it must have.
    pub fn lacking(&self, subject: &str) -> ParseError {
        ParseError::Lacks { subject: subject.to_owned(), lacks: self.lacks }
    }

    fn key(&'static self, name: &str) -> Result<&'static str, ParseError> {
        self.keys.iter().find(|key| **key == name).copied().ok_or_else(|| {
            let fix = match closest(name, self.keys.iter().copied()) {
                Some(close) => format!("did you mean '{close}'?"),
                None => format!("there are {}", self.keys.join(", ")),
            };
            ParseError::Key { one: self.one, key: name.to_owned(), fix }
        })
    }
}

/// A part of a spec that is made of keys and values.
pub trait Part: Sized + 'static {
    /// Its names.
    const NAMES: &'static Names;
    /// What has been given so far.
    type Draft: Default;

    /// Take one value. The same key does not come twice, and none that is not in [`Self::NAMES`].
    fn set(draft: &mut Self::Draft, given: Given) -> Result<(), ParseError>;

    /// The whole, or the error of `subject`, which was given.
    fn finish(draft: Self::Draft, subject: &str) -> Result<Self, ParseError>;

    /// What gives the same again.
    fn pairs(&self) -> Vec<(&'static str, Value)>;
}

/// What stands after a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing: the key stands alone. In a table that is `true`.
    Bare,
    /// Text. In text, numbers and switches are that, too.
    Text(String),
    /// A file's name, to be written.
    Path(PathBuf),
    /// A number of a table.
    Number(u64),
    /// `true` or `false` of a table.
    Switch(bool),
}

impl Value {
    /// The text of anything that has one.
    pub fn text(value: impl fmt::Display) -> Self {
        Self::Text(value.to_string())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bare => Ok(()),
            Self::Text(text) => f.write_str(text),
            Self::Path(path) => path.display().fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Switch(true) => f.write_str("on"),
            Self::Switch(false) => f.write_str("off"),
        }
    }
}

/// A key with what stands after it.
#[derive(Debug)]
pub struct Given {
    names: &'static Names,
    /// One of the names' keys.
    pub key: &'static str,
    value: Value,
}

impl Given {
    /// The error that asks for what was `wanted`.
    pub fn refused(&self, wanted: &'static str) -> ParseError {
        let (whose, key) = (self.names.whose, self.key);
        match &self.value {
            Value::Bare => ParseError::NoValue { whose, key, wanted },
            value => ParseError::Value { whose, key, value: value.to_string(), wanted },
        }
    }

    /// Text that is not empty.
    pub fn text(self, wanted: &'static str) -> Result<String, ParseError> {
        match self.value {
            Value::Text(text) if !text.is_empty() => Ok(text),
            _ => Err(self.refused(wanted)),
        }
    }

    /// What one of `words` stands for.
    pub fn one_of<T, const N: usize>(
        self,
        words: [(&str, T); N],
        wanted: &'static str,
    ) -> Result<T, ParseError> {
        let found = words.into_iter().find(|(word, _)| self.value == Value::text(word));
        found.map(|(_, meaning)| meaning).ok_or_else(|| self.refused(wanted))
    }

    /// Text that means something.
    pub fn parsed<T: FromStr>(self, wanted: &'static str) -> Result<T, ParseError> {
        match &self.value {
            Value::Text(text) => text.parse().map_err(|_| self.refused(wanted)),
            _ => Err(self.refused(wanted)),
        }
    }

    /// On or off. A key alone is on.
    pub fn switch(&self) -> Result<bool, ParseError> {
        match &self.value {
            Value::Bare => Ok(true),
            Value::Switch(on) => Ok(*on),
            Value::Text(text) if text == "on" || text == "true" => Ok(true),
            Value::Text(text) if text == "off" || text == "false" => Ok(false),
            _ => Err(self.refused("on or off")),
        }
    }

    /// A number that a `T` can hold.
    pub fn number<T: TryFrom<u64>>(self, wanted: &'static str) -> Result<T, ParseError> {
        let number = match &self.value {
            Value::Number(number) => Some(*number),
            // Not by `parse` alone, which takes a plus sign.
            Value::Text(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            _ => None,
        };
        // No file could hold a greater one (TOML 1.0, integers).
        let number = number.filter(|number| i64::try_from(*number).is_ok());
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| self.refused(wanted))
    }

    /// An amount of bytes.
    pub fn bytes(self) -> Result<Memory, ParseError> {
        match self.value {
            Value::Number(number) => Ok(Memory(number)),
            _ => self.parsed("a number of bytes with K, M or G, such as 100M"),
        }
    }

    /// The error of the `key` that this one is short for, if both are given.
    pub fn twice_as(&self, key: &'static str) -> ParseError {
        ParseError::Twice { whose: self.names.whose, key }
    }

    /// The error of a burst of nothing.
    pub fn without_rate(&self) -> ParseError {
        ParseError::Burst { whose: self.names.whose }
    }
}

/// A part while it is read: refuses what a part need not look at itself.
struct Reader<T: Part> {
    draft: T::Draft,
    seen: Vec<&'static str>,
}

impl<T: Part> Reader<T> {
    fn new() -> Self {
        Self { draft: T::Draft::default(), seen: Vec::new() }
    }

    fn set(&mut self, name: &str, value: Value) -> Result<(), ParseError> {
        let key = T::NAMES.key(name)?;
        if self.seen.contains(&key) {
            return Err(ParseError::Twice { whose: T::NAMES.whose, key });
        }
        self.seen.push(key);
        T::set(&mut self.draft, Given { names: T::NAMES, key, value })
    }
}

/// Read text: `KEY=VALUE,…`. A comma in a value is doubled.
pub fn parse<T: Part>(text: &str) -> Result<T, ParseError> {
    let names = T::NAMES;
    let subject = format!("'{text}'");
    let mut reader = Reader::<T>::new();
    if text.is_empty() {
        return Err(names.lacking(&subject));
    }
    for (at, option) in split(text).iter().enumerate() {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Value::Text(value.to_owned())),
            None => (option.as_str(), Value::Bare),
        };
        // No key has a slash, so what has one is a path that holds a `=`.
        let stray = (value == Value::Bare || name.contains('/')) && !names.keys.contains(&name);
        match names.bare {
            Some(key) if stray && at == 0 => reader.set(key, Value::Text(option.clone()))?,
            _ if option.is_empty() => return Err(ParseError::EmptyOption(text.to_owned())),
            // Most likely a value without its key.
            _ if stray && !names.misspells(name) => return Err(names.lacking(&subject)),
            _ => reader.set(name, value)?,
        }
    }
    T::finish(reader.draft, &subject)
}

/// Split at single commas; a doubled one stands for itself.
fn split(text: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            options.push(String::new());
        } else if let Some(last) = options.last_mut() {
            last.push(c);
        }
    }
    options
}

/// Write what [`parse`] reads as the same.
pub fn write<T: Part>(part: &T, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (at, (key, value)) in part.pairs().into_iter().enumerate() {
        f.write_str(if at == 0 { "" } else { "," })?;
        f.write_str(key)?;
        if value != Value::Bare {
            write!(f, "={}", value.to_string().replace(',', ",,"))?;
        }
    }
    Ok(())
}

/// Write a table.
pub fn serialize<T: Part, S: Serializer>(part: &T, serializer: S) -> Result<S::Ok, S::Error> {
    let pairs = part.pairs();
    let mut map = serializer.serialize_map(Some(pairs.len()))?;
    for (key, value) in &pairs {
        match value {
            Value::Bare => map.serialize_entry(key, &true)?,
            Value::Text(text) => map.serialize_entry(key, text)?,
            // Refused if it is not UTF-8.
            Value::Path(path) => map.serialize_entry(key, path)?,
            Value::Number(number) => map.serialize_entry(key, number)?,
            Value::Switch(on) => map.serialize_entry(key, on)?,
        }
    }
    map.end()
}

/// Read text or a table.
pub fn deserialize<'de, T: Part, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_any(TextOrTable(PhantomData))
}

struct TextOrTable<T>(PhantomData<T>);

impl<'de, T: Part> Visitor<'de> for TextOrTable<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a table or a text such as \"{}\"", T::NAMES.example)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        parse(text).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let mut reader = Reader::<T>::new();
        while let Some(name) = map.next_key::<String>()? {
            // A wrong value is refused while it is read: then the error has its line.
            map.next_value_seed(Slot { reader: &mut reader, name: &name })?;
        }
        T::finish(reader.draft, T::NAMES.one).map_err(A::Error::custom)
    }
}

/// Where the value of `name` goes.
struct Slot<'a, T: Part> {
    reader: &'a mut Reader<T>,
    name: &'a str,
}

impl<'de, T: Part> DeserializeSeed<'de> for Slot<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let value = Value::deserialize(deserializer)?;
        self.reader.set(self.name, value).map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, a number, true or false")
            }

            fn visit_str<E>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Text(text.to_owned()))
            }

            fn visit_bool<E>(self, on: bool) -> Result<Value, E> {
                Ok(Value::Switch(on))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
                Ok(Value::Number(number))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
                // A negative one is refused as the text that it is: nothing here can be negative.
                Ok(u64::try_from(number).map_or_else(|_| Value::text(number), Value::Number))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Give a [`Part`] its text and its table.
macro_rules! text_and_table {
    ($part:ty) => {
        impl std::str::FromStr for $part {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                $crate::spec::options::parse(text)
            }
        }

        impl std::fmt::Display for $part {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::spec::options::write(self, f)
            }
        }

        impl serde::Serialize for $part {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $crate::spec::options::serialize(self, serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $part {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::spec::options::deserialize(deserializer)
            }
        }
    };
}
pub(super) use text_and_table;

/// The one of `known` that `wrong` was most likely meant to be.
pub fn closest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let meant = known.into_iter().filter(|name| meant(wrong, name, strsim::jaro_winkler(wrong, name)));
    likest(wrong, meant).map(|(_, name)| name)
}

/// Whether most of the letters are the same: a common start alone makes any two names alike, and two letters that changed
/// places make two short ones unlike.
fn meant(wrong: &str, name: &str, likeness: f64) -> bool {
    let longer = wrong.chars().count().max(name.chars().count());
    let slips = strsim::damerau_levenshtein(wrong, name);
    slips.saturating_mul(2) <= longer && (likeness > 0.7 || slips == 1)
}

/// The one of `known` that is most like `wrong`, and how much: 1 is the same.
fn likest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<(f64, &'a str)> {
    let all = known.into_iter().map(|name| (strsim::jaro_winkler(wrong, name), name));
    all.max_by(|a, b| a.0.total_cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::{closest, split};

    #[test]
    fn what_has_little_in_common_was_not_meant() {
        for (wrong, name) in
            [("webb", Some("web")), ("wbe", Some("web")), ("emptyd", Some("empty")), ("elephant", None)]
        {
            assert_eq!(closest(wrong, ["web", "empty", "e"]), name, "{wrong}");
        }
    }

    #[test]
    fn options_are_split_at_single_commas() {
        for (text, options) in [
            ("", &[""][..]),
            ("a,b", &["a", "b"]),
            ("a,,b", &["a,b"]),
            ("a,,,b", &["a,", "b"]),
            (",a,", &["", "a", ""]),
            (",,", &[","]),
        ] {
            assert_eq!(split(text), options, "{text}");
        }
    }
}
