//! What cloud-init in the guest is told: `--user-data` and its like become a small disk, a file of the image store.
//!
//! It is named by the VM's spec, and by those of its snapshots: so no prune takes it while one of them is there.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use images::seed::{MAX_FILE, Seed, keys};
use images::store::Store as Images;
use serde::Deserialize;
use vmm::spec::{DiskSpec, VmSpec};

use super::asked::{Asked, absolute};
use crate::exit::Usage;
use crate::flags::{Example, Flag, Takes, utf8};

/// Largest file of public keys, in bytes.
const MAX_KEYS: usize = 1 << 20;

/// A public key as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum Key {
    /// In this file.
    File(PathBuf),
    /// Itself.
    Text(String),
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        if keys::is_key(&text) { Self::Text(text) } else { Self::File(text.into()) }
    }
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeedAsked {
    pub user_data: Option<PathBuf>,
    pub meta_data: Option<PathBuf>,
    pub network_config: Option<PathBuf>,
    pub keys: Vec<Key>,
}

impl SeedAsked {
    /// Takes it out of what was asked for.
    pub fn take(asked: &mut Asked) -> Self {
        Self {
            user_data: asked.user_data.take(),
            meta_data: asked.meta_data.take(),
            network_config: asked.network_config.take(),
            keys: std::mem::take(&mut asked.ssh_key),
        }
    }

    /// `spec` with a seed disk as its last one, if one was asked for. `name` is the VM's.
    pub fn add(self, mut spec: VmSpec, images: &Images, name: Option<&str>) -> Result<VmSpec> {
        if self == Self::default() {
            return Ok(spec);
        }
        let read = |path: &Option<PathBuf>| path.as_deref().map(|path| file(path, MAX_FILE)).transpose();
        let mut identity = [0; 16];
        rustix::rand::getrandom(&mut identity, rustix::rand::GetRandomFlags::empty())
            .context("the host has no random numbers")?;
        let seed = Seed {
            instance_id: format!("skiff-{:032x}", u128::from_be_bytes(identity)),
            hostname: name.map(str::to_owned),
            user_data: read(&self.user_data)?,
            meta_data: read(&self.meta_data)?,
            network_config: read(&self.network_config)?,
            keys: public_keys(&self.keys)?,
        };
        let disk = seed.disk().map_err(|error| Usage(error.to_string()))?;
        let blob = images.add_bytes(&disk)?;
        let mut disk = DiskSpec::new(images.blob_path(&blob.digest));
        disk.readonly = true;
        spec.disks.push(disk);
        Ok(spec)
    }
}

fn public_keys(asked: &[Key]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for key in asked {
        let (text, from) = match key {
            Key::Text(text) => (text.clone(), "--ssh-key".to_owned()),
            Key::File(path) => {
                (String::from_utf8_lossy(&file(path, MAX_KEYS)?).into_owned(), path.display().to_string())
            }
        };
        found.extend(keys::parse(&text).map_err(|error| Usage(format!("{from}: {error}")))?);
    }
    Ok(found)
}

/// What a file holds, of at most `limit` bytes.
fn file(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let failed = || format!("cannot read {}", path.display());
    let mut content = Vec::new();
    let file = File::open(path).with_context(failed)?;
    file.take(limit as u64 + 1).read_to_end(&mut content).with_context(failed)?;
    if content.len() > limit {
        return Err(Usage(format!("{} has more than {limit} bytes", path.display())).into());
    }
    Ok(content)
}

pub const USER_DATA: Flag<Asked> = Flag {
    name: "user-data",
    short: None,
    takes: Takes::File("FILE"),
    help: "What cloud-init in the guest is to do at its first boot: #cloud-config, a script, …",
    long: "The guest gets it on a small read-only disk (NoCloud, with the label cidata), the last of its disks, with an instance ID of its own \
           and the VM's name, if it has one, as its host name. Stock cloud images look for it by themselves.",
    example: Example {
        args: &["--user-data", "/srv/user-data.yaml"],
        toml: "user-data = \"/srv/user-data.yaml\"",
    },
    apply: |asked, value| {
        asked.user_data = Some(absolute(value)?);
        Ok(())
    },
};

pub const META_DATA: Flag<Asked> = Flag {
    name: "meta-data",
    short: None,
    takes: Takes::File("FILE"),
    help: "Meta-data for cloud-init: YAML; instance-id and local-hostname are added if they are not in it",
    long: "",
    example: Example { args: &["--meta-data", "/srv/meta-data"], toml: "meta-data = \"/srv/meta-data\"" },
    apply: |asked, value| {
        asked.meta_data = Some(absolute(value)?);
        Ok(())
    },
};

pub const NETWORK_CONFIG: Flag<Asked> = Flag {
    name: "network-config",
    short: None,
    takes: Takes::File("FILE"),
    help: "The network's configuration for cloud-init, version 1 or 2 [default: DHCP, which is cloud-init's own]",
    long: "",
    example: Example {
        args: &["--network-config", "/srv/network.yaml"],
        toml: "network-config = \"/srv/network.yaml\"",
    },
    apply: |asked, value| {
        asked.network_config = Some(absolute(value)?);
        Ok(())
    },
};

pub const SSH_KEY: Flag<Asked> = Flag {
    name: "ssh-key",
    short: None,
    takes: Takes::Texts("FILE|TEXT"),
    help: "A public ssh key that may log in as the image's own user, by cloud-init; repeat for more",
    long: "The key itself, as in 'ssh-ed25519 AAAA… name', or a file of such lines (id_ed25519.pub).",
    example: Example {
        args: &["--ssh-key", "/home/me/.ssh/id_ed25519.pub"],
        toml: "ssh-key = [\"/home/me/.ssh/id_ed25519.pub\"]",
    },
    apply: |asked, value| {
        let key = match Key::from(utf8(value)?.to_owned()) {
            Key::File(path) => Key::File(absolute(OsStr::new(&path))?),
            text => text,
        };
        asked.ssh_key.push(key);
        Ok(())
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_from_a_files_name() {
        for (text, is_text) in [("ssh-ed25519 AAAA me", true), ("id.pub", false), ("/ssh-rsa", false)] {
            assert_eq!(matches!(Key::from(text.to_owned()), Key::Text(_)), is_text, "{text}");
        }
    }

    #[test]
    fn a_seed_is_the_last_disk_and_a_file_of_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::open(dir.path().join("images"));
        let user_data = dir.path().join("user-data");
        std::fs::write(&user_data, "#cloud-config\n").unwrap();
        let spec = Asked { kernel: Some("/k".into()), ..Asked::default() }.resolve().unwrap();
        let before = spec.disks.len();
        let nothing = SeedAsked::default().add(spec.clone(), &images, None).unwrap();
        assert_eq!(nothing, spec);
        let asked = SeedAsked { user_data: Some(user_data), ..SeedAsked::default() };
        let with = asked.clone().add(spec.clone(), &images, Some("web")).unwrap();
        assert_eq!(with.disks.len(), before + 1);
        let disk = with.disks.last().unwrap();
        assert!(disk.readonly && disk.path.starts_with(images.root()));
        let other = asked.add(spec.clone(), &images, Some("web")).unwrap();
        assert_ne!(other.disks.last().unwrap().path, disk.path, "each VM is an instance of its own");
        let missing = SeedAsked { keys: vec![Key::File("/nowhere/id.pub".into())], ..SeedAsked::default() };
        assert!(missing.add(spec, &images, None).unwrap_err().to_string().contains("/nowhere/id.pub"));
    }
}
