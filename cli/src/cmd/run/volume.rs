//! Folders of the host in the guest: `-v HOST:GUEST`, as container tools have it, and `--fs` for all that a device can be told.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Result, bail};
use serde::Deserialize;
use vmm::spec::{FolderSpec, VmSpec};

use super::asked::{Asked, absolute};
use crate::exit::Usage;
use crate::flags::{Example, Flag, Takes, utf8};

pub const VOLUME: Flag<Asked> = Flag {
    name: "volume",
    short: Some('v'),
    takes: Takes::Texts("HOST:GUEST[:ro]"),
    help: "Share a folder of the host: the guest has it at GUEST; repeat for more",
    long: "HOST is a folder, from here on if it is relative; GUEST is an absolute path, which is made if it is not there. What either side \
           writes the other sees. With :ro the guest changes nothing. Nothing outside the folder can be reached. If you are root, \
           files belong to whom they belong to on the host; otherwise yours belong to the guest's root, or with \
           :uid=N,gid=N to that user of the guest, all others to nobody, and what the guest makes is yours. \
           The agent in the guest mounts it before the VM is ready. With --from, the snapshot's VM must have had it: \
           the folder is then another one, as it is now.",
    example: Example { args: &["-v", "/srv/src:/src:ro"], toml: "volume = [\"/srv/src:/src:ro\"]" },
    apply: |asked, value| {
        let mut volume: Volume = utf8(value)?.parse()?;
        volume.0.path = Some(absolute(volume.path().as_os_str())?);
        asked.volume.push(volume);
        Ok(())
    },
};

pub const FS: Flag<Asked> = Flag {
    name: "fs",
    short: None,
    takes: Takes::Texts("path=DIR|empty[,KEY=VALUE]…"),
    help: "A virtio-fs device, which shares a folder of the host; repeat for more",
    long: "What -v makes, in full. Keys:
  path=DIR            the folder; a comma in its name is doubled
  empty               no folder yet: one is given to VMs that start from a snapshot of this one, by -v
  tag=TEXT            what the guest mounts: mount -t virtiofs TEXT /mnt; by default fs0, fs1, …
  readonly=on         the guest changes nothing
  mount=DIR           where the agent mounts it; by default nowhere
  uid=N, gid=N        the user and group of the guest to whom your files belong
Folders of the file come first, then those of the flags, then those of -v.",
    example: Example {
        args: &["--fs", "path=/srv/data,tag=data,readonly=on,mount=/data,uid=1000,gid=1000", "--fs", "empty"],
        toml: "fs = [\n  \"path=/srv/data,tag=data,readonly=on,mount=/data,uid=1000,gid=1000\",\n  { empty = true },\n]",
    },
    apply: |asked, value| {
        let mut folder: FolderSpec = utf8(value)?.parse()?;
        folder.path = folder.path.map(|path| absolute(path.as_os_str())).transpose()?;
        asked.fs.push(folder);
        Ok(())
    },
};

/// What `-v` says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct Volume(FolderSpec);

impl Volume {
    /// Its path on the host.
    pub fn path(&self) -> PathBuf {
        self.0.path.clone().unwrap_or_default()
    }

    /// The guest changes nothing in it.
    pub fn is_readonly(&self) -> bool {
        self.0.readonly
    }

    /// A relative path starts at `dir`.
    pub fn start_at(&mut self, dir: &Path) {
        self.0.path = Some(dir.join(self.path()));
    }
}

impl FromStr for Volume {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let mut parts = text.split(':');
        let (host, guest, options) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(host), Some(guest), options, None) if !host.is_empty() && !guest.is_empty() => {
                (host, guest, options)
            }
            _ => {
                return Err(Usage(format!(
                    "'{text}' shares no folder: write HOST:GUEST or HOST:GUEST:ro, as in .:/src; --fs path=DIR,mount=DIR takes paths with a colon"
                )));
            }
        };
        if !guest.starts_with('/') {
            return Err(Usage(format!(
                "'{text}' shares a folder at {guest}: write an absolute path in the guest, such as /{guest}"
            )));
        }
        let mut folder = FolderSpec::new(host);
        folder.mount = Some(guest.to_owned());
        let (mut uid, mut gid) = (None, None);
        for option in options.into_iter().flat_map(|options| options.split(',')) {
            let refused = || {
                Usage(format!("'{text}' has '{option}' after its paths: there are ro, rw, uid=N and gid=N"))
            };
            let id = |id: &str| id.parse().ok().filter(|id| *id != u32::MAX).map(Some).ok_or_else(refused);
            match option.split_once('=') {
                None if option == "ro" => folder.readonly = true,
                None if option == "rw" => folder.readonly = false,
                Some(("uid", text)) => uid = id(text)?,
                Some(("gid", text)) => gid = id(text)?,
                _ => return Err(refused()),
            }
        }
        folder.owner = uid.or(gid).map(|one| (uid.unwrap_or(one), gid.unwrap_or(one)));
        Ok(Self(folder))
    }
}

impl TryFrom<String> for Volume {
    type Error = Usage;

    fn try_from(text: String) -> Result<Self, Usage> {
        text.parse()
    }
}

/// Look whether each folder is there, before anything takes time.
pub fn check(volumes: &[Volume]) -> Result<()> {
    for path in volumes.iter().map(Volume::path) {
        match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => bail!(
                "-v: {0} is no folder: share the folder that it is in, or copy it with skiff cp",
                path.display()
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!(
                    "-v: the folder {0} does not exist: make it (mkdir -p {0}), or check the path",
                    path.display()
                )
            }
            Err(error) => bail!("-v: the folder {} cannot be shared: {error}", path.display()),
        }
    }
    Ok(())
}

/// All folders that were asked for.
pub fn folders(fs: Vec<FolderSpec>, volumes: Vec<Volume>) -> Vec<FolderSpec> {
    fs.into_iter().chain(volumes.into_iter().map(|volume| volume.0)).collect()
}

/// Give the folders of `volumes` to a VM that starts from a snapshot: each to the device that was mounted there, or else to one that nobody has
/// mounted yet. Its guest finds the devices that it knows.
///
/// # Errors
/// If there is no such device.
pub fn give(spec: &mut VmSpec, volumes: &[Volume]) -> Result<()> {
    for Volume(wanted) in volumes {
        let at = spec.folders.iter().position(|folder| folder.mount == wanted.mount);
        let free = || spec.folders.iter().position(|folder| folder.path.is_none() && folder.mount.is_none());
        let guest = wanted.mount.as_deref().unwrap_or_default();
        let folder = at.or_else(free).and_then(|at| spec.folders.get_mut(at));
        let Some(folder) = folder else {
            return Err(Usage(format!(
                "-v: the snapshot's VM has no folder for {guest}: take the snapshot of a VM that was run with -v HOST:{guest}, or with --fs empty"
            ))
            .into());
        };
        *folder = FolderSpec { tag: folder.tag.clone(), ..wanted.clone() };
    }
    spec.validate().map_err(|error| Usage(error.to_string()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(text: &str) -> String {
        text.parse::<Volume>().map_or_else(|error| error.to_string(), |volume| volume.0.to_string())
    }

    #[test]
    fn a_volume_is_read_as_container_tools_do() {
        assert_eq!(volume(".:/src"), "path=.,readonly=off,mount=/src");
        assert_eq!(volume("/a b:/src:ro"), "path=/a b,readonly=on,mount=/src");
        assert_eq!(volume("/a:/src:rw,uid=7"), "path=/a,readonly=off,mount=/src,uid=7,gid=7");
        assert_eq!(volume("/a:/src:uid=7,gid=8,ro"), "path=/a,readonly=on,mount=/src,uid=7,gid=8");
    }

    #[test]
    fn what_is_no_volume_says_what_to_write() {
        for text in ["", ".", ":/src", ".:", "a:/b:ro:c"] {
            assert!(volume(text).contains("write HOST:GUEST or HOST:GUEST:ro"), "{text}");
        }
        assert!(volume(".:src").contains("write an absolute path in the guest, such as /src"));
        for text in [".:/src:", ".:/src:z", ".:/src:ro,uid=x", ".:/src:uid=4294967295"] {
            assert!(volume(text).contains("there are ro, rw, uid=N and gid=N"), "{text}");
        }
    }

    fn spec(folders: &[&str]) -> VmSpec {
        let mut spec = VmSpec::from_toml(
            "kernel = \"/k\"\ncmdline = \"\"\ncpus = 1\ntransport = \"pci\"\nserial = \"null\"\nconsole = \"null\"\n\
             memory = { size = \"64M\" }\nvsock = \"auto\"\n",
        )
        .unwrap();
        spec.folders = folders.iter().map(|folder| folder.parse().unwrap()).collect();
        spec
    }

    #[test]
    fn a_snapshots_devices_get_the_folders_of_now() {
        let mut one = spec(&["path=/old,mount=/src,readonly=on", "empty,tag=later"]);
        give(&mut one, &["/new:/src".parse().unwrap(), "/more:/more:ro".parse().unwrap()]).unwrap();
        let folders: Vec<String> = one.folders.iter().map(ToString::to_string).collect();
        assert_eq!(
            folders,
            ["path=/new,readonly=off,mount=/src", "path=/more,readonly=on,tag=later,mount=/more",]
        );
        let error = give(&mut one, &["/x:/x".parse().unwrap()]).unwrap_err().to_string();
        assert!(
            error.contains("no folder for /x: take the snapshot of a VM that was run with -v"),
            "{error}"
        );
    }
}
