//! What can be said about a spec without asking the host.

use std::path::{Path, PathBuf};

use devices::virtio::vsock::{GUEST_CIDS, MAX_VSOCK_PATH};

use super::net::{MAX_TAP_NAME, MTUS};
use super::{
    DiskSpec, HUGE_PAGE, LimitSpec, MAX_CMDLINE, MAX_CPUS, MAX_DISK_QUEUES, MAX_DISK_SERIAL, MAX_NET_QUEUES,
    MEMORY_STEP, MIN_MEMORY, Mac, Memory, NetBackend, NetSpec, PortForward, Stream, VmSpec, VsockSpec,
};

/// A spec that no host could run. Each message names the value and the fix.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// No vCPU, or too many.
    #[error("cpus cannot be {0}: a VM has 1 to {MAX_CPUS}")]
    Cpus(u64),
    /// Too little memory.
    #[error("memory cannot be {0}: a VM has at least {least}", least = Memory(MIN_MEMORY))]
    MemoryTooSmall(Memory),
    /// Memory that is not a multiple of [`MEMORY_STEP`].
    #[error("memory cannot be {0}: it is counted in whole MiB, {below} would do",
            below = Memory(.0.0 - .0.0 % MEMORY_STEP))]
    MemoryStep(Memory),
    /// Huge pages that would not all be used.
    #[error("memory cannot be {0} of huge pages: each has 2M, {below} would do",
            below = Memory(.0.0 - .0.0 % HUGE_PAGE))]
    MemoryHugePages(Memory),
    /// A command line that the kernel would cut.
    #[error("the kernel command line has {0} bytes: the kernel takes at most {MAX_CMDLINE}, shorten it")]
    CmdlineTooLong(usize),
    /// A command line with a byte that ends it or means nothing to the kernel.
    #[error("the kernel command line has a control character at byte {0}: take it out")]
    CmdlineControl(usize),
    /// Two devices want the program's input.
    #[error("serial and console cannot both be stdio: give one of them file=PATH or null")]
    TwoStdio,
    /// A path is empty.
    #[error("the path of {0} is empty: name a file")]
    EmptyPath(&'static str),
    /// A disk's serial number is not what a disk can have.
    #[error(
        "the disk {path}: its serial number cannot be '{serial}': 1 to {MAX_DISK_SERIAL} bytes of printable ASCII without spaces"
    )]
    DiskSerial {
        /// The disk.
        path: PathBuf,
        /// Its serial number.
        serial: String,
    },
    /// A disk cannot have so many queues, or none.
    #[error("the disk {path}: it cannot have {queues} queues: 1 to {MAX_DISK_QUEUES}")]
    DiskQueues {
        /// The disk.
        path: PathBuf,
        /// Its queues.
        queues: u16,
    },
    /// A file that is written in place, or not at all, has the size that it has.
    #[error(
        "the disk {path} has a size, which only one with layers can be given: write layers=on, or leave out size"
    )]
    DiskSizeAlone {
        /// The disk.
        path: PathBuf,
    },
    /// No disk has this size.
    #[error("the disk {path}: its size cannot be {size}: write a multiple of 512 bytes, such as 20G")]
    DiskSize {
        /// The disk.
        path: PathBuf,
        /// Its size.
        size: Memory,
    },
    /// A disk that is never written wants a place for what is written.
    #[error("the disk {path} is readonly and cannot have layers: leave out readonly or layers")]
    DiskLayers {
        /// The disk.
        path: PathBuf,
    },
    /// One file is two disks and would be written.
    #[error(
        "the disk {path} is given twice: a second writer would destroy it, make both readonly or drop one"
    )]
    DiskTwice {
        /// The disk.
        path: PathBuf,
    },
    /// A rate at which nothing would ever go.
    #[error("{device}: its {key} cannot be 0: leave it out for no limit")]
    NoRate {
        /// The device.
        device: String,
        /// The rate or burst.
        key: &'static str,
    },
    /// A burst without the rate that it goes beyond.
    #[error("{device}: its {rate}-burst is of no use without {rate}: give both")]
    BurstAlone {
        /// The device.
        device: String,
        /// The rate that is not given.
        rate: &'static str,
    },
    /// Not a tap device's name.
    #[error(
        "'{0}' cannot be a tap device's name: 1 to {MAX_TAP_NAME} bytes without spaces, slashes and colons"
    )]
    TapName(String),
    /// A file descriptor that is none, or is the program's own.
    #[error(
        "a network cannot be on file descriptor {0}: 0, 1 and 2 are the terminal's, inherit one from 3 on"
    )]
    NetFd(i32),
    /// An MTU that a guest cannot have.
    #[error("the network {net}: its mtu cannot be {mtu}: {} to {}", MTUS.start(), MTUS.end())]
    NetMtu {
        /// The network.
        net: NetBackend,
        /// Its MTU.
        mtu: u16,
    },
    /// A network cannot have so many queue pairs, or none.
    #[error("the network {net}: it cannot have {queues} queues: 1 to {MAX_NET_QUEUES}")]
    NetQueues {
        /// The network.
        net: NetBackend,
        /// Its queue pairs.
        queues: u16,
    },
    /// More than passt has.
    #[error("the network user: it cannot have {0} queues: passt has 1, only a tap has more")]
    UserQueues(u16),
    /// Two networks lead to the same tap.
    #[error(
        "the network {0} is given twice: one tap is for one network device, drop one or make another tap"
    )]
    TapTwice(NetBackend),
    /// Two networks have the same address.
    #[error("two networks have the mac {0}: give each its own, or none")]
    MacTwice(Mac),
    /// A port forwarding, and no network that could do it.
    #[error("the port {0} needs a user network: give --net user, too")]
    PortWithoutUser(PortForward),
    /// A port of the host can lead to one place.
    #[error("the ports {0} and {1} both need the host's port {port}: take another for one of them", port = .0.host)]
    PortTwice(PortForward, PortForward),
    /// A context ID that no guest can have.
    #[error("the vsock's cid cannot be {0}: {least} to {most}",
            least = GUEST_CIDS.start(), most = GUEST_CIDS.end())]
    VsockCid(u32),
    /// A socket's path that no socket can have.
    #[error(
        "the vsock's path has {0} bytes: a Unix socket has room for {MAX_VSOCK_PATH} and a port, choose a shorter one"
    )]
    VsockPath(usize),
    /// Two folders that a guest cannot tell apart.
    #[error("two folders have the tag {0}: give each its own, or none")]
    TagTwice(String),
    /// A folder is to be mounted where no folder can be.
    #[error(
        "no folder can be mounted at '{0}' in the guest: write an absolute path without '..', such as /src"
    )]
    MountPoint(String),
    /// Two folders at one place.
    #[error("two folders are to be mounted at {0} in the guest: choose another place for one of them")]
    MountTwice(String),
    /// Nobody in the guest would mount it.
    #[error(
        "the folder at {0} in the guest is mounted by skiff's agent, which needs a vsock: give --vsock auto, or leave the mount to the guest"
    )]
    MountWithoutVsock(String),
}

impl VmSpec {
    /// Check everything that needs no look at the host.
    ///
    /// # Errors
    /// The first thing that no host could run.
    pub fn validate(&self) -> Result<(), SpecError> {
        if self.kernel.as_os_str().is_empty() {
            return Err(SpecError::EmptyPath("the kernel"));
        }
        if self.initrd.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err(SpecError::EmptyPath("the initrd"));
        }
        self.check_cmdline()?;
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(SpecError::Cpus(self.cpus.into()));
        }
        if self.memory.size.0 < MIN_MEMORY {
            return Err(SpecError::MemoryTooSmall(self.memory.size));
        }
        if !self.memory.size.0.is_multiple_of(MEMORY_STEP) {
            return Err(SpecError::MemoryStep(self.memory.size));
        }
        if self.memory.hugepages && !self.memory.size.0.is_multiple_of(HUGE_PAGE) {
            return Err(SpecError::MemoryHugePages(self.memory.size));
        }
        if (&self.serial, &self.console) == (&Stream::Stdio, &Stream::Stdio) {
            return Err(SpecError::TwoStdio);
        }
        self.check_disks()?;
        self.check_nets()?;
        self.check_ports()?;
        self.check_vsock()?;
        self.check_folders()
    }

    fn check_cmdline(&self) -> Result<(), SpecError> {
        if self.cmdline.len() > MAX_CMDLINE {
            return Err(SpecError::CmdlineTooLong(self.cmdline.len()));
        }
        match self.cmdline.bytes().position(|byte| byte.is_ascii_control()) {
            Some(at) => Err(SpecError::CmdlineControl(at)),
            None => Ok(()),
        }
    }

    fn check_disks(&self) -> Result<(), SpecError> {
        let mut before: Vec<&DiskSpec> = Vec::new();
        for disk in &self.disks {
            let path = || disk.path.clone();
            if disk.path.as_os_str().is_empty() {
                return Err(SpecError::EmptyPath("a disk"));
            }
            if let Some(serial) = &disk.serial {
                let printable = serial.bytes().all(|byte| byte.is_ascii_graphic());
                if !printable || !(1..=MAX_DISK_SERIAL).contains(&serial.len()) {
                    return Err(SpecError::DiskSerial { path: path(), serial: serial.clone() });
                }
            }
            if let Some(queues) = disk.queues.filter(|queues| !(1..=MAX_DISK_QUEUES).contains(queues)) {
                return Err(SpecError::DiskQueues { path: path(), queues });
            }
            disk.limit.check(|| format!("the disk {}", disk.path.display()))?;
            if disk.readonly && disk.layers == Some(true) {
                return Err(SpecError::DiskLayers { path: path() });
            }
            if let Some(size) = disk.size {
                if disk.readonly || disk.layers == Some(false) {
                    return Err(SpecError::DiskSizeAlone { path: path() });
                }
                if size.0 == 0 || !size.0.is_multiple_of(512) {
                    return Err(SpecError::DiskSize { path: path(), size });
                }
            }
            let clash = |other: &&&DiskSpec| other.path == disk.path && (other.in_place() || disk.in_place());
            if before.iter().find(clash).is_some() {
                return Err(SpecError::DiskTwice { path: path() });
            }
            before.push(disk);
        }
        Ok(())
    }

    fn check_nets(&self) -> Result<(), SpecError> {
        let mut before: Vec<&NetSpec> = Vec::new();
        for net in &self.nets {
            net.check()?;
            // Two `user` networks are two processes of passt: they do not meet.
            let same = |other: &&NetSpec| other.backend == net.backend && net.backend != NetBackend::User;
            if before.iter().any(same) {
                return Err(SpecError::TapTwice(net.backend.clone()));
            }
            if let Some(mac) = net.mac.filter(|mac| before.iter().any(|other| other.mac == Some(*mac))) {
                return Err(SpecError::MacTwice(mac));
            }
            before.push(net);
        }
        Ok(())
    }

    fn check_ports(&self) -> Result<(), SpecError> {
        let mut before: Vec<&PortForward> = Vec::new();
        for port in &self.ports {
            if !self.nets.iter().any(|net| net.backend == NetBackend::User) {
                return Err(SpecError::PortWithoutUser(port.clone()));
            }
            // Also at different addresses: passt has each port once.
            let same = |other: &&&PortForward| (other.protocol, other.host) == (port.protocol, port.host);
            if let Some(other) = before.iter().find(same) {
                return Err(SpecError::PortTwice((*other).clone(), port.clone()));
            }
            before.push(port);
        }
        Ok(())
    }

    fn check_vsock(&self) -> Result<(), SpecError> {
        let Some(vsock) = &self.vsock else {
            return Ok(());
        };
        // One in the VM's own directory always has room.
        let own = Path::new(VsockSpec::OWN);
        match vsock.path.as_deref().unwrap_or(own).as_os_str().len() {
            0 => return Err(SpecError::EmptyPath("the vsock")),
            long if long > MAX_VSOCK_PATH => return Err(SpecError::VsockPath(long)),
            _ => {}
        }
        if !GUEST_CIDS.contains(&vsock.cid) {
            return Err(SpecError::VsockCid(vsock.cid));
        }
        Ok(())
    }
}

impl VmSpec {
    fn check_folders(&self) -> Result<(), SpecError> {
        let tags = self.tags();
        for (at, folder) in self.folders.iter().enumerate() {
            let (tag, before) = (tags.get(at), tags.get(..at).unwrap_or_default());
            if let Some(tag) = tag.filter(|tag| before.contains(tag)) {
                return Err(SpecError::TagTwice(tag.clone()));
            }
            if folder.path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
                return Err(SpecError::EmptyPath("a folder"));
            }
            let Some(mount) = &folder.mount else { continue };
            if !is_mount_point(mount) {
                return Err(SpecError::MountPoint(mount.clone()));
            }
            if self.vsock.is_none() {
                return Err(SpecError::MountWithoutVsock(mount.clone()));
            }
            let others = self.folders.iter().take(at).filter_map(|other| other.mount.as_deref());
            if others.map(Path::new).any(|other| other == Path::new(mount)) {
                return Err(SpecError::MountTwice(mount.clone()));
            }
        }
        Ok(())
    }
}

/// Whether something can be mounted there: an absolute path, not the root itself.
fn is_mount_point(path: &str) -> bool {
    use std::path::Component;
    let mut parts = Path::new(path).components();
    let names = parts.clone().skip(1);
    parts.next() == Some(Component::RootDir)
        && names.clone().count() > 0
        && names.clone().all(|part| matches!(part, Component::Normal(_)))
        && !path.contains(char::is_control)
}

impl NetSpec {
    /// What can be said about one network alone.
    fn check(&self) -> Result<(), SpecError> {
        let net = || self.backend.clone();
        match &self.backend {
            NetBackend::Tap(name) if !is_interface(name) => return Err(SpecError::TapName(name.clone())),
            NetBackend::Fd(fd) if *fd < 3 => return Err(SpecError::NetFd(*fd)),
            _ => {}
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !MTUS.contains(mtu)) {
            return Err(SpecError::NetMtu { net: net(), mtu });
        }
        match (&self.backend, self.queues) {
            (_, Some(queues)) if !(1..=MAX_NET_QUEUES).contains(&queues) => {
                return Err(SpecError::NetQueues { net: net(), queues });
            }
            (NetBackend::User, Some(queues)) if queues > 1 => return Err(SpecError::UserQueues(queues)),
            _ => {}
        }
        self.limit.check(|| format!("the network {}", self.backend))
    }
}

/// Whether a network interface of Linux can have this name (dev_valid_name).
fn is_interface(name: &str) -> bool {
    let wrong = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    (1..=MAX_TAP_NAME).contains(&name.len()) && name != "." && name != ".." && !name.contains(wrong)
}

impl LimitSpec {
    fn check(&self, device: impl Fn() -> String) -> Result<(), SpecError> {
        let bytes = |bytes: Option<Memory>| bytes.map(|bytes| bytes.0);
        let bandwidth = ("bandwidth", bytes(self.bandwidth), "bandwidth-burst", bytes(self.bandwidth_burst));
        for (rate, limit, burst, at_once) in [bandwidth, ("ops", self.ops, "ops-burst", self.ops_burst)] {
            for (key, value) in [(rate, limit), (burst, at_once)] {
                if value == Some(0) {
                    return Err(SpecError::NoRate { device: device(), key });
                }
            }
            if limit.is_none() && at_once.is_some() {
                return Err(SpecError::BurstAlone { device: device(), rate });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{MemorySpec, Transport};

    fn good() -> VmSpec {
        VmSpec {
            kernel: "vmlinuz".into(),
            initrd: None,
            cmdline: String::new(),
            cpus: 1,
            memory: MemorySpec { size: Memory(MIN_MEMORY), hugepages: false, overcommit: false },
            transport: Transport::Pci,
            serial: Stream::Stdio,
            console: Stream::Null,
            disks: Vec::new(),
            nets: Vec::new(),
            ports: Vec::new(),
            vsock: None,
            folders: Vec::new(),
            cpu_template: None,
            balloon: true,
        }
    }

    fn refused(change: impl FnOnce(&mut VmSpec)) -> String {
        let mut spec = good();
        change(&mut spec);
        spec.validate().unwrap_err().to_string()
    }

    #[test]
    fn the_edges_are_allowed() {
        let mut spec = good();
        spec.validate().unwrap();
        spec.cpus = MAX_CPUS;
        spec.memory.size = Memory(1 << 40);
        spec.cmdline = "x".repeat(MAX_CMDLINE);
        let readonly = DiskSpec {
            readonly: true,
            serial: Some("12345678901234567890".to_owned()),
            queues: Some(MAX_DISK_QUEUES),
            ..DiskSpec::new("a")
        };
        spec.disks = vec![readonly.clone(), readonly, DiskSpec::new("b")];
        spec.validate().unwrap();
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert_eq!(refused(|spec| spec.cpus = 0), "cpus cannot be 0: a VM has 1 to 64");
        assert_eq!(refused(|spec| spec.cpus = 65), "cpus cannot be 65: a VM has 1 to 64");
        let small = refused(|spec| spec.memory.size = Memory(63 << 20));
        assert_eq!(small, "memory cannot be 63M: a VM has at least 64M");
        let odd = refused(|spec| spec.memory.size = Memory((100 << 20) + 4096));
        assert_eq!(odd, "memory cannot be 102404K: it is counted in whole MiB, 100M would do");
    }

    #[test]
    fn command_lines_that_the_kernel_would_cut_are_refused() {
        let long = refused(|spec| spec.cmdline = "x".repeat(MAX_CMDLINE + 1));
        assert!(long.contains("2048 bytes"), "{long}");
        let control = refused(|spec| spec.cmdline = "a\nb".to_owned());
        assert!(control.contains("at byte 1"), "{control}");
    }

    #[test]
    fn only_one_device_may_have_the_programs_input() {
        let text = refused(|spec| spec.console = Stream::Stdio);
        assert_eq!(text, "serial and console cannot both be stdio: give one of them file=PATH or null");
    }

    #[test]
    fn disks_that_cannot_be_are_refused() {
        let with = |disk: DiskSpec| refused(|spec| spec.disks = vec![DiskSpec::new("a"), disk]);
        let serial = |text: &str| DiskSpec { serial: Some(text.to_owned()), ..DiskSpec::new("b") };
        assert!(with(serial("")).contains("serial number"));
        assert!(with(serial("123456789012345678901")).contains("serial number"));
        assert!(with(serial("ü")).contains("serial number"));
        // As the device has it, so that a spec that was found good can be started.
        assert!(with(serial("a b")).contains("without spaces"));
        assert!(with(DiskSpec { queues: Some(0), ..DiskSpec::new("b") }).contains("0 queues"));
        assert!(with(DiskSpec { readonly: true, ..DiskSpec::new("a") }).contains("given twice"));
        assert!(with(DiskSpec::new("")).contains("empty"));
        let layers = |path| DiskSpec { layers: Some(true), ..DiskSpec::new(path) };
        assert!(with(layers("a")).contains("given twice"), "the other one is written in place");
        assert!(with(DiskSpec { readonly: true, ..layers("b") }).contains("cannot have layers"));
        let mut spec = good();
        spec.disks = vec![layers("a"), layers("a"), DiskSpec { readonly: true, ..DiskSpec::new("a") }];
        spec.validate().unwrap();
    }

    #[test]
    fn only_a_disk_with_layers_can_be_given_a_size() {
        let with = |text: &str| refused(|spec| spec.disks = vec![text.parse().unwrap()]);
        for text in ["path=a,size=1G,layers=off", "path=a,size=1G,readonly=on"] {
            assert!(with(text).contains("only one with layers"), "{text}");
        }
        assert!(with("path=a,size=1000").contains("its size cannot be 1000: write a multiple of 512"));
        assert!(with("path=a,size=0").contains("its size cannot be 0"));
        let mut spec = good();
        spec.disks = vec!["path=a,size=20G,layers=on".parse().unwrap()];
        spec.validate().unwrap();
    }

    #[test]
    fn huge_pages_are_whole() {
        let huge = |size| MemorySpec { size: Memory(size), hugepages: true, overcommit: false };
        let odd = refused(|spec| spec.memory = huge(65 << 20));
        assert_eq!(odd, "memory cannot be 65M of huge pages: each has 2M, 64M would do");
        let mut spec = good();
        spec.memory = huge(66 << 20);
        spec.validate().unwrap();
    }

    #[test]
    fn networks_at_the_edges_are_allowed() {
        let tap = |name: &str| NetSpec::new(NetBackend::Tap(name.to_owned()));
        let mut spec = good();
        spec.nets = vec![
            NetSpec { mtu: Some(68), queues: Some(MAX_NET_QUEUES), ..tap("fifteen-letters") },
            NetSpec { mtu: Some(65520), queues: Some(1), ..tap("a") },
            NetSpec::new(NetBackend::Fd(3)),
            NetSpec { queues: Some(1), ..NetSpec::new(NetBackend::User) },
            NetSpec::new(NetBackend::User),
        ];
        spec.validate().unwrap();
    }

    #[test]
    fn networks_that_cannot_be_are_refused() {
        let with = |text: &str| {
            refused(|spec| spec.nets = text.split_whitespace().map(|net| net.parse().unwrap()).collect())
        };
        for (text, message) in [
            ("tap=a/b", "'a/b' cannot be a tap device's name"),
            ("tap=sixteen-letters-", "'sixteen-letters-' cannot be a tap device's name"),
            ("tap=..", "'..' cannot be a tap device's name"),
            ("fd=2", "a network cannot be on file descriptor 2: "),
            ("tap=t,mtu=67", "the network tap=t: its mtu cannot be 67: 68 to 65520"),
            ("tap=t,mtu=65521", "its mtu cannot be 65521"),
            ("fd=3,queues=0", "the network fd=3: it cannot have 0 queues: 1 to 8"),
            ("tap=t,queues=9", "it cannot have 9 queues"),
            ("user,queues=2", "the network user: it cannot have 2 queues: passt has 1"),
            ("tap=t tap=u tap=t", "the network tap=t is given twice"),
            ("fd=3 fd=3", "the network fd=3 is given twice"),
            ("user,mac=02:00:00:00:00:01 tap=t,mac=02:00:00:00:00:01", "two networks have the mac 02:"),
            ("user,ops=0", "the network user: its ops cannot be 0: leave it out for no limit"),
            ("user,ops-burst=5", "the network user: its ops-burst is of no use without ops: give both"),
        ] {
            let said = with(text);
            assert!(said.starts_with(message) || said.contains(message), "{text}: {said}");
        }
    }

    #[test]
    fn limits_of_nothing_are_refused() {
        let with = |text: &str| refused(|spec| spec.disks = vec![text.parse().unwrap()]);
        let rate = |key| format!("the disk a: its {key} cannot be 0: leave it out for no limit");
        assert_eq!(with("path=a,bandwidth=0"), rate("bandwidth"));
        assert_eq!(with("path=a,bandwidth=1M,burst=0"), rate("bandwidth-burst"));
        assert_eq!(with("path=a,ops=1,ops-burst=0"), rate("ops-burst"));
        let alone = "the disk a: its bandwidth-burst is of no use without bandwidth: give both";
        assert_eq!(with("path=a,ops=1,bandwidth-burst=1M"), alone);
    }

    #[test]
    fn a_port_of_the_host_leads_to_one_place_and_needs_a_way() {
        let with = |ports: &[&str], net: &str| {
            let mut spec = good();
            spec.nets = vec![net.parse().unwrap()];
            spec.ports = ports.iter().map(|port| port.parse().unwrap()).collect();
            spec.validate().map_err(|error| error.to_string())
        };
        for ports in [&["80:80", "81:80", "80:80/udp"][..], &["127.0.0.1:80:80", "[::1]:80:80/udp"]] {
            with(ports, "user").unwrap();
        }
        for ports in [
            ["80:80", "80:81"],
            ["127.0.0.1:80:80", "80:81"],
            ["127.0.0.1:80:80", "127.0.0.2:80:80"],
            ["[::]:80:80/udp", "[::1]:80:80/udp"],
        ] {
            assert!(with(&ports, "user").unwrap_err().contains("both need the host's port 80"), "{ports:?}");
        }
        let without = with(&["80:81"], "tap=t").unwrap_err();
        assert_eq!(without, "the port 80:81 needs a user network: give --net user, too");
    }

    #[test]
    fn a_vsock_has_a_guests_number_and_a_sockets_path() {
        let with = |text: &str| refused(|spec| spec.vsock = Some(text.parse().unwrap()));
        assert_eq!(with("/v,cid=2"), "the vsock's cid cannot be 2: 3 to 4294967294");
        assert_eq!(with("/v,cid=4294967295"), "the vsock's cid cannot be 4294967295: 3 to 4294967294");
        assert!(with(&"x".repeat(97)).contains("97 bytes"));
        let mut spec = good();
        for path in ["v".to_owned(), "x".repeat(96)] {
            spec.vsock = Some(VsockSpec { path: Some(path.into()), cid: u32::MAX - 1 });
            spec.validate().unwrap();
        }
        let nowhere = refused(|spec| spec.vsock = Some(VsockSpec { path: Some(PathBuf::new()), cid: 3 }));
        assert_eq!(nowhere, "the path of the vsock is empty: name a file");
    }
}
