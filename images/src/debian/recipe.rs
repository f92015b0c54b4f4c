//! [`Recipe`]: what a distribution's image is made of, as a file below `resources/recipes` says.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;

use crate::name::Name;

/// Names of files without their ending, and what they hold.
const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/recipes.rs"));

/// What an image is made of. A recipe has all of its base, and its own lists and files besides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Recipe {
    /// The recipe that it adds to.
    pub base: Option<String>,
    /// What it makes images of; none: it is a base only.
    pub names: Vec<String>,
    /// What the result is, for people.
    pub os: String,
    /// The program that makes a root file system.
    pub builder: Builder,
    /// The file system's label.
    pub label: String,
    /// The kernel's command line but for its console.
    pub cmdline: String,
    /// Components of each source.
    pub components: Vec<String>,
    /// Where packages are from.
    pub sources: Vec<Source>,
    /// Packages besides those that every system has. A star stands for the highest number with which there is such a package.
    pub packages: Vec<String>,
    /// Files that are there before packages beyond the essential ones are configured.
    pub early: BTreeMap<String, String>,
    /// Files that replace what packages have made.
    pub files: BTreeMap<String, String>,
    /// Symbolic links, and where they lead.
    pub links: BTreeMap<String, String>,
    /// What goes.
    pub removed: Removed,
}

/// The program that makes a root file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Builder {
    /// For Debian, by apt.
    #[default]
    Mmdebstrap,
}

/// Where packages are from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Source {
    /// `debian` or `debian-security`.
    pub archive: String,
    /// Such as `bookworm-updates`.
    pub suite: String,
}

/// What goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Removed {
    /// Files and trees that need not be there.
    pub paths: Vec<String>,
}

impl Recipe {
    /// Of an image with this name.
    #[must_use]
    pub fn named(name: &Name) -> Option<&'static Self> {
        let name = name.to_string();
        all().iter().find(|recipe| recipe.names.contains(&name))
    }

    /// On the base: what it has itself counts.
    fn on(self, base: Self) -> Self {
        let text = |own: String, base: String| if own.is_empty() { base } else { own };
        let list = |own: Vec<String>, base: Vec<String>| [base, own].concat();
        let map = |own: BTreeMap<_, _>, mut base: BTreeMap<_, _>| {
            base.extend(own);
            base
        };
        Self {
            base: None,
            names: self.names,
            os: text(self.os, base.os),
            builder: self.builder,
            label: text(self.label, base.label),
            cmdline: text(self.cmdline, base.cmdline),
            components: list(self.components, base.components),
            sources: [base.sources, self.sources].concat(),
            packages: list(self.packages, base.packages),
            early: map(self.early, base.early),
            files: map(self.files, base.files),
            links: map(self.links, base.links),
            removed: Removed { paths: list(self.removed.paths, base.removed.paths) },
        }
    }
}

/// All that make images, in the order of their files.
#[must_use]
pub fn all() -> &'static [Recipe] {
    static ALL: OnceLock<Vec<Recipe>> = OnceLock::new();
    ALL.get_or_init(|| {
        let recipes = FILES.iter().filter_map(|(file, _)| read(file, 0).ok());
        recipes.filter(|recipe| !recipe.names.is_empty()).collect()
    })
}

/// A test reads each of them: none of those that are built in is wrong.
fn read(file: &str, depth: usize) -> Result<Recipe, String> {
    let text = FILES.iter().find(|(name, _)| *name == file).map(|(_, text)| *text);
    let text = text.ok_or_else(|| format!("there is no recipe {file}"))?;
    let recipe: Recipe = toml::from_str(text).map_err(|error| format!("{file}: {error}"))?;
    match recipe.base.clone() {
        Some(_) if depth > 8 => Err(format!("{file} is its own base")),
        Some(base) => read(&base, depth + 1).map(|base| recipe.on(base)),
        None => Ok(recipe),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_is_right_and_whole() {
        for (file, _) in FILES {
            let recipe = read(file, 0).unwrap_or_else(|error| panic!("{error}"));
            assert!(!recipe.packages.is_empty() && !recipe.cmdline.is_empty(), "{file}");
            assert!(recipe.names.is_empty() || !recipe.sources.is_empty() && !recipe.os.is_empty(), "{file}");
            assert!(recipe.label.len() <= 16, "{file}");
            for path in recipe.files.keys().chain(recipe.links.keys()).chain(&recipe.removed.paths) {
                assert!(!path.starts_with('/') && !path.contains(".."), "{file}: {path}");
            }
            for name in &recipe.names {
                let parsed: Name = name.parse().unwrap();
                assert_eq!(Recipe::named(&parsed), Some(&recipe), "{name}");
            }
        }
    }

    #[test]
    fn releases_are_known_by_number_and_by_name() {
        for (name, suite) in
            [("debian:12", "bookworm"), ("debian:bullseye", "bullseye"), ("debian:sid", "sid")]
        {
            let recipe = Recipe::named(&name.parse().unwrap()).unwrap();
            assert_eq!(recipe.sources.first().unwrap().suite, suite);
            assert!(recipe.packages.contains(&"systemd-sysv".to_owned()));
        }
        assert_eq!(Recipe::named(&"debian:7".parse().unwrap()), None);
    }
}
