//! cloud-init, in a Debian as clouds have it but for what would make it slow.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::systems::{BOOT, Home};

const USER_DATA: &str = "#cloud-config
users:
  - name: tester
    uid: '4711'
    shell: /bin/sh
write_files:
  - path: /etc/written
    content: by cloud-init
";

/// What it reads on its seed disk is done: a user and a file.
///
/// # Errors
/// What is not as it should be.
pub fn init(skiff: &Path, data: &Path, dir: &Path) -> Result<()> {
    let home = Home::new(skiff, data, dir)?;
    let user_data = dir.join("user-data");
    fs::write(&user_data, USER_DATA).context("cannot write the user data")?;
    let words = ["run", "-d", "--name", "guest", "--net", "none", "--user-data"].map(Path::new);
    let started = home.cli.run(words.into_iter().chain([&*user_data, Path::new("cloud:12")]));
    home.cli.told(started)?;
    let checks = || -> Result<()> {
        home.cli.run(["wait", "--ready", "--timeout", BOOT, "guest"])?;
        let shell = |script: &str| home.cli.run(["exec", "guest", "sh", "-c", script]);
        home.cli.until("cloud-init is done", || {
            Ok(shell("systemctl is-active cloud-init.service || true")? == "active\n")
        })?;
        let found = shell("id -u tester; cat /etc/written")?;
        ensure!(found == "4711\nby cloud-init", "cloud-init has left {found:?}");
        let output = home.cli.run(["exec", "-u", "tester", "guest", "id", "-un"])?;
        ensure!(output == "tester\n", "a command of that user says {output:?}");
        Ok(())
    };
    home.cli.told(checks())
}
