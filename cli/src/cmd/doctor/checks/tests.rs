use super::super::Status;
use super::*;

const INTEL: &str = "processor\t: 0\nflags\t\t: fpu vme vmx ssse3\n";
const AMD: &str = "processor\t: 0\nflags\t\t: fpu svm hypervisor\n";
const NEITHER: &str = "processor\t: 0\nflags\t\t: fpu vme hypervisor\nvmx flags\t: vnmi\n";

fn io_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

#[test]
fn a_processor_is_known_by_its_flags() {
    assert_eq!(processor(INTEL, false, true), Finding::ok("processor", "Intel VT-x (vmx)"));
    assert_eq!(
        processor(AMD, false, true),
        Finding::ok("processor", "AMD-V (svm), nested: this host is a VM itself")
    );
    assert_eq!(processor(NEITHER, false, false).status, Status::Fail);
    assert_eq!(processor("", false, false).status, Status::Fail);
}

#[test]
fn software_assisted_kvm_is_a_warning_that_says_what_does_not_run() {
    let finding = processor(NEITHER, true, true);
    assert_eq!(finding.status, Status::Warn);
    assert!(finding.found.contains("(kvm_pvm), and stock Linux kernels do not run"), "{}", finding.found);
    assert_eq!(processor(NEITHER, false, true).status, Status::Warn);
    // Who may not use it is told so by the next check.
    assert_eq!(processor(NEITHER, true, false).status, Status::Warn);
}

#[test]
fn a_missing_kvm_has_the_fix_of_this_processor() {
    let fix = |virtualization| {
        let finding = kvm(&Err(KvmError::Missing(io_error(libc::ENOENT))), virtualization, None);
        assert_eq!((finding.status, finding.found.as_str()), (Status::Fail, "there is no /dev/kvm"));
        finding.fix.unwrap()
    };
    assert!(fix(Some(Virtualization::VtX)).starts_with("sudo modprobe kvm_intel;"));
    assert!(fix(Some(Virtualization::AmdV)).starts_with("sudo modprobe kvm_amd;"));
    assert!(fix(None).starts_with("enable VT-x or AMD-V first"));
}

#[test]
fn who_may_not_use_kvm_joins_the_group_that_may_if_there_is_one() {
    let fix = |group| kvm(&Err(KvmError::Permission(io_error(libc::EACCES))), None, group).fix.unwrap();
    assert_eq!(fix(Some("kvm")), "sudo usermod -aG kvm $USER, then log in again");
    assert_eq!(fix(Some("root")), "sudo setfacl -m u:$USER:rw /dev/kvm");
    assert_eq!(fix(None), "sudo setfacl -m u:$USER:rw /dev/kvm");
}

#[test]
fn every_fault_of_kvm_fails_and_has_a_fix() {
    let faults = [
        KvmError::Version(11),
        KvmError::Lacks("KVM_CAP_IRQFD".to_owned()),
        KvmError::Busy { what: "create a VM" },
        KvmError::Open(io_error(libc::ENODEV)),
        KvmError::Failed { what: "create a VM", source: io_error(libc::ENOMEM) },
    ];
    for fault in faults {
        let finding = kvm(&Err(fault), None, None);
        assert_eq!(finding.status, Status::Fail, "{finding:?}");
        assert!(finding.fix.is_some(), "{finding:?}");
    }
    let failed = KvmError::Failed { what: "create a VM", source: io_error(libc::ENOMEM) };
    assert!(kvm(&Err(failed), None, None).found.starts_with("cannot create a VM: Cannot allocate memory"));
    let fine = kvm(&Ok(KvmFacts { max_cpus: 1024 }), None, None);
    assert_eq!(fine, Finding::ok("kvm", "/dev/kvm, up to 1024 vCPUs a VM"));
}

#[test]
fn memory_is_told_and_little_of_it_is_a_warning() {
    let fine = memory("MemTotal:        8388608 kB\nMemFree:  1 kB\nMemAvailable:    4194304 kB\n");
    assert_eq!(fine, Finding::ok("memory", "8G, 4G of it free"));
    assert_eq!(memory("MemTotal: 524288 kB\nMemAvailable: 102400 kB\n").status, Status::Warn);
    assert_eq!(memory("").status, Status::Warn);
}

#[test]
fn huge_pages_are_counted() {
    let text = |total, free, size| {
        format!("HugePages_Total: {total}\nHugePages_Free: {free}\nHugepagesize: {size} kB\n")
    };
    assert_eq!(huge_pages(&text(512, 100, 2048)), Finding::ok("huge-pages", "100 of 512 free, 2M each"));
    for (meminfo, word) in [
        (text(0, 0, 2048), "none reserved"),
        (text(512, 0, 2048), "0 of 512 free"),
        (text(4, 4, 1 << 20), "takes those of 2 MiB"),
        (String::new(), "has none"),
    ] {
        let finding = huge_pages(&meminfo);
        assert_eq!(finding.status, Status::Warn);
        assert!(finding.found.contains(word), "{finding:?}");
    }
}

#[test]
fn limits_are_raised_by_whoever_can() {
    let fix = |finding: Finding| finding.fix.unwrap_or_default();
    assert_eq!(files((Some(1024), Some(4096))), Finding::ok("open-files", "1024 a process"));
    assert_eq!(files((None, None)), Finding::ok("open-files", "as many as wanted"));
    assert_eq!(fix(files((Some(256), Some(4096)))), "ulimit -n 1024");
    assert_eq!(fix(files((Some(256), None))), "ulimit -n 1024");
    assert!(fix(files((Some(256), Some(256)))).contains("hard nofile 1024"));
    assert_eq!(locked_memory((Some(8 << 20), None)), Finding::ok("locked-memory", "8M a process"));
    assert_eq!(locked_memory((None, None)).status, Status::Ok);
    assert_eq!(fix(locked_memory((Some(65536), None))), "ulimit -l 1024");
    assert!(fix(locked_memory((Some(65536), Some(65536)))).contains("hard memlock 1024"));
}

#[test]
fn what_keeps_io_uring_away_is_named() {
    assert_eq!(io_uring(&Ok(()), Some(0)).status, Status::Ok);
    for (code, disabled, word) in [
        (libc::EPERM, Some(2), "sysctl kernel.io_uring_disabled=0"),
        (libc::EPERM, Some(0), "seccomp profile"),
        (libc::EPERM, None, "seccomp profile"),
        (libc::ENOSYS, None, "Linux 5.6"),
        (libc::ENOMEM, None, "limits"),
    ] {
        let finding = io_uring(&Err(io_error(code)), disabled);
        assert_eq!(finding.status, Status::Warn);
        assert!(finding.fix.as_ref().unwrap().contains(word), "{finding:?}");
    }
}

#[test]
fn what_only_some_vms_need_is_a_warning() {
    assert_eq!(tun(&Ok(())).status, Status::Ok);
    for (code, fix) in
        [(libc::ENOENT, "modprobe tun"), (libc::EACCES, "chmod 666"), (libc::ENODEV, "modprobe tun")]
    {
        let finding = tun(&Err(io_error(code)));
        assert_eq!(finding.status, Status::Warn);
        assert!(finding.fix.as_ref().unwrap().contains(fix), "{finding:?}");
    }
    let missing = tool("passt", None, "no user networks", "sudo apt install passt");
    assert_eq!(missing, Finding::warn("passt", "not installed; no user networks", "sudo apt install passt"));
    let there = |version: Option<&str>| {
        let tool_ = Tool { path: "/usr/bin/passt".into(), version: version.map(str::to_owned) };
        tool("passt", Some(&tool_), "", "").found
    };
    assert_eq!(there(Some("passt 1")), "/usr/bin/passt, passt 1");
    assert_eq!(there(None), "/usr/bin/passt");
}

#[test]
fn what_only_images_need_is_a_warning_with_the_package_that_brings_it() {
    let there = |path: &str| Some(Tool { path: path.into(), version: None });
    let (mke2fs, debugfs) = (there("/sbin/mke2fs"), there("/sbin/debugfs"));
    let fine = e2fsprogs(mke2fs.as_ref(), debugfs.as_ref());
    assert_eq!(fine, Finding::ok("e2fsprogs", "/sbin/mke2fs, /sbin/debugfs"));
    for missing in [e2fsprogs(None, debugfs.as_ref()), e2fsprogs(mke2fs.as_ref(), None)] {
        assert_eq!(
            (missing.status, missing.fix.as_deref()),
            (Status::Warn, Some("sudo apt install e2fsprogs"))
        );
    }
    assert_eq!(keyring(true), Finding::ok("debian-keys", KEYRING));
    let missing = keyring(false);
    assert_eq!(
        (missing.status, missing.fix.as_deref()),
        (Status::Warn, Some("sudo apt install debian-archive-keyring"))
    );
}

#[test]
fn who_is_not_root_needs_ids_and_what_maps_them() {
    let there = |path: &str| Some(Tool { path: path.into(), version: None });
    let both = |ids| Uidmap { newuidmap: there("/bin/newuidmap"), newgidmap: there("/bin/newgidmap"), ids };
    assert_eq!(uidmap(&both(Ok(()))), Finding::ok("uidmap", "/bin/newuidmap, /bin/newgidmap"));
    let missing = uidmap(&Uidmap { newgidmap: None, ..both(Ok(())) });
    assert_eq!((missing.status, missing.fix.as_deref()), (Status::Warn, Some("sudo apt install uidmap")));
    let none = uidmap(&both(Err(rootless::Error::NoIds { file: "/etc/subgid", user: "me".to_owned() })));
    assert_eq!(none.status, Status::Warn);
    assert!(none.found.starts_with("/etc/subgid gives me no IDs; "), "{none:?}");
    assert_eq!(none.fix.as_deref(), Some("echo me:100000:65536 | sudo tee -a /etc/subgid"));
}

#[test]
fn without_a_place_for_them_no_vm_can_run() {
    assert_eq!(state(&Ok("/s/skiff".into())), Finding::ok("state", "VMs are kept in /s/skiff"));
    let finding = state(&Err(anyhow::anyhow!("read-only").context("cannot write to /s")));
    assert_eq!((finding.status, finding.found.as_str()), (Status::Fail, "cannot write to /s: read-only"));
}
