//! The order of the workspace's layers, read from the manifests, and the crates that may be there only once.

use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// What each crate may use of the workspace's crates. Lower layers know nothing of higher ones.
const ALLOWED: &[(&str, &[&str])] = &[
    ("arch", &[]),
    ("devices", &["arch"]),
    ("resources/agent", &[]),
    ("vmm", &["arch", "devices", "agent"]),
    ("images", &["agent", "devices"]),
    ("cli", &["agent", "images", "vmm"]),
    ("tests", &["vmm"]),
    ("tests/linux/tool", &[]),
    ("tests/xtask", &[]),
];

/// Crates whose types cross the layers: two versions of one would not fit together.
const ONCE: &[&str] = &["vm-memory", "vmm-sys-util", "kvm-bindings"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> Table {
    let path = root().join(path);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn members() -> Vec<String> {
    let manifest = read("Cargo.toml");
    let members = manifest["workspace"]["members"].as_array().expect("members is a list");
    members.iter().filter_map(Value::as_str).map(str::to_string).collect()
}

/// The names in every table of dependencies of a manifest, those of targets and builds too. Development
/// dependencies count: a test that reaches up a layer binds the layers just the same.
fn dependencies(manifest: &Table) -> Vec<String> {
    let mut names = Vec::new();
    for (key, value) in manifest {
        let Some(table) = value.as_table() else { continue };
        if key.ends_with("dependencies") {
            names.extend(table.keys().cloned());
        } else if key == "target" {
            table.values().filter_map(Value::as_table).for_each(|target| names.extend(dependencies(target)));
        }
    }
    names
}

#[test]
fn every_layer_knows_only_those_below_it() {
    let members = members();
    let packages: Vec<String> = members
        .iter()
        .map(|member| {
            read(&format!("{member}/Cargo.toml"))["package"]["name"].as_str().expect("a name").to_string()
        })
        .collect();
    for member in &members {
        let (_, allowed) = ALLOWED
            .iter()
            .find(|(name, _)| name == member)
            .unwrap_or_else(|| panic!("{member} is a new member: say in this test what it may use"));
        for used in dependencies(&read(&format!("{member}/Cargo.toml"))) {
            // A crate's integration tests may ask for features of the crate itself.
            let ours = packages.contains(&used) && used != *member;
            assert!(
                !ours || allowed.contains(&used.as_str()),
                "{member} must not use {used}: it may use {allowed:?}"
            );
        }
    }
}

#[test]
fn crates_that_cross_the_layers_are_there_once() {
    let lock = read("Cargo.lock");
    let packages = lock["package"].as_array().expect("packages is a list");
    for name in ONCE {
        let versions: Vec<&str> = packages
            .iter()
            .filter(|package| package["name"].as_str() == Some(name))
            .filter_map(|package| package["version"].as_str())
            .collect();
        assert_eq!(versions.len(), 1, "{name} must be in Cargo.lock once, not as {versions:?}");
    }
}

#[test]
fn versions_and_lints_stand_in_the_root_manifest_alone() {
    for member in members() {
        let manifest = read(&format!("{member}/Cargo.toml"));
        assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "{member} has lints of its own");
        for (key, value) in manifest.iter().filter(|(key, _)| key.ends_with("dependencies")) {
            for (name, source) in value.as_table().into_iter().flatten() {
                let shared = source.get("workspace").and_then(Value::as_bool) == Some(true);
                let itself = source.get("path").and_then(Value::as_str) == Some(".");
                assert!(shared || itself, "{member}: {name} in [{key}] needs `workspace = true`");
            }
        }
    }
}
