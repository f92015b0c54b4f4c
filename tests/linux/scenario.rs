//! The tests themselves. Boots are what costs, so one boot checks all that fits into it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use skiff_tests::pattern::random;

use crate::bytes::hash;
use crate::facts::Facts;
use crate::vm::{Ended, Kernel, Vm};
use crate::{
    build, cloud, container, example, exec, folders, interrupts, life, network, packages, snapshots, sockets,
    systems, testing,
};

const MIB: usize = 1 << 20;

/// What is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// CPUs, memory, disks, entropy and console; a reboot in place; power off.
    Boot,
    /// A kernel panic ends the VM with a code of its own.
    Panic,
    /// Memory on both sides of the hole below 4 GiB.
    LargeMemory,
    /// Little memory: this kernel does not fit into half of it.
    SmallMemory,
    /// More processors than the host has.
    ManyCpus,
    /// The kernel as a plain ELF file.
    Vmlinux,
    /// Two guests of different releases and the host on a bridge.
    Bridge,
    /// A network without root.
    User,
    /// Its tap goes away.
    TapGone,
    /// Stream sockets to and from the host, with so many MiB each way.
    Vsock(u32),
    /// Commands and files by the agent.
    Exec,
    /// A gibibyte through a command, each way.
    Pipe,
    /// Folders of the host.
    Folders,
    /// A tree as large as the sources of a kernel in one.
    FoldersLarge,
    /// One command in many guests.
    Testing,
    /// Ctrl-C while that is done.
    Interrupts,
    /// The power button, pause, and a second start.
    Button,
    /// Memory that the guest gives back.
    Balloon,
    /// A disk that grows under the guest.
    GrowingDisk,
    /// The host's file system is full.
    FullDisk,
    /// Snapshots, rollback and clones of a guest with so many vCPUs that works.
    Live(u32),
    /// An image built from a file, and warm VMs.
    Build,
    /// An image with packages.
    Packages,
    /// A release of Debian, by its name.
    Debian(u32),
    /// The image of a container.
    Container,
    /// Disks of all formats.
    Disks,
    /// A user made by cloud-init.
    CloudInit,
    /// One program on three releases of Debian.
    Example,
}

impl Kind {
    fn word(self) -> String {
        let word = match self {
            Kind::Boot => "boot",
            Kind::Panic => "panic",
            Kind::LargeMemory => "large-memory",
            Kind::SmallMemory => "small-memory",
            Kind::ManyCpus => "many-cpus",
            Kind::Vmlinux => "vmlinux",
            Kind::Bridge => "bridge",
            Kind::User => "user-net",
            Kind::TapGone => "tap-gone",
            Kind::Vsock(_) => "vsock",
            Kind::Exec => "exec",
            Kind::Pipe => "pipe",
            Kind::Folders => "folders",
            Kind::FoldersLarge => "folders-large",
            Kind::Testing => "testing",
            Kind::Interrupts => "interrupts",
            Kind::Button => "button",
            Kind::Balloon => "balloon",
            Kind::GrowingDisk => "growing-disk",
            Kind::FullDisk => "full-disk",
            Kind::Build => "build",
            Kind::Packages => "packages",
            Kind::Debian(number) => return format!("debian-{number}"),
            Kind::Container => "container",
            Kind::Disks => "disks",
            Kind::CloudInit => "cloud-init",
            Kind::Example => "example",
            Kind::Live(1) => "live",
            Kind::Live(_) => "live-smp",
        };
        word.to_owned()
    }

    /// About how long it takes in a box: who begins with the long ones ends early.
    fn seconds(self) -> u32 {
        match self {
            Kind::Pipe => 300,
            Kind::Packages => 240,
            Kind::CloudInit | Kind::Build => 90,
            Kind::Example => 250,
            Kind::Live(cpus) if cpus > 1 => 120,
            Kind::FoldersLarge => 1800,
            Kind::Folders => 130,
            Kind::Exec => 110,
            Kind::Debian(_) => 90,
            Kind::Live(_) | Kind::Disks => 70,
            Kind::Vsock(mib) => 30 + mib / 8,
            Kind::Bridge | Kind::Balloon => 50,
            Kind::Boot => 35,
            Kind::Testing | Kind::Interrupts => 90,
            Kind::Container | Kind::User | Kind::Button => 25,
            Kind::TapGone | Kind::GrowingDisk | Kind::FullDisk | Kind::ManyCpus | Kind::Vmlinux => 15,
            Kind::Panic | Kind::LargeMemory | Kind::SmallMemory => 10,
        }
    }
}

/// One test: a kernel, a transport and what to do with them.
pub struct Scenario {
    kind: Kind,
    /// The kernel's directory, or the data directory with the images.
    kernel: PathBuf,
    transport: &'static str,
}

/// Every test for the kernels below `dir` and, if they are there, for the images of the user whose data directory is `systems`; the longest first.
///
/// # Errors
/// When there are no kernels.
pub fn all(dir: &Path, systems: Option<&Path>) -> Result<Vec<Scenario>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut kernels: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    kernels.retain(|kernel| kernel.join("initramfs").exists());
    kernels.sort();
    ensure!(!kernels.is_empty(), "no kernels in {}", dir.display());
    let mut list = Vec::new();
    for (name, transport, kind) in WITH_KERNELS {
        list.extend(kernels.iter().find(|path| path.ends_with(name)).map(|path| Scenario {
            kind: *kind,
            kernel: path.clone(),
            transport,
        }));
    }
    if let Some(data) = systems {
        let scenario = |kind: &Kind| Scenario { kind: *kind, kernel: data.to_owned(), transport: "pci" };
        list.extend(WITH_IMAGES.iter().map(scenario));
    }
    list.sort_by_key(|test| std::cmp::Reverse(test.kind.seconds()));
    Ok(list)
}

/// Kernels and what is done with each. What depends on a kernel is done with each release and with each flavour, on each transport, and not with every
/// combination of the three; what does not is done once.
const WITH_KERNELS: &[(&str, &str, Kind)] = &[
    ("12-generic", "pci", Kind::Live(1)),
    ("13-cloud", "mmio", Kind::Live(4)),
    ("11-cloud", "mmio", Kind::Live(1)),
    ("13-cloud", "pci", Kind::Live(1)),
    ("12-cloud", "mmio", Kind::Vsock(256)),
    ("13-cloud", "pci", Kind::Vsock(64)),
    ("12-cloud", "pci", Kind::Exec),
    ("12-cloud", "pci", Kind::Pipe),
    ("12-cloud", "pci", Kind::Folders),
    ("13-cloud", "mmio", Kind::Folders),
    ("12-cloud", "pci", Kind::FoldersLarge),
    ("12-cloud", "pci", Kind::Testing),
    ("12-cloud", "pci", Kind::Interrupts),
    ("13-cloud", "pci", Kind::Bridge),
    ("12-cloud", "pci", Kind::User),
    ("12-cloud", "pci", Kind::Button),
    ("11-cloud", "mmio", Kind::Button),
    ("13-cloud", "pci", Kind::Balloon),
    ("12-cloud", "mmio", Kind::GrowingDisk),
    ("12-cloud", "pci", Kind::TapGone),
    ("12-cloud", "pci", Kind::FullDisk),
    ("11-cloud", "pci", Kind::Boot),
    ("11-generic", "mmio", Kind::Boot),
    ("12-cloud", "mmio", Kind::Boot),
    ("12-generic", "pci", Kind::Boot),
    ("13-cloud", "pci", Kind::Boot),
    ("13-generic", "mmio", Kind::Boot),
    ("11-cloud", "mmio", Kind::Panic),
    ("12-generic", "pci", Kind::Panic),
    ("13-generic", "pci", Kind::Panic),
    ("12-cloud", "pci", Kind::LargeMemory),
    ("12-cloud", "pci", Kind::SmallMemory),
    ("13-cloud", "mmio", Kind::ManyCpus),
    ("12-generic", "pci", Kind::Vmlinux),
];

/// What is done with images.
const WITH_IMAGES: &[Kind] = &[
    Kind::Build,
    Kind::Packages,
    Kind::Debian(11),
    Kind::Debian(12),
    Kind::Debian(13),
    Kind::Container,
    Kind::Disks,
    Kind::CloudInit,
    Kind::Example,
];

impl Scenario {
    /// `<kernel>/<transport>/<what>`.
    pub fn name(&self) -> String {
        let kernel = self.kernel.file_name().unwrap_or_default().display();
        format!("{kernel}/{}/{}", self.transport, self.kind.word())
    }

    /// Whether it is left out unless somebody names it: what takes minutes in emulation.
    pub fn is_on_demand(&self) -> bool {
        matches!(self.kind, Kind::Pipe | Kind::Packages | Kind::FoldersLarge)
    }

    /// Runs it in a directory of its own below `work`.
    ///
    /// # Errors
    /// What went wrong.
    pub fn run(&self, skiff: &Path, work: &Path) -> Result<()> {
        let dir = work.join(self.name().replace('/', "-"));
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let kernel = Kernel { dir: &self.kernel, transport: self.transport };
        let vm = Vm {
            skiff,
            kernel: self.kernel.join("vmlinuz"),
            initrd: self.kernel.join("initramfs"),
            actions: "poweroff",
            cpus: 1,
            memory: 256,
            transport: self.transport,
            disks: Vec::new(),
            dir: &dir,
        };
        match self.kind {
            Kind::Boot => boot(vm),
            Kind::Panic => panic(Vm { actions: "panic", ..vm }),
            Kind::LargeMemory => size(Vm { memory: 5120, ..vm }),
            Kind::SmallMemory => size(Vm { memory: 128, ..vm }),
            Kind::ManyCpus => size(Vm { cpus: 8, memory: 512, ..vm }),
            Kind::Vmlinux => size(Vm { kernel: self.kernel.join("vmlinux"), ..vm }),
            Kind::Bridge => {
                let older = Kernel { dir: &self.kernel.with_file_name("12-cloud"), ..kernel };
                network::bridge(skiff, &older, &kernel, &dir)
            }
            Kind::Build => build::build(skiff, &self.kernel, &dir),
            Kind::Packages => packages::packages(skiff, &self.kernel, &dir),
            Kind::Debian(number) => systems::debian(skiff, &self.kernel, number, &dir),
            Kind::Container => container::container(skiff, &self.kernel, &dir),
            Kind::Disks => container::disks(skiff, &self.kernel, &dir),
            Kind::CloudInit => cloud::init(skiff, &self.kernel, &dir),
            Kind::Example => example::example(skiff, &self.kernel, &dir),
            Kind::User => network::user(skiff, &kernel, &dir),
            Kind::TapGone => network::tap_gone(skiff, &kernel, &dir),
            Kind::Vsock(mib) => sockets::vsock(skiff, &kernel, &dir, u64::from(mib)),
            Kind::Exec => exec::exec(skiff, &kernel, &dir),
            Kind::Pipe => exec::pipe(skiff, &kernel, &dir),
            Kind::Folders => folders::folders(skiff, &kernel, &dir),
            Kind::FoldersLarge => folders::large(skiff, &kernel, &dir),
            Kind::Testing => testing::testing(skiff, &kernel, &dir),
            Kind::Interrupts => interrupts::interrupts(skiff, &kernel, &dir),
            Kind::Button => life::button(skiff, &kernel, &dir),
            Kind::Balloon => life::balloon(skiff, &kernel, &dir),
            Kind::GrowingDisk => life::growing_disk(skiff, &kernel, &dir),
            Kind::FullDisk => life::full_disk(skiff, &kernel, &dir),
            Kind::Live(cpus) => snapshots::live(skiff, &kernel, cpus, &dir),
        }?;
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))
    }
}

fn boot(vm: Vm<'_>) -> Result<()> {
    let (first, second) = (vm.dir.join("a.img"), vm.dir.join("b.img"));
    let file = File::create(&first).context("cannot make a disk")?;
    file.set_len(16 * MIB as u64).context("cannot make a disk")?;
    fs::write(&second, random(0, 2 * MIB)).context("cannot make a disk")?;
    let before = hash(&second, 2 * MIB)?;
    let vm = Vm {
        actions: "console,rng,write,readonly,reboot-once,check,poweroff",
        cpus: 2,
        disks: vec![
            format!("path={},serial=skiff-one", first.display()),
            format!("path={},readonly=on", second.display()),
        ],
        ..vm
    };
    let ended = vm.run()?;
    ended.expect_code(0)?;
    let facts = Facts::of(&ended.serial);
    judge_boot(&vm, &facts, &first, &second)
        .and_then(|()| {
            ensure!(
                ended.console.contains("skiff-guest: hello from hvc0"),
                "nothing came over the virtio console"
            );
            ensure!(hash(&second, 2 * MIB)? == before, "the read-only disk has changed");
            Ok(())
        })
        .map_err(|error| anyhow!("{error:#}{}", ended.tails()))
}

fn judge_boot(vm: &Vm<'_>, facts: &Facts, first: &Path, second: &Path) -> Result<()> {
    judge_size(vm, facts)?;
    ensure!(facts.count("ready") == 2, "the guest came up {} times, not twice", facts.count("ready"));
    facts.last("rebooted")?;
    let written = facts.last("write")?.get("sha256")?;
    ensure!(hash(first, 4 * MIB)? == written, "the host's file does not hold what the guest wrote");
    facts.last("check")?.expect("sha256", written)?;
    facts.last("check")?.expect("serial", "skiff-one")?;
    let readonly = facts.last("readonly")?;
    readonly.expect("flag", "1")?;
    readonly.expect("written", "no")?;
    readonly.expect("sha256", &hash(second, MIB)?)?;
    let rng = facts.last("rng")?;
    ensure!(rng.get("source")?.starts_with("virtio_rng"), "the entropy source is {}", rng.get("source")?);
    ensure!(rng.get("bytes")?.len() == 32, "the entropy device gave {}", rng.get("bytes")?);
    Ok(())
}

fn panic(vm: Vm<'_>) -> Result<()> {
    let ended = vm.run()?;
    ended.expect_code(3)?;
    Facts::of(&ended.serial).no_problems()?;
    // The reason is among the last console lines, which stderr repeats.
    ensure!(ended.stderr.contains("sysrq triggered crash"), "stderr does not say why{}", ended.tails());
    Ok(())
}

/// A boot that looks at the machine and ends.
fn size(vm: Vm<'_>) -> Result<()> {
    let ended: Ended = vm.run()?;
    ended.expect_code(0)?;
    judge_size(&vm, &Facts::of(&ended.serial)).map_err(|error| anyhow!("{error:#}{}", ended.tails()))
}

fn judge_size(vm: &Vm<'_>, facts: &Facts) -> Result<()> {
    facts.no_problems()?;
    for ready in facts.all("ready") {
        let cpus = if vm.cpus == 1 { "0".into() } else { format!("0-{}", vm.cpus - 1) };
        ready.expect("cpus", &cpus)?;
        let memory: u32 = ready.get("memory")?.trim_end_matches('K').parse().context("the guest's memory")?;
        let (memory, whole) = (memory / 1024, vm.memory);
        // The kernel keeps some for itself: its own image and a 64th for the page structures.
        ensure!(
            memory <= whole && memory + 64 + whole / 32 > whole,
            "the guest sees {memory} of {whole} MiB"
        );
    }
    facts.last("ready").map(|_| ())
}
