//! Builds the agent, so that `skiff` carries it.
//!
//! It is another program for another place than this one: static, small, and the same in every profile. So it has a target
//! directory of its own, below that of this build, and takes nothing from the flags that this build was given.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Small: it lies in every image. It unwinds: a fault in one connection is not the end of the others.
const PROFILE: &[(&str, &str)] = &[
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "z"),
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
    ("CARGO_PROFILE_RELEASE_STRIP", "true"),
    ("CARGO_PROFILE_RELEASE_PANIC", "unwind"),
];

/// What a cargo or clippy around this one says to the compiler.
const NOT_OURS: &[&str] = &[
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_BUILD_BUILD_DIR",
    "CARGO_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "CLIPPY_ARGS",
    "CLIPPY_CONF_DIR",
    "TARGET",
    "HOST",
    "OUT_DIR",
    "PROFILE",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("..").canonicalize()?;
    for path in ["resources/agent/src", "resources/agent/Cargo.toml", "Cargo.lock", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // TARGET/PROFILE/build/skiff-HASH/out.
    let target_dir = out.ancestors().nth(4).ok_or("OUT_DIR is in no target directory")?.join("agent");
    let built = build(&root, &target_dir)?;
    // A copy: this build's program does not change under it when another one builds the agent anew.
    std::fs::copy(&built, out.join("skiff-agent"))
        .map_err(|error| format!("{}: {error}", built.display()))?;
    Ok(())
}

/// The agent runs in guests of the kind of machine that skiff runs on, so it is for the same target. It is static, whatever libraries
/// they have.
fn build(root: &Path, target_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let target = env::var("TARGET")?;
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo.args([
        "build",
        "--release",
        "--quiet",
        "--package",
        "agent",
        "--bin",
        "skiff-agent",
        "--target",
        &target,
    ]);
    cargo.arg("--target-dir").arg(target_dir).arg("--manifest-path").arg(root.join("Cargo.toml"));
    for name in NOT_OURS {
        cargo.env_remove(name);
    }
    cargo.envs(PROFILE.iter().copied()).env("RUSTFLAGS", "-C target-feature=+crt-static");
    // The build around this one has resolved and fetched all that it needs: the lock file is whole.
    let status = cargo.arg("--locked").current_dir(root).status()?;
    if !status.success() {
        return Err(format!("the agent does not build: {status} (cargo build -p agent says more)").into());
    }
    Ok(target_dir.join(target).join("release/skiff-agent"))
}
