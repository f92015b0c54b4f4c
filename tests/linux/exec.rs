//! Commands and files by the agent in a guest, which runs as its init's child.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use skiff_tests::pattern::random;

use crate::cli::Cli;
use crate::systems::BOOT;
use crate::vm::Kernel;

/// How much goes through a pipe each way: an emulated guest hashes a few MiB a second.
const PIPED: usize = 64 << 20;
/// The same where there is time.
const PIPED_LONG: usize = 1 << 30;
/// An emulated guest on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(240);
/// Commands at once.
const MANY: usize = 50;
/// Files of a tree that is copied there and back.
const FILES: usize = 10_000;

/// Exit codes, signals, pipes, a terminal, many at once, trees, and an agent that dies and comes again.
pub fn exec(skiff: &Path, kernel: &Kernel, dir: &Path) -> Result<()> {
    let cli = start(skiff, kernel, dir)?;
    cli.told(checks(&cli, dir))?;
    killed(&cli)
}

/// A gibibyte each way.
pub fn pipe(skiff: &Path, kernel: &Kernel, dir: &Path) -> Result<()> {
    let cli = start(skiff, kernel, dir)?;
    let piped = cli
        .run(["wait", "--ready", "--timeout", BOOT, "worker"])
        .and_then(|_| through_pipes(&cli, dir, PIPED_LONG));
    cli.told(piped)?;
    cli.run(["kill", "worker"]).map(drop)
}

/// A guest with the agent.
fn start<'a>(skiff: &'a Path, kernel: &Kernel, dir: &Path) -> Result<Cli<'a>> {
    let cli = Cli::new(skiff, dir)?;
    let initrd = with_agent(&cli, kernel, dir)?;
    let image = kernel.image();
    let guest = [
        "run",
        "-d",
        "--name",
        "worker",
        "--vsock",
        "auto",
        "--kernel",
        &image,
        "--initrd",
        &initrd,
        "--memory",
        "1G",
        "--cpus",
        "2",
        "--transport",
        kernel.transport,
        "--cmdline",
        "console=ttyS0 quiet skiff.do=agent,idle",
    ];
    cli.run(guest)?;
    Ok(cli)
}

/// All that is asked of the guest.
fn checks(cli: &Cli<'_>, dir: &Path) -> Result<()> {
    cli.run(["wait", "--ready", "--timeout", BOOT, "worker"])?;
    ensure!(
        cli.run(["inspect", "--json", "worker"])?.contains("\"ready\": true"),
        "inspect does not say ready"
    );
    codes(cli)?;
    streams(cli, dir)?;
    terminal(cli, dir)?;
    many(cli)?;
    trees(cli, dir)?;
    dies(cli)?;
    let events = cli.run(["events", "--json", "--no-follow", "--since", "all", "worker"])?;
    ensure!(events.matches("\"ready\"").count() == 2, "events do not tell twice of 'ready': {events}");
    Ok(())
}

/// The kernel's initrd with the agent behind it: one archive more.
pub fn with_agent(cli: &Cli<'_>, kernel: &Kernel, dir: &Path) -> Result<String> {
    let program = dir.join("skiff-agent");
    cli.run([Path::new("agent"), &program])?;
    let initrd = kernel.initrd(dir)?;
    let mut archive = Vec::new();
    entry(&mut archive, "bin/skiff-agent", 0o100_755, &fs::read(&program)?);
    entry(&mut archive, "TRAILER!!!", 0, &[]);
    File::options().append(true).open(&initrd)?.write_all(&archive)?;
    Ok(initrd)
}

/// One entry of a newc archive (Documentation/driver-api/early-userspace/buffer-format.rst).
fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let words = [1, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    archive.extend(b"070701");
    words.iter().for_each(|word| archive.extend(format!("{word:08x}").bytes()));
    archive.extend(name.bytes().chain([0]));
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// `skiff exec worker` with these words behind it.
fn exec_in(cli: &Cli<'_>, words: &[&str]) -> Command {
    // Of a VM that was not made of an image an agent is expected to answer at once, unless somebody says how long it may take.
    cli.command([&["exec", "--timeout", BOOT, "worker"], words].concat())
}

/// What `sh -c` prints, without the last newline.
pub fn shell(cli: &Cli<'_>, script: &str) -> Result<String> {
    Ok(cli.run(["exec", "worker", "sh", "-c", script])?.trim_end().to_owned())
}

fn codes(cli: &Cli<'_>) -> Result<()> {
    for code in [0, 1, 42, 125, 126, 127, 128, 255] {
        let status = exec_in(cli, &["sh", "-c", &format!("exit {code}")]).status()?;
        ensure!(status.code() == Some(code), "exit {code} came as {status}");
    }
    for (words, code) in [
        (&["no-such-command"][..], 127),
        (&["/init.sh/x"], 127),
        (&["/proc/version"], 126),
        (&["sh", "-c", "kill -9 $$"], 137),
        (&["sh", "-c", "kill -15 $$"], 143),
    ] {
        let status = exec_in(cli, words).stderr(Stdio::null()).status()?;
        ensure!(status.code() == Some(code), "{words:?} ended with {status}, not {code}");
    }
    // A signal of this side is the command's.
    let mut sleeping =
        exec_in(cli, &["sh", "-c", "trap 'exit 7' USR1; echo trapped; while :; do sleep 0.1; done"])
            .stdout(Stdio::piped())
            .spawn()?;
    let mut line = [0; 8];
    sleeping.stdout.take().context("no pipe")?.read_exact(&mut line)?;
    signal(&sleeping, libc::SIGUSR1);
    let status = sleeping.wait()?;
    ensure!(status.code() == Some(7), "a trapped signal ended it with {status}");
    let words = ["exec", "-e", "A=b c", "-w", "/proc", "worker", "sh", "-c", "echo $A $PWD"];
    ensure!(cli.run(words)? == "b c /proc\n", "environment or directory are lost");
    Ok(())
}

/// Sends `child` a signal.
pub fn signal(child: &Child, signal: i32) {
    let pid = i32::try_from(child.id()).unwrap_or(0);
    // SAFETY: touches no memory; the process is a child of this one that nobody has waited for.
    unsafe { libc::kill(pid, signal) };
}

fn streams(cli: &Cli<'_>, dir: &Path) -> Result<()> {
    through_pipes(cli, dir, PIPED)?;
    let output = exec_in(cli, &["sh", "-c", "echo out; echo err >&2"]).output()?;
    ensure!(
        (&output.stdout[..], &output.stderr[..]) == (b"out\n", b"err\n"),
        "streams are mixed: {output:?}"
    );
    Ok(())
}

/// So many bytes to the guest, which hashes them, and as many there and back.
fn through_pipes(cli: &Cli<'_>, dir: &Path, bytes: usize) -> Result<()> {
    let path = dir.join("noise");
    fs::write(&path, random(0, bytes))?;
    let wanted = sum(Stdio::from(File::open(&path)?))?;
    let start = Instant::now();
    let output = cli.command(["exec", "-i", "worker", "sha256sum"]).stdin(File::open(&path)?).output()?;
    let came = first_word(&output.stdout);
    ensure!(came == wanted, "{bytes} bytes to the guest came as {came:?}, not {wanted}");
    let to = start.elapsed();
    let mut cat = cli
        .command(["exec", "-i", "worker", "cat"])
        .stdin(File::open(&path)?)
        .stdout(Stdio::piped())
        .spawn()?;
    let came = sum(Stdio::from(cat.stdout.take().context("no pipe")?))?;
    let status = cat.wait()?;
    ensure!(
        status.success() && came == wanted,
        "{bytes} bytes there and back came as {came:?}, not {wanted}"
    );
    let (mib, there) = ((bytes >> 20) as f64, start.elapsed().saturating_sub(to).as_secs_f64());
    println!(
        "{mib} MiB: to a hash {:.1} MiB/s, there and back {:.1} MiB/s",
        mib / to.as_secs_f64().max(0.1),
        mib / there.max(0.1)
    );
    Ok(())
}

/// The SHA-256 of what comes, by coreutils.
fn sum(from: Stdio) -> Result<String> {
    let output = Command::new("sha256sum").stdin(from).output().context("cannot run sha256sum")?;
    Ok(first_word(&output.stdout))
}

fn first_word(output: &[u8]) -> String {
    String::from_utf8_lossy(output).split(' ').next().unwrap_or_default().to_owned()
}

/// `script` of util-linux is the user: its terminal is skiff's.
fn terminal(cli: &Cli<'_>, dir: &Path) -> Result<()> {
    let skiff = cli.command(["shell", "worker"]);
    let (program, resize) = (skiff.get_program().display().to_string(), dir.join("resize"));
    let inner = format!(
        "stty rows 33 cols 101; (until [ -e {} ]; do sleep 0.2; done; stty rows 44 cols 122 </dev/tty) & {program} shell worker; echo code=$?",
        resize.display()
    );
    let mut script = Command::new("script");
    script
        .args(["-qefc", &inner, "/dev/null"])
        .envs(skiff.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut typist = Typist::start(&mut script)?;
    // The shell's prompt is not waited for: the terminal keeps what is typed until somebody reads it.
    typist.types("stty size\n", "33 101")?;
    // What is typed is printed, too, but with quotes.
    typist.types("echo slee''ps; sleep 10000\n", "sleeps")?;
    typist.types("\x03", "^C")?;
    typist.types("echo go''es on\n", "goes on")?;
    fs::write(&resize, "").context("cannot write a file")?;
    // The new size comes in its own time.
    typist.types("until [ \"$(stty size)\" = '44 122' ]; do sleep 0.2; done; echo res''ized\n", "resized")?;
    typist.types("exit 9\n", "code=9")
}

/// Somebody at a terminal, who types and reads. What he started is gone with him.
struct Typist {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Typist {
    fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.context("cannot run script")?;
        let mut pipe = child.stdout.take().context("no pipe")?;
        let said = Arc::new(Mutex::new(String::new()));
        let heard = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..length]);
                heard.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
            }
        });
        Ok(Self { child, said })
    }

    /// Types, and waits until he reads `answer`, which he has not read before.
    fn types(&mut self, keys: &str, answer: &str) -> Result<()> {
        let said = || self.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ensure!(!said().contains(answer), "the terminal showed '{answer}' too early: {:?}", said());
        self.child.stdin.as_mut().context("no pipe")?.write_all(keys.as_bytes())?;
        let start = Instant::now();
        while !said().contains(answer) {
            ensure!(start.elapsed() < PATIENCE, "the terminal never showed '{answer}': {:?}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Typist {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn many(cli: &Cli<'_>) -> Result<()> {
    let start = |number: usize| {
        let script = format!("sleep 1; echo {number}; exit {number}");
        exec_in(cli, &["sh", "-c", &script]).stdout(Stdio::piped()).spawn()
    };
    let children: Vec<Child> = (0..MANY).map(start).collect::<Result<_, _>>()?;
    for (number, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let right = said.trim() == number.to_string() && output.status.code() == i32::try_from(number).ok();
        ensure!(right, "command {number} of {MANY} said {said:?} and ended with {}", output.status);
    }
    Ok(())
}

fn trees(cli: &Cli<'_>, dir: &Path) -> Result<()> {
    let tree = dir.join("tree");
    for number in 0..FILES {
        let below = tree.join(format!("{}/{}", number % 10, number % 100));
        if number < 100 {
            fs::create_dir_all(&below)?;
        }
        fs::write(below.join(number.to_string()), format!("{number}\n").repeat(number % 50))?;
    }
    std::os::unix::fs::symlink("0/0/0", tree.join("link"))?;
    let (from, back) = (tree.display().to_string(), dir.join("returned").display().to_string());
    cli.run(["cp", &from, "worker:/"])?;
    ensure!(shell(cli, "find /tree -type f | wc -l")? == FILES.to_string(), "files are missing in the guest");
    cli.run(["cp", "worker:/tree", &back])?;
    let differ = Command::new("diff").args(["-r", "--no-dereference", &from, &back]).output()?;
    ensure!(
        differ.status.success(),
        "the tree came back as another: {}",
        String::from_utf8_lossy(&differ.stdout)
    );
    let file = dir.join("one").display().to_string();
    cli.run(["cp", "worker:/tree/1/1/1", &file])?;
    ensure!(fs::read(&file)? == b"1\n", "a file came as another");
    Ok(())
}

/// Of a VM that is killed its commands know why they ended.
fn killed(cli: &Cli<'_>) -> Result<()> {
    let mut running = exec_in(cli, &["sh", "-c", "echo runs; sleep 1000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    running.stdout.as_mut().context("no pipe")?.read_exact(&mut [0; 5])?;
    cli.run(["kill", "worker"])?;
    let output = running.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(125) && said.contains("worker ended meanwhile (killed)"),
        "the command of a VM that was killed: {}: {said}",
        output.status
    );
    Ok(())
}

/// An agent that dies takes its commands with it, and one that is started again is found.
fn dies(cli: &Cli<'_>) -> Result<()> {
    let running = exec_in(cli, &["sleep", "1000"]).stderr(Stdio::piped()).spawn()?;
    let killing = exec_in(cli, &["sh", "-c", "killall -9 skiff-agent"]).stderr(Stdio::null()).status()?;
    ensure!(killing.code() == Some(125), "who killed the agent ended with {killing}");
    let output = running.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(125) && said.contains("broke"),
        "a lost command: {}: {said}",
        output.status
    );
    cli.run(["wait", "--ready", "--timeout", BOOT, "worker"])?;
    ensure!(shell(cli, "echo again")? == "again", "the agent that came again runs nothing");
    Ok(())
}
