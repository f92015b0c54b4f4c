//! A VM's disks.

use std::path::PathBuf;

use super::limit::LimitDraft;
use super::options::{Given, Names, Part, Value, text_and_table};
use super::{LimitSpec, Memory, ParseError};

/// The longest serial number of a disk in bytes (VIRTIO_BLK_ID_BYTES, virtio 1.2 §5.2.6).
pub const MAX_DISK_SERIAL: usize = 20;
/// The most request queues of one disk.
pub const MAX_DISK_QUEUES: u16 = 16;
/// The fields of a [`DiskSpec`], by the names that text and files give them.
pub const DISK_KEYS: &[&str] = &[
    "path",
    "readonly",
    "layers",
    "size",
    "direct",
    "serial",
    "queues",
    "io",
    "bandwidth",
    "bandwidth-burst",
    "ops",
    "ops-burst",
    "burst",
];

/// One disk of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// A raw or qcow2 file, or a block device.
    pub path: PathBuf,
    /// The guest cannot write it, and other VMs may read it too.
    pub readonly: bool,
    /// What the guest writes goes to layers of the VM's own above the file, which is never written: the VM can then be snapshotted. By
    /// default on for a VM that stays and off for a throw-away, which writes the file in place. Never on with `readonly`.
    pub layers: Option<bool>,
    /// The size that the guest sees of a disk with layers, in bytes: at least the file's, which it is by default. A multiple of 512. Later
    /// layers have the size that the disk has then.
    pub size: Option<Memory>,
    /// Bypass the host's page cache (O_DIRECT).
    pub direct: bool,
    /// The serial number the guest sees, 1 to [`MAX_DISK_SERIAL`] bytes of printable ASCII without spaces. By default one is
    /// derived from the disk's position.
    pub serial: Option<String>,
    /// How many request queues, 1 to [`MAX_DISK_QUEUES`]; by default one per vCPU, up to 4.
    pub queues: Option<u16>,
    /// How requests reach the host's kernel.
    pub io: DiskIo,
    /// What it may do in a time.
    pub limit: LimitSpec,
}

impl DiskSpec {
    /// The disk at `path`, writable, with every default.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            readonly: false,
            layers: None,
            size: None,
            direct: false,
            serial: None,
            queues: None,
            io: DiskIo::Auto,
            limit: LimitSpec::default(),
        }
    }

    /// Whether the guest may write to the file itself, as far as the spec says.
    #[must_use]
    pub fn in_place(&self) -> bool {
        !self.readonly && self.layers != Some(true)
    }

    /// Whether what the guest writes goes to a layer.
    #[must_use]
    pub fn is_layered(&self) -> bool {
        !self.readonly && self.layers == Some(true)
    }
}

/// How a disk's requests reach the host's kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskIo {
    /// io_uring where the host allows it, else plain calls.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Plain preadv and pwritev.
    Plain,
}

impl DiskIo {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Plain => "plain",
        }
    }
}

text_and_table!(DiskSpec);

/// A disk while it is read.
#[derive(Default)]
pub struct Draft {
    path: Option<PathBuf>,
    readonly: bool,
    layers: Option<bool>,
    size: Option<Memory>,
    direct: bool,
    serial: Option<String>,
    queues: Option<u16>,
    io: DiskIo,
    limit: LimitDraft,
}

impl Part for DiskSpec {
    const NAMES: &'static Names = &Names {
        whose: "the disk's",
        one: "a disk",
        keys: DISK_KEYS,
        bare: None,
        lacks: "names no file: write path=FILE, as in path=disk.img,readonly=on",
        example: "path=disk.img,readonly=on",
    };
    type Draft = Draft;

    fn set(draft: &mut Draft, given: Given) -> Result<(), ParseError> {
        match given.key {
            "path" => draft.path = Some(given.text("path=FILE")?.into()),
            "readonly" => draft.readonly = given.switch()?,
            "layers" => draft.layers = Some(given.switch()?),
            "size" => draft.size = Some(given.bytes()?),
            "direct" => draft.direct = given.switch()?,
            "serial" => draft.serial = Some(given.text("1 to 20 bytes of text")?),
            "queues" => draft.queues = Some(given.number("a number from 1 to 16")?),
            "io" => draft.io = read_io(given)?,
            _ => draft.limit.set(given)?,
        }
        Ok(())
    }

    fn finish(draft: Draft, subject: &str) -> Result<Self, ParseError> {
        Ok(Self {
            path: draft.path.ok_or_else(|| Self::NAMES.lacking(subject))?,
            readonly: draft.readonly,
            layers: draft.layers,
            size: draft.size,
            direct: draft.direct,
            serial: draft.serial,
            queues: draft.queues,
            io: draft.io,
            limit: draft.limit.finish()?,
        })
    }

    fn pairs(&self) -> Vec<(&'static str, Value)> {
        let mut pairs = vec![
            ("path", Value::Path(self.path.clone())),
            ("readonly", Value::Switch(self.readonly)),
            ("direct", Value::Switch(self.direct)),
        ];
        pairs.extend(self.layers.map(|layers| ("layers", Value::Switch(layers))));
        pairs.extend(self.size.map(|size| ("size", Value::text(size))));
        pairs.extend(self.serial.as_ref().map(|serial| ("serial", Value::text(serial))));
        pairs.extend(self.queues.map(|queues| ("queues", Value::Number(queues.into()))));
        pairs.push(("io", Value::text(self.io.name())));
        pairs.extend(self.limit.pairs());
        pairs
    }
}

fn read_io(given: Given) -> Result<DiskIo, ParseError> {
    let all = [DiskIo::Auto, DiskIo::Uring, DiskIo::Plain];
    given.one_of(all.map(|io| (io.name(), io)), "auto, uring or plain")
}
