//! The spec of a VM that starts from a snapshot: the snapshot's, but for what two VMs on one host cannot share.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vmm::snapshot::manifest::Manifest;
use vmm::spec::{NetBackend, PortForward, Stream, VmSpec};

/// What `manifest`'s VM was when it was taken.
pub fn spec_of(manifest: &Manifest) -> Result<VmSpec> {
    let wrong = || {
        format!(
            "the spec of the snapshot {} cannot be understood: was it made by a newer skiff?",
            manifest.name
        )
    };
    let spec: VmSpec = toml::from_str(&manifest.spec).with_context(wrong)?;
    spec.validate().with_context(wrong)?;
    for net in &spec.nets {
        if let NetBackend::Fd(fd) = net.backend {
            anyhow::bail!(
                "a network of the snapshot {} is the descriptor {fd} of whoever started its VM, which no other VM can have: only that VM can be rolled back to it",
                manifest.name
            );
        }
    }
    Ok(spec)
}

/// What a copy of `spec` does not have, for its user.
pub fn left_out(spec: &VmSpec) -> Vec<String> {
    let ports: Vec<String> = spec.ports.iter().map(ToString::to_string).collect();
    if ports.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "the ports {} lead to the VM that has them already, and not to copies of it",
        ports.join(", ")
    )]
}

/// `spec` for the VM `name`, with these of the host's ports.
pub fn adapt(mut spec: VmSpec, name: &str, ports: Vec<PortForward>) -> VmSpec {
    spec.ports = ports;
    for net in &mut spec.nets {
        // One is made from the name.
        net.mac = None;
    }
    for disk in spec.disks.iter_mut().filter(|disk| !disk.readonly) {
        disk.layers = Some(true);
    }
    if let Some(vsock) = &mut spec.vsock {
        // One in the VM's own directory is its alone as it is.
        vsock.path = vsock.path.take().map(|path| own(&path, name));
    }
    for stream in [&mut spec.serial, &mut spec.console] {
        if let Stream::File(path) = stream {
            *path = own(path, name);
        }
    }
    spec
}

/// Beside `path`, for the VM `name` alone.
fn own(path: &Path, name: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(".");
    path.push(name);
    path.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = "kernel = \"/k\"\ncmdline = \"\"\ncpus = 1\nmemory = \"64M\"\ntransport = \"pci\"\nserial = \"file=/log\"\n\
                        console = \"null\"\npublish = [\"8080:80\"]\n[vsock]\npath = \"/run/v\"\n[[net]]\nuser = true\nmac = \"02:00:00:00:00:01\"\n";

    #[test]
    fn a_copy_shares_nothing_that_two_vms_cannot_have() {
        let spec: VmSpec = toml::from_str(SPEC).unwrap();
        assert!(left_out(&spec)[0].starts_with("the ports 8080:80 "), "{:?}", left_out(&spec));
        let copy = adapt(spec.clone(), "web-1", Vec::new());
        assert_eq!(copy.vsock.unwrap().path.unwrap(), Path::new("/run/v.web-1"));
        assert_eq!(copy.serial, Stream::File("/log.web-1".into()));
        assert!(copy.ports.is_empty() && copy.nets[0].mac.is_none());
        assert!(left_out(&adapt(spec, "a", Vec::new())).is_empty());
    }
}
