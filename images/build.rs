//! Lists the recipes, so that adding one is adding a file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let recipes = manifest.join("../resources/recipes");
    println!("cargo::rerun-if-changed={}", recipes.display());
    let entries: Result<Vec<_>, _> = fs::read_dir(&recipes)?.collect();
    let mut paths: Vec<PathBuf> = entries?.into_iter().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "toml"));
    paths.sort();
    let mut list = String::from("&[\n");
    for path in paths {
        let name = path.file_stem().unwrap_or_default().display();
        // Writing to a string does not fail.
        let _ =
            writeln!(list, "    ({:?}, include_str!({:?})),", name.to_string(), path.display().to_string());
    }
    list.push(']');
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    fs::write(Path::new(&out).join("recipes.rs"), list)
}
