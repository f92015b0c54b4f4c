//! Folders of the host in a guest: a stock kernel's virtiofs, mounted by the agent.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use skiff_tests::{pattern::random, tree};

use crate::cli::Cli;
use crate::exec::{shell, with_agent};
use crate::vm::Kernel;

/// Files of a tree that is copied there and back.
const FILES: usize = 3000;
/// What makes one number of all files in a directory.
const SUMS: &str = "find . -type f | sort | xargs sha256sum | sha256sum";

/// Mounts, what programs expect of files, copies by hash, read-only, escapes, and snapshots of a guest that has files open.
pub fn folders(skiff: &Path, kernel: &Kernel, dir: &Path) -> Result<()> {
    let cli = Cli::new(skiff, dir)?;
    let host = dir.join("host");
    for name in ["shared", "given"] {
        fs::create_dir_all(host.join(name))?;
    }
    fs::write(host.join("secret"), "secret")?;
    fs::write(host.join("given/file"), "given")?;
    let volume = |name: &str, to: &str| format!("{}:{to}", host.join(name).display());
    let volumes = [volume("shared", "/srv/a b"), volume("given", "/given:ro")];
    let shared = host.join("shared");
    let checks = || {
        start(&cli, kernel, dir, &volumes)?;
        programs(&cli, &shared)?;
        trees(&cli, &shared)?;
        readonly(&cli, &host)?;
        escapes(&cli, &host)?;
        snapshots(&cli, &shared)
    };
    cli.told(checks())?;
    cli.run(["kill", "worker"])?;
    ensure!(fs::read_to_string(host.join("secret"))? == "secret", "what is beside the folder was changed");
    ensure!(fs::read_dir(&host)?.count() == 3, "something was made beside the folder");
    Ok(())
}

/// A guest called `worker` that has these volumes.
fn start(cli: &Cli<'_>, kernel: &Kernel, dir: &Path, volumes: &[String]) -> Result<()> {
    let initrd = with_agent(cli, kernel, dir)?;
    let image = kernel.image();
    let mut words =
        vec!["run", "-d", "--name", "worker", "--kernel", &image, "--initrd", &initrd, "--memory", "512M"];
    words.extend(["--transport", kernel.transport, "--cmdline", "console=ttyS0 quiet skiff.do=agent,idle"]);
    words.extend(volumes.iter().flat_map(|volume| ["-v", volume]));
    cli.run(words)?;
    cli.run(["wait", "--ready", "--timeout", "240", "worker"])?;
    Ok(())
}

/// A tree as large as the sources of a kernel, copied within a folder and compared by hash.
pub fn large(skiff: &Path, kernel: &Kernel, dir: &Path) -> Result<()> {
    let cli = Cli::new(skiff, dir)?;
    let shared = dir.join("shared");
    let bytes = tree::make(&shared.join("tree"))?;
    let sums = |name: &str| -> Result<String> {
        let said = Command::new("sh").args(["-c", SUMS]).current_dir(shared.join(name)).output()?;
        Ok(String::from_utf8_lossy(&said.stdout).trim_end().to_owned())
    };
    let here = sums("tree")?;
    let mut last = Instant::now();
    let mut lap = |what: &str| {
        println!(
            "{what}: {} files, {} MiB in {:.0} s",
            tree::FILES,
            bytes >> 20,
            last.elapsed().as_secs_f64()
        );
        last = Instant::now();
    };
    let mut checks = || {
        start(&cli, kernel, dir, &[format!("{}:/shared", shared.display())])?;
        lap("made, hashed and shared");
        shell(&cli, "cp -a /shared/tree /shared/copy && sync")?;
        lap("copied in the guest");
        ensure!(sums("copy")? == here, "the guest's copy is another");
        lap("hashed on the host");
        let there = shell(&cli, &format!("echo 3 >/proc/sys/vm/drop_caches; cd /shared/copy && {SUMS}"))?;
        ensure!(there == here, "the guest reads other files");
        lap("hashed in the guest");
        shell(&cli, "rm -r /shared/copy")?;
        lap("removed in the guest");
        ensure!(!shared.join("copy").exists(), "what the guest removed is still there");
        Ok(())
    };
    cli.told(checks())?;
    cli.run(["kill", "worker"])?;
    Ok(())
}

/// What programs expect of files, and what the host sees of it.
fn programs(cli: &Cli<'_>, shared: &Path) -> Result<()> {
    let said = shell(cli, "mkdir '/srv/a b/checks' && guest-tool folder '/srv/a b/checks'")?;
    ensure!(!said.contains("problem") && said.matches("=ok").count() == 15, "{said}");
    let checks = shared.join("checks");
    ensure!(fs::metadata(checks.join("pipes/pipe"))?.file_type().is_fifo(), "the pipe is none on the host");
    ensure!(
        fs::read(checks.join("mapped/a"))?.get(5000) == Some(&b'm'),
        "what was mapped is not on the host"
    );
    ensure!(
        fs::read_link(checks.join("links/soft"))? == Path::new("hard"),
        "a link leads elsewhere on the host"
    );
    // What the host changes, the guest sees.
    fs::write(shared.join("news"), "old")?;
    ensure!(shell(cli, "cat '/srv/a b/news'")? == "old", "the guest does not see a file of the host's");
    fs::write(shared.join("news"), "new and longer")?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    ensure!(
        shell(cli, "cat '/srv/a b/news'")? == "new and longer",
        "the guest does not see what the host changed"
    );
    Ok(())
}

/// A tree and a large file, by hash there and back.
fn trees(cli: &Cli<'_>, shared: &Path) -> Result<()> {
    let tree = shared.join("tree");
    for number in 0..FILES {
        let below = tree.join(format!("{}/{}", number % 10, number % 100));
        if number < 100 {
            fs::create_dir_all(&below)?;
        }
        fs::write(below.join(number.to_string()), format!("{number}\n").repeat(number % 50))?;
    }
    symlink("0/0/0", tree.join("link"))?;
    fs::write(tree.join("large"), random(0, 24 << 20))?;
    let here = Command::new("sh").args(["-c", SUMS]).current_dir(&tree).output()?;
    let here = String::from_utf8_lossy(&here.stdout).trim_end().to_owned();
    ensure!(shell(cli, &format!("cd '/srv/a b/tree' && {SUMS}"))? == here, "the guest reads other files");
    shell(cli, "cp -a '/srv/a b/tree' '/srv/a b/copy' && sync")?;
    let differ = Command::new("diff")
        .arg("-r")
        .arg("--no-dereference")
        .arg(&tree)
        .arg(shared.join("copy"))
        .output()?;
    ensure!(
        differ.status.success(),
        "the guest's copy is another: {}",
        String::from_utf8_lossy(&differ.stdout).chars().take(500).collect::<String>()
    );
    shell(cli, "rm -r '/srv/a b/copy'")?;
    ensure!(!shared.join("copy").exists(), "what the guest removed is still there");
    Ok(())
}

fn readonly(cli: &Cli<'_>, host: &Path) -> Result<()> {
    let said = shell(cli, "guest-tool folder-readonly /given")?;
    ensure!(said.contains("readonly refused=given"), "{said}");
    // Also for a guest that thinks otherwise.
    let said = shell(cli, "mount -o remount,rw /given; guest-tool folder-readonly /given")?;
    ensure!(said.contains("readonly refused=given"), "mounted to be written: {said}");
    ensure!(
        fs::read_dir(host.join("given"))?.count() == 1,
        "something was made in a folder that is read-only"
    );
    Ok(())
}

/// Links that lead out lead to the guest's own files.
fn escapes(cli: &Cli<'_>, host: &Path) -> Result<()> {
    let shared = host.join("shared");
    symlink("../secret", shared.join("up"))?;
    symlink(host.join("secret"), shared.join("out"))?;
    symlink("/etc/passwd", shared.join("etc"))?;
    let said = shell(
        cli,
        "cd '/srv/a b'; cat up out 2>/dev/null; cat ../../../secret 2>/dev/null; cat etc; \
         ln -s ../.. dots; ls dots/; echo x >dots/made; ls -a",
    )?;
    ensure!(!said.contains("secret"), "the guest read it: {said}");
    ensure!(said.contains("root:x:0:0"), "a link does not lead to the guest's own file: {said}");
    ensure!(
        !host.join("made").exists() && !host.parent().is_some_and(|dir| dir.join("made").exists()),
        "made outside"
    );
    Ok(())
}

/// Files that are open go on after a rollback and in a clone, and what is gone is said to be.
fn snapshots(cli: &Cli<'_>, shared: &Path) -> Result<()> {
    fs::write(shared.join("log"), "")?;
    File::create(shared.join("doomed"))?;
    // By read(2), before which the kernel asks the host for the file's attributes. `cat` takes sendfile(2), and that answers for an
    // empty file (since Linux 6.5), or from memory, without asking anybody.
    let turns = "while :; do echo beat >&3; dd bs=1 count=1 <&4 2>&1 >/dev/null | grep -i stale >>/tmp/doomed; sleep 0.2; done";
    shell(cli, &format!("cd '/srv/a b'; (exec 3>>log 4<doomed; {turns}) >/dev/null 2>&1 &"))?;
    let beats = || -> Result<usize> { Ok(fs::read_to_string(shared.join("log"))?.matches("beat").count()) };
    let goes_on = || -> Result<()> {
        let before = beats()?;
        for _ in 0..600 {
            if beats()? > before + 2 {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        anyhow::bail!("the guest writes no more")
    };
    goes_on()?;
    cli.run(["snapshot", "create", "worker", "s1"])?;
    goes_on()?;
    cli.run(["rollback", "worker", "s1"])?;
    goes_on()?;
    cli.run(["wait", "--ready", "--timeout", "240", "worker"])?;
    ensure!(
        shell(cli, "cat '/srv/a b/news'")? == "new and longer",
        "the folder is not mounted after a rollback"
    );
    fs::remove_file(shared.join("doomed"))?;
    cli.run(["clone", "worker@s1", "--name", "other"])?;
    cli.run(["wait", "--ready", "--timeout", "240", "other"])?;
    // When its turn comes, which is soon.
    let script = "for turn in $(seq 300); do [ -s /tmp/doomed ] && break; sleep 0.2; done; cat /tmp/doomed '/srv/a b/news'";
    let said = cli.run(["exec", "other", "sh", "-c", script])?;
    ensure!(said.contains("Stale") || said.contains("stale"), "what is gone is not said to be: {said}");
    ensure!(said.contains("new and longer"), "a clone does not have the folder: {said}");
    cli.run(["kill", "other"])?;
    Ok(())
}
