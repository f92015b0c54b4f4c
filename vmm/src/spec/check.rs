//! What can be said about a spec without asking the host.

use std::path::PathBuf;

use super::{
    DiskSpec, MAX_CMDLINE, MAX_CPUS, MAX_DISK_QUEUES, MAX_DISK_SERIAL, MEMORY_STEP, MIN_MEMORY, Memory,
    Stream, VmSpec,
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
    /// One file is two disks and would be written.
    #[error(
        "the disk {path} is given twice: a second writer would destroy it, make both readonly or drop one"
    )]
    DiskTwice {
        /// The disk.
        path: PathBuf,
    },
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
        if (&self.serial, &self.console) == (&Stream::Stdio, &Stream::Stdio) {
            return Err(SpecError::TwoStdio);
        }
        self.check_disks()
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
            let clash = |other: &&&DiskSpec| other.path == disk.path && !(other.readonly && disk.readonly);
            if before.iter().find(clash).is_some() {
                return Err(SpecError::DiskTwice { path: path() });
            }
            before.push(disk);
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
    }
}
