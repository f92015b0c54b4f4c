//! [`Asked`]: what was asked for, by flags or by a file, before defaults are filled in.

use std::ffi::OsStr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use toml::de::DeTable;
use vmm::spec::{
    DiskSpec, FolderSpec, Memory, MemorySpec, PortForward, SpecError, Stream, Transport, VmSpec, VsockSpec,
};

use super::net::{self, NetAsked};
use super::options::FLAGS;
use super::seed::Key;
use super::template::Template;
use super::volume::{self, Volume};
use crate::cmd::exec::Wishes;
use crate::cmd::point::Point;
use crate::exec::Wish;
use crate::exit::Usage;
use crate::flags::closest;

/// The memory of a VM that nobody chose.
const DEFAULT_MEMORY: MemorySpec =
    MemorySpec { size: Memory(512 << 20), hugepages: false, overcommit: false };

/// What was asked for. Every path in it is absolute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Asked {
    /// See [`VmSpec::kernel`]; so are all up to `vsock`.
    pub kernel: Option<PathBuf>,
    pub initrd: Option<PathBuf>,
    pub cmdline: Option<String>,
    /// Wider than the spec's, so that `cpus = 300` is answered by the spec's own message.
    pub cpus: Option<u64>,
    pub memory: Option<MemorySpec>,
    pub transport: Option<Transport>,
    pub serial: Option<Stream>,
    pub console: Option<Stream>,
    pub balloon: Option<bool>,
    #[serde(default)]
    pub disk: Vec<DiskSpec>,
    #[serde(default)]
    pub net: Vec<NetAsked>,
    #[serde(default)]
    pub publish: Vec<PortForward>,
    pub vsock: Option<VsockSpec>,
    #[serde(default)]
    pub fs: Vec<FolderSpec>,
    /// Folders that the agent mounts.
    #[serde(default)]
    pub volume: Vec<Volume>,
    /// What the guest is not to see of the host's processor.
    pub cpu_template: Option<Template>,
    /// What cloud-init is told; so are the next three.
    pub user_data: Option<PathBuf>,
    pub meta_data: Option<PathBuf>,
    pub network_config: Option<PathBuf>,
    #[serde(default)]
    pub ssh_key: Vec<Key>,
    /// The file to take the rest from. A file cannot name another.
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Print the spec and end.
    pub dry_run: Option<bool>,
    /// How many `--verbose`.
    pub verbose: Option<u8>,
    /// Where log lines go.
    pub log_file: Option<PathBuf>,
    /// What the VM is called.
    pub name: Option<String>,
    /// Do not stand in the foreground for it.
    pub detach: Option<bool>,
    /// Remove it when it stops.
    pub rm: Option<bool>,
    /// The snapshot to start from.
    #[serde(skip)]
    pub from: Option<Point>,
    /// Let it stay when it stops.
    #[serde(skip)]
    pub keep: bool,
    /// The image that it is of.
    pub image: Option<String>,
    /// The command that is to run in it.
    #[serde(skip)]
    pub wish: Wish,
    /// What is run in place of the image's own program.
    #[serde(skip)]
    pub entrypoint: Option<String>,
}

impl Wishes for Asked {
    fn wish(&mut self) -> &mut Wish {
        &mut self.wish
    }
}

impl Asked {
    /// What the file at `path` asks for. Relative paths in it start at its directory.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let text_error = |(line, message): (usize, String)| {
            anyhow::Error::new(Usage(format!("{}:{line}: {message}", path.display())))
        };
        let mut asked = Self::from_toml(&text).map_err(text_error)?;
        asked.start_paths_at(path.parent().unwrap_or(Path::new("/")));
        Ok(asked)
    }

    /// Read TOML. An error has the number of its line.
    pub fn from_toml(text: &str) -> Result<Self, (usize, String)> {
        let at = |span: Option<Range<usize>>, message: String| {
            let before = text.as_bytes().get(..span.map_or(0, |span| span.start)).unwrap_or_default();
            (before.iter().filter(|byte| **byte == b'\n').count() + 1, message)
        };
        let of_toml =
            |error: toml::de::Error| at(error.span(), error.message().trim_end().replace('\n', ", "));
        let table = DeTable::parse(text).map_err(of_toml)?;
        if let Some((span, message)) = unknown_key(table.get_ref()) {
            return Err(at(Some(span), message));
        }
        toml::from_str(text).map_err(of_toml)
    }

    fn start_paths_at(&mut self, dir: &Path) {
        let seed = [&mut self.user_data, &mut self.meta_data, &mut self.network_config];
        let paths = [&mut self.kernel, &mut self.initrd, &mut self.log_file];
        let paths = paths.into_iter().chain(seed).flatten();
        let keys = self.ssh_key.iter_mut().filter_map(|key| match key {
            Key::File(path) => Some(path),
            Key::Text(_) => None,
        });
        let template = self.cpu_template.iter_mut().filter_map(|template| match template {
            Template::File(path) => Some(path),
            Template::Given(_) => None,
        });
        let disks = self.disk.iter_mut().map(|disk| &mut disk.path);
        let sockets = self.vsock.iter_mut().filter_map(|vsock| vsock.path.as_mut());
        let folders = self.fs.iter_mut().filter_map(|folder| folder.path.as_mut());
        let streams = [&mut self.serial, &mut self.console].into_iter().filter_map(|stream| match stream {
            Some(Stream::File(path)) => Some(path),
            _ => None,
        });
        let all = paths.chain(template).chain(disks).chain(sockets).chain(folders).chain(streams).chain(keys);
        for path in all.filter(|path| !path.as_os_str().is_empty()) {
            *path = dir.join(&*path);
        }
        for volume in &mut self.volume {
            volume.start_at(dir);
        }
    }

    /// `self` where it says something, else `file`. Disks, networks, ports and folders add up, the file's first.
    pub fn over(self, file: Self) -> Self {
        Self {
            kernel: self.kernel.or(file.kernel),
            initrd: self.initrd.or(file.initrd),
            cmdline: self.cmdline.or(file.cmdline),
            cpus: self.cpus.or(file.cpus),
            memory: self.memory.or(file.memory),
            transport: self.transport.or(file.transport),
            serial: self.serial.or(file.serial),
            console: self.console.or(file.console),
            balloon: self.balloon.or(file.balloon),
            disk: file.disk.into_iter().chain(self.disk).collect(),
            net: net::over(self.net, file.net),
            publish: file.publish.into_iter().chain(self.publish).collect(),
            vsock: self.vsock.or(file.vsock),
            fs: file.fs.into_iter().chain(self.fs).collect(),
            volume: file.volume.into_iter().chain(self.volume).collect(),
            cpu_template: self.cpu_template.or(file.cpu_template),
            user_data: self.user_data.or(file.user_data),
            meta_data: self.meta_data.or(file.meta_data),
            network_config: self.network_config.or(file.network_config),
            ssh_key: file.ssh_key.into_iter().chain(self.ssh_key).collect(),
            config: self.config.or(file.config),
            dry_run: self.dry_run.or(file.dry_run),
            verbose: self.verbose.or(file.verbose),
            log_file: self.log_file.or(file.log_file),
            name: self.name.or(file.name),
            detach: self.detach.or(file.detach),
            rm: self.rm.or(file.rm),
            from: self.from.or(file.from),
            keep: self.keep || file.keep,
            image: self.image.or(file.image),
            wish: self.wish,
            entrypoint: self.entrypoint.or(file.entrypoint),
        }
    }

    /// The flags that were given and have no place beside `--from`, since the snapshot says what they would.
    pub fn against_from(&self) -> Vec<&'static str> {
        let given = [
            ("IMAGE", self.image.is_some()),
            ("--kernel", self.kernel.is_some()),
            ("--initrd", self.initrd.is_some()),
            ("--cmdline", self.cmdline.is_some()),
            ("--cpus", self.cpus.is_some()),
            ("--memory", self.memory.is_some()),
            ("--cpu-template", self.cpu_template.is_some()),
            ("--user-data", self.user_data.is_some()),
            ("--meta-data", self.meta_data.is_some()),
            ("--network-config", self.network_config.is_some()),
            ("--ssh-key", !self.ssh_key.is_empty()),
            ("--disk", !self.disk.is_empty()),
            ("--net", !self.net.is_empty()),
            ("--vsock", self.vsock.is_some()),
            ("--fs", !self.fs.is_empty()),
            ("--serial", self.serial.is_some()),
            ("--console", self.console.is_some()),
            ("--balloon", self.balloon.is_some()),
            ("--transport", self.transport.is_some()),
            ("--config", self.config.is_some()),
        ];
        given.into_iter().filter_map(|(flag, given)| given.then_some(flag)).collect()
    }

    /// Fill in the defaults, and check the whole.
    pub fn resolve(self) -> Result<VmSpec> {
        let usage = |message: String| anyhow::Error::new(Usage(message));
        let Some(kernel) = self.kernel else {
            return Err(usage(NO_KERNEL.to_owned()));
        };
        let (serial, console) = streams(self.serial, self.console);
        let cpus = self.cpus.unwrap_or(1);
        let nets = net::settle(self.net, !self.publish.is_empty()).map_err(usage)?;
        let folders = volume::folders(self.fs, self.volume);
        let mounts = folders.iter().any(|folder| folder.mount.is_some());
        let spec = VmSpec {
            kernel,
            initrd: self.initrd,
            cmdline: self.cmdline.unwrap_or_else(|| default_cmdline(&serial, &console).to_owned()),
            cpus: u8::try_from(cpus).map_err(|_| usage(SpecError::Cpus(cpus).to_string()))?,
            memory: self.memory.unwrap_or(DEFAULT_MEMORY),
            transport: self.transport.unwrap_or_default(),
            serial,
            console,
            disks: self.disk,
            nets,
            ports: self.publish,
            // The agent mounts them, and is reached by it.
            vsock: self.vsock.or_else(|| mounts.then(VsockSpec::own)),
            folders,
            cpu_template: self.cpu_template.map(Template::read).transpose()?,
            balloon: self.balloon.unwrap_or(true),
        };
        spec.validate().map_err(|error| usage(error.to_string()))?;
        Ok(spec)
    }
}

/// The key in a file that no flag has, but an operand.
const IMAGE_KEY: &str = "image";

/// What to do about a missing kernel.
const NO_KERNEL: &str = "no image and no kernel: name an image, as in skiff run debian:12, or give --kernel FILE, such as --kernel \
                         /boot/vmlinuz-$(uname -r), or a --config FILE with a line image = \"NAME\" or kernel = \"FILE\"";

/// Where the serial port and the virtio console lead: one of them to the terminal.
pub fn streams(serial: Option<Stream>, console: Option<Stream>) -> (Stream, Stream) {
    match (serial, console) {
        (None, Some(Stream::Stdio)) => (Stream::Null, Stream::Stdio),
        (serial, console) => (serial.unwrap_or(Stream::Stdio), console.unwrap_or(Stream::Null)),
    }
}

/// The kernel speaks where its words can be seen.
pub fn default_cmdline(serial: &Stream, console: &Stream) -> &'static str {
    match (serial, console) {
        (_, Stream::Stdio) | (Stream::Null, Stream::File(_)) => "console=hvc0",
        _ => "console=ttyS0",
    }
}

/// The first key that means nothing, and what was most likely meant. Those of a disk or a network are refused by their
/// own parsers.
fn unknown_key(table: &DeTable<'_>) -> Option<(Range<usize>, String)> {
    let flags = FLAGS.iter().filter(|flag| !flag.example.toml.is_empty()).map(|flag| flag.name);
    let known: Vec<&str> = flags.chain([IMAGE_KEY]).collect();
    let key = table.keys().find(|key| !known.contains(&key.get_ref().as_ref()))?;
    let name = key.get_ref().as_ref();
    let fix = match closest(name, known.iter().copied()) {
        Some(close) => format!("did you mean '{close}'?"),
        None => format!("there are {}", known.join(", ")),
    };
    Some((key.span(), format!("there is no key '{name}': {fix}")))
}

/// A flag's path, from the current directory.
pub fn absolute(path: &OsStr) -> Result<PathBuf> {
    if path.is_empty() {
        anyhow::bail!("the path is empty: name a file");
    }
    std::path::absolute(path).context("cannot tell the current directory")
}

/// A flag's stream, its path from the current directory.
pub fn absolute_stream(stream: Stream) -> Result<Stream> {
    match stream {
        Stream::File(path) => Ok(Stream::File(absolute(path.as_os_str())?)),
        other => Ok(other),
    }
}
