//! Where stock kernels run: straight on this machine's KVM, or in kvmbox.

use std::fs::{self, OpenOptions};
use std::path::Path;

/// A place, and why it is this one.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// `/dev/kvm` runs stock kernels.
    Host(String),
    /// It does not.
    Kvmbox(String),
}

impl Place {
    /// Looks at this machine.
    pub fn of_machine() -> Place {
        let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let assisted = Path::new("/sys/module/kvm_pvm").exists();
        Place::judge(opened.err().map(|error| error.to_string()), &cpuinfo, assisted)
    }

    fn judge(refusal: Option<String>, cpuinfo: &str, assisted: bool) -> Place {
        if let Some(refusal) = refusal {
            return Place::Kvmbox(format!("/dev/kvm cannot be opened here ({refusal})"));
        }
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        match flags.split_whitespace().find(|flag| matches!(*flag, "vmx" | "svm")) {
            _ if assisted => Place::Kvmbox("this machine's KVM works in software (kvm_pvm), which stock kernels do not run on".into()),
            Some(flag) => Place::Host(format!("this machine's processor runs guests itself ({flag})")),
            None => Place::Kvmbox(
                "this machine's processor shows no vmx or svm, so its /dev/kvm works in software, which stock kernels do not run on".into(),
            ),
        }
    }

    /// A line for the user.
    pub fn describe(&self) -> String {
        match self {
            Place::Host(why) => format!("straight on /dev/kvm: {why}"),
            Place::Kvmbox(why) => format!("in kvmbox: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hardware_support_counts() {
        let with = "processor: 0\nflags\t\t: fpu svm sse\n";
        assert!(matches!(Place::judge(None, with, false), Place::Host(_)));
        assert!(matches!(Place::judge(None, with, true), Place::Kvmbox(_)));
        assert!(matches!(Place::judge(None, "flags : fpu\n", false), Place::Kvmbox(_)));
        assert!(matches!(Place::judge(Some("no".into()), with, false), Place::Kvmbox(_)));
    }
}
