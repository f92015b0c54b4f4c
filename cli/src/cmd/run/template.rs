//! `--cpu-template`: a file's name on the command line, the name or the template itself in a file.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use vmm::spec::CpuTemplate;

use crate::exit::Usage;

/// A CPU template as it is asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Template {
    /// In this file.
    File(PathBuf),
    /// Itself.
    Given(Box<CpuTemplate>),
}

impl Template {
    /// What it says.
    pub fn read(self) -> Result<CpuTemplate> {
        match self {
            Self::File(path) => read(&path),
            Self::Given(template) => Ok(*template),
        }
    }
}

fn read(path: &Path) -> Result<CpuTemplate> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the CPU template {}", path.display()))?;
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        let before = text.as_bytes().get(..error.span().map_or(0, |span| span.start)).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let message = error.message().trim_end().replace('\n', ", ");
        Usage(format!("{}:{line}: {message}", path.display())).into()
    })
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Template;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a CPU template's file, or the template")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Template, E> {
                Ok(Template::File(text.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Template, A::Error> {
                let template = CpuTemplate::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Template::Given(Box::new(template)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_read_from_its_file_and_what_is_wrong_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("template.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Template::File(path.clone()).read().map_err(|error| format!("{error:#}"))
        };
        let text = "without = [\"avx2\"]\n[[cpuid]]\nleaf = 7\nebx = \"0b0xxx\"\n[[msr]]\nindex = 0x10a\nbits = \"0b0\"\n";
        let template = read(text).unwrap();
        assert_eq!((template.without.len(), template.leaves.len(), template.msrs.len()), (1, 1, 1));
        // In a spec's own file it stands as it is.
        let whole = toml::to_string(&template).unwrap();
        assert_eq!(read(&whole).unwrap(), template);
        for (wrong, line, words) in [
            ("without = [\"avx2\", \"avx9\"]", 1, "there is no feature called 'avx9'"),
            ("\n[[cpuid]]\nleaf = 7\nebx = \"0x10\"", 4, "'0x10' are no bits: write 0b"),
            ("[[cpuid]]\nleef = 7", 2, "unknown field `leef`"),
            ("[[msr]]\nindex = 1", 1, "missing field `bits`"),
        ] {
            let message = read(wrong).unwrap_err();
            assert!(message.starts_with(&format!("{}:{line}: ", path.display())), "{message}");
            assert!(message.contains(words), "{message}");
        }
        let missing = Template::File(dir.path().join("none")).read().unwrap_err();
        assert!(format!("{missing:#}").starts_with("cannot read the CPU template "), "{missing:#}");
    }
}
