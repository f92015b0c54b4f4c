//! The example of `skiff test`: one program on three releases of Debian, the oldest of which lacks what it needs.

use std::fs;
use std::path::Path;
use std::process::Output;

use anyhow::{Context, Result, ensure};

use crate::systems::Home;

/// It fails on the oldest and passes on the others, as its table, its JSON and its exit code say; and so it does again, without a boot.
///
/// # Errors
/// What is not as it should be.
pub fn example(skiff: &Path, data: &Path, dir: &Path) -> Result<()> {
    let home = Home::new(skiff, data, dir)?;
    let project = dir.join("ticker");
    fs::create_dir(&project)?;
    let from = data.join("ticker");
    for entry in fs::read_dir(&from).with_context(|| format!("{} was not made", from.display()))? {
        let path = entry?.path();
        fs::copy(&path, project.join(path.file_name().unwrap_or_default()))?;
    }
    let test = || -> Result<(Output, String, String)> {
        let mut command = home.cli.command(["test", "--json", "all.json"]);
        let output = command.current_dir(&project).output().context("cannot run skiff")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (table, said) = (text(&output.stdout), text(&output.stderr));
        judge(&output, &table, &project).with_context(|| format!("{table}\n{said}"))?;
        Ok((output, table, said))
    };
    let (.., said) = test()?;
    ensure!(said.matches("] boot …").count() == 3, "not three boots: {said}");
    ensure!(said.contains("version `GLIBC_2.35' not found"), "it fails for another reason: {said}");
    let (_, table, said) = test()?;
    ensure!(
        said.matches("] warm, from ").count() == 3 && !said.contains("] boot …"),
        "the second run: {said}"
    );
    println!("{}", table.lines().last().unwrap_or_default());
    Ok(())
}

fn judge(output: &Output, table: &str, project: &Path) -> Result<()> {
    ensure!(output.status.code() == Some(1), "it ended with {}", output.status);
    let json = fs::read_to_string(project.join("all.json")).context("there is no JSON")?;
    let json: serde_json::Value = serde_json::from_str(&json).context("the JSON is none")?;
    for (at, (release, word, verdict)) in
        [(11, "FAILED", "failed"), (12, "passed", "passed"), (13, "passed", "passed")].into_iter().enumerate()
    {
        let name = format!("debian:{release}");
        let row = |line: &&str| line.split_whitespace().next() == Some(&name);
        let line = table.lines().find(row).unwrap_or_default();
        ensure!(line.split_whitespace().nth(1) == Some(word), "{name} is told as {line:?}");
        let test = &json["tests"][at];
        ensure!(test["name"] == name.as_str() && test["verdict"] == verdict, "the JSON has {test}");
        let ticks =
            fs::read_to_string(project.join(format!("skiff-test/debian-{release}/artifacts/ticks.log")));
        let ticks = ticks.with_context(|| format!("the artifact of {name}"))?;
        ensure!(ticks.lines().count() == if release == 11 { 0 } else { 3 }, "{name} has ticked: {ticks:?}");
    }
    ensure!(json["tests"][0]["runs"][0]["kept"]["vm"].is_string(), "nothing is kept of what failed: {json}");
    Ok(())
}
