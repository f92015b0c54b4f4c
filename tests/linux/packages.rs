//! Packages that a file asks for, from an archive on the host that the guest reaches by a user's network.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::build::told;
use crate::bytes::hash_of;
use crate::cli::Cli;
use crate::host::{self, Devices};
use crate::systems::Home;

/// Where the archive is, for the guest, whose network's gateway is the host.
const PORT: u16 = 8770;
/// A system that knows that archive and no other: the packages of a file are installed before all its other steps.
const LOCAL: &str =
    "base = \"debian:12\"\nwarm = false\n\n[[step]]\ncopy = [\"sources.list\", \"/etc/apt/sources.list\"]\n";
const FILE: &str = "base = \"local\"\nwarm = false\npackages = [\"skiff-hello\"]\n";
/// A name, what it needs, and a program in it.
const PACKAGES: [(&str, &str, &str); 2] = [
    ("skiff-hello", "skiff-words", "#!/bin/sh\nexec skiff-words hello\n"),
    ("skiff-words", "dpkg", "#!/bin/sh\necho \"$1 from a package\"\n"),
];

/// A file's packages are installed with what they need, once.
///
/// # Errors
/// What is not as it should be.
pub fn packages(skiff: &Path, data: &Path, dir: &Path) -> Result<()> {
    // passt takes addresses and routes from the host's first interface that leads anywhere.
    let _devices = Devices::bridge("skbr4", "192.0.2.2/24", &[])?;
    host::ip("route add default via 192.0.2.1 dev skbr4")?;
    host::serve_files(PORT, archive(&dir.join("archive"))?)?;
    let home = Home::new(skiff, data, dir)?;
    home.cli.told(checks(&home.cli, dir))
}

fn checks(cli: &Cli<'_>, dir: &Path) -> Result<()> {
    let context = dir.join("context");
    fs::create_dir_all(&context)?;
    fs::write(context.join("sources.list"), format!("deb [trusted=yes] http://10.0.2.2:{PORT} ./\n"))?;
    let (local, file) = (context.join("local.toml"), context.join("file.toml"));
    fs::write(&local, LOCAL)?;
    fs::write(&file, FILE)?;
    let (local, file) = (local.display().to_string(), file.display().to_string());
    told(cli, &["image", "build", "-f", &local, "-t", "local"])?;
    let build = ["image", "build", "-f", &file, "-t", "hello"];
    let first = told(cli, &build)?;
    ensure!(
        first.contains("packages skiff-hello") && !first.contains("cached"),
        "the first build said: {first}"
    );
    let second = told(cli, &build)?;
    ensure!(second.contains("packages skiff-hello … cached"), "the second build said: {second}");
    let script = "skiff-hello; ls /var/lib/apt/lists /var/cache/apt/archives";
    let said = cli.run(["run", "--net", "none", "hello", "--", "sh", "-c", script])?;
    ensure!(
        said.starts_with("hello from a package\n") && !said.contains("skiff-words_"),
        "the image has {said:?}"
    );
    Ok(())
}

/// The archive's files by their names: packages, made by dpkg-deb, and the indices of a flat repository (sources.list(5)).
fn archive(dir: &Path) -> Result<HashMap<String, Vec<u8>>> {
    let (mut files, mut index) = (HashMap::new(), String::new());
    for (name, needs, program) in PACKAGES {
        let control = format!(
            "Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDepends: {needs}\nDescription: for tests\n"
        );
        let (tree, file) = (dir.join(name), format!("{name}_1.0_all.deb"));
        fs::create_dir_all(tree.join("DEBIAN"))?;
        fs::create_dir_all(tree.join("usr/bin"))?;
        fs::write(tree.join("DEBIAN/control"), &control)?;
        fs::write(tree.join("usr/bin").join(name), program)?;
        let made =
            Command::new("chmod").arg("-R").arg("0755").arg(&tree).status().context("cannot run chmod")?;
        ensure!(made.success(), "chmod ended with {made}");
        let path = dir.join(&file);
        let made =
            Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&tree).arg(&path).output();
        let made = made.context("cannot run dpkg-deb")?;
        ensure!(made.status.success(), "dpkg-deb: {}", String::from_utf8_lossy(&made.stderr));
        let bytes = fs::read(&path)?;
        let (hash, size) = (hash_of(dir, &bytes)?, bytes.len());
        index += &format!("{control}Filename: ./{file}\nSize: {size}\nSHA256: {hash}\n\n");
        files.insert(file, bytes);
    }
    let (hash, size) = (hash_of(dir, index.as_bytes())?, index.len());
    let release =
        format!("Origin: tests\nDate: Sun, 01 Jan 2023 00:00:00 UTC\nSHA256:\n {hash} {size} Packages\n");
    files.insert("Packages".to_owned(), index.into_bytes());
    files.insert("Release".to_owned(), release.into_bytes());
    Ok(files)
}
