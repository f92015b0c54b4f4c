//! Images made by hand, and a machine that makes disks of paper.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use images::compress;
use images::digest::Digest;
use images::manifest::{Agent, Blob, Defaults, Disk, Manifest, SCHEMA, Source};
use images::oci::{Layer, Machine, Made};
use images::progress::Progress;
use images::store::{Store, file_name};
use serde_json::json;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Checks what it is given as a real one must, and makes the smallest files that can stand for a kernel and a disk.
pub struct Paper;

impl Machine for Paper {
    fn make(&mut self, store: &Store, layers: &[Layer], _: &mut dyn Progress) -> Result<Made, Failure> {
        for layer in layers {
            let mut reader = compress::Reader::new(File::open(&layer.path)?)?;
            let (digest, _) = Digest::of_reader(&mut reader, |_| {})?;
            if digest != layer.diff_id {
                return Err(format!("{digest} is not {}", layer.diff_id).into());
            }
        }
        let disk = store.add_bytes(&qcow2(""))?;
        Ok(Made {
            os: None,
            kernel: store.add_bytes(b"a kernel")?,
            initrd: store.add_bytes(b"a RAM disk")?,
            modules: None,
            cmdline: "root=/dev/vda".to_owned(),
            disk: Disk { layers: vec![disk], size: 1 << 20, grows_to: 1 << 30 },
        })
    }
}

/// The header of a disk of 1 MiB on another.
pub fn qcow2(backing: &str) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    bytes[24..32].copy_from_slice(&(1_u64 << 20).to_be_bytes());
    if !backing.is_empty() {
        bytes[8..16].copy_from_slice(&104_u64.to_be_bytes());
        bytes[16..20].copy_from_slice(&u32::try_from(backing.len()).unwrap().to_be_bytes());
        bytes[104..104 + backing.len()].copy_from_slice(backing.as_bytes());
    }
    bytes
}

/// A VM's image with two disks, of which the upper stands on `backing`, or on the lower one.
pub fn vm(store: &Store, backing: Option<&str>) -> Manifest {
    let mut lower = qcow2("");
    lower.extend(vec![7; 100_000]);
    let lower = store.add_bytes(&lower).unwrap();
    let below = file_name(&lower.digest);
    let upper = store.add_bytes(&qcow2(backing.unwrap_or(&below))).unwrap();
    Manifest {
        schema: SCHEMA,
        os: "Paper 1".to_owned(),
        created_ms: 1,
        source: Source::Distribution { name: "paper:1".to_owned() },
        kernel: store.add_bytes(b"a kernel").unwrap(),
        initrd: Some(store.add_bytes(b"a RAM disk").unwrap()),
        modules: None,
        cmdline: "root=/dev/vda".to_owned(),
        disk: Disk { layers: vec![upper, lower], size: 1 << 20, grows_to: 1 << 30 },
        agent: Agent::Service,
        defaults: Defaults::default(),
    }
}

/// A tar of files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Bytes that no compression makes less of.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A container's image: its documents and its layers.
pub struct Container {
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    pub layers: Vec<Vec<u8>>,
}

impl Container {
    /// Of layers with one file of noise each, which are not compressed, as gzip and as zstd.
    pub fn new(len: usize) -> Self {
        let tars: Vec<_> = (1..4).map(|seed| tar(&[("noise", &noise(len, seed))])).collect();
        let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
        encoder.write_all(&tars[1]).unwrap();
        let layers =
            vec![tars[0].clone(), encoder.finish().unwrap(), zstd::encode_all(&tars[2][..], 1).unwrap()];
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Entrypoint": ["/bin/hello"], "Cmd": ["world"], "User": "1000",
                "WorkingDir": "/srv", "ExposedPorts": {"80/tcp": {}}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let base = "application/vnd.oci.image.layer.v1.tar";
        let types = [base.to_owned(), format!("{base}+gzip"), format!("{base}+zstd")];
        let layer = |(layer, media_type): (&Vec<u8>, &String)| json!({"mediaType": media_type, "digest": Digest::of(layer), "size": layer.len()});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": config.len()},
            "layers": layers.iter().zip(&types).map(layer).collect::<Vec<_>>(),
        });
        Self { manifest: manifest.to_string().into_bytes(), config, layers }
    }

    /// All its blobs.
    pub fn blobs(&self) -> Vec<&Vec<u8>> {
        self.layers.iter().chain([&self.config]).collect()
    }

    /// What the store must keep of it.
    pub fn content(&self) -> Vec<Blob> {
        let all = [&self.manifest, &self.config].into_iter().chain(&self.layers);
        all.map(|bytes| Blob { digest: Digest::of(bytes), size: bytes.len() as u64 }).collect()
    }

    /// Write it as a layout.
    pub fn layout(&self, dir: &Path) {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        for bytes in self.blobs().into_iter().chain([&self.manifest]) {
            fs::write(blobs.join(Digest::of(bytes).hex()), bytes).unwrap();
        }
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let entry = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Digest::of(&self.manifest), "size": self.manifest.len()});
        fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [entry]}).to_string())
            .unwrap();
    }
}

/// What an image of the store keeps of the container that it came from.
pub fn content(store: &Store, id: &Digest) -> Vec<Blob> {
    match store.get(id).unwrap().source {
        Source::Oci { content, .. } => content,
        other => panic!("{other:?}"),
    }
}
