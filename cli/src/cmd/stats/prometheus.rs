//! The figures in Prometheus' text format, version 0.0.4: one family after the other, each with its help and type.

use vmm::stats::VmStats;

use super::Figures;

/// A family of samples: its name, its type and its help.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    /// The samples of one VM: labels beside the VM's, and the value.
    samples: fn(&VmStats) -> Vec<Sample>,
}

/// Labels beside the VM's, and the value as text.
type Sample = (Vec<(&'static str, String)>, String);

/// The figures of all VMs.
pub fn text(all: &[Figures]) -> String {
    let mut text = String::new();
    for family in FAMILIES {
        let name = family.name;
        text.push_str(&format!("# HELP {name} {}\n# TYPE {name} {}\n", family.help, family.kind));
        for figures in all {
            for (labels, value) in (family.samples)(&figures.stats) {
                let mut line = format!("{name}{{vm=\"{}\"", escaped(&figures.name));
                for (label, value) in labels {
                    line.push_str(&format!(",{label}=\"{}\"", escaped(&value)));
                }
                text.push_str(&format!("{line}}} {value}\n"));
            }
        }
    }
    text
}

/// A label's value, as it stands between quotation marks.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn one(value: u64) -> Vec<Sample> {
    vec![(Vec::new(), value.to_string())]
}

/// A number of `unit`s, of which there are `per` in one of what is asked for.
fn decimal(amount: u64, digits: u32) -> String {
    let per = 10_u64.saturating_pow(digits);
    let width = usize::try_from(digits).unwrap_or(0);
    format!("{}.{:0width$}", amount / per, amount % per)
}

/// One sample for each device.
macro_rules! of_devices {
    ($field:ident) => {
        |stats| {
            let labels = |id: &str, kind: &str| vec![("device", id.to_owned()), ("kind", kind.to_owned())];
            let sample = |device: &vmm::stats::DeviceStats| {
                (labels(&device.id, &device.kind), device.$field.to_string())
            };
            stats.devices.iter().map(sample).collect()
        }
    };
}

const FAMILIES: &[Family] = &[
    Family {
        name: "skiff_vm_uptime_seconds",
        kind: "gauge",
        help: "Time since the VM was started.",
        samples: |stats| vec![(Vec::new(), decimal(stats.uptime_ms, 3))],
    },
    Family {
        name: "skiff_vm_boots_total",
        kind: "counter",
        help: "How often the guest has been booted.",
        samples: |stats| one(stats.boots),
    },
    Family {
        name: "skiff_vcpu_time_seconds_total",
        kind: "counter",
        help: "Host processor time of a vCPU.",
        samples: |stats| {
            let sample = |vcpu: &vmm::stats::VcpuStats| {
                (vec![("vcpu", vcpu.index.to_string())], decimal(vcpu.time_ns, 9))
            };
            stats.vcpus.iter().map(sample).collect()
        },
    },
    Family {
        name: "skiff_vcpu_exits_total",
        kind: "counter",
        help: "How often a vCPU left the guest for skiff, by reason.",
        samples: |stats| {
            let of = |vcpu: &vmm::stats::VcpuStats| -> Vec<Sample> {
                let labels =
                    |reason: &String| vec![("vcpu", vcpu.index.to_string()), ("reason", reason.clone())];
                vcpu.exits.iter().map(|(reason, count)| (labels(reason), count.to_string())).collect()
            };
            stats.vcpus.iter().flat_map(of).collect()
        },
    },
    Family {
        name: "skiff_memory_total_bytes",
        kind: "gauge",
        help: "Memory that the guest was given.",
        samples: |stats| one(stats.memory.total),
    },
    Family {
        name: "skiff_memory_resident_bytes",
        kind: "gauge",
        help: "How much of it the host has backed with memory of its own.",
        samples: |stats| one(stats.memory.resident),
    },
    Family {
        name: "skiff_memory_shared_bytes",
        kind: "gauge",
        help: "How much of it is pages of a snapshot that the guest has only read, in the host's memory once for all VMs.",
        samples: |stats| one(stats.memory.shared),
    },
    Family {
        name: "skiff_memory_balloon_bytes",
        kind: "gauge",
        help: "How much of it the balloon holds for the host.",
        samples: |stats| one(stats.memory.balloon),
    },
    Family {
        name: "skiff_memory_reported_free_bytes_total",
        kind: "counter",
        help: "How much of it the guest has reported free.",
        samples: |stats| one(stats.memory.reported_free),
    },
    Family {
        name: "skiff_memory_guest",
        kind: "gauge",
        help: "What the guest says of its memory, by name (virtio 1.2, 5.5.6.3).",
        samples: |stats| {
            let sample = |(name, value): (&String, &u64)| (vec![("name", name.clone())], value.to_string());
            stats.memory.guest.iter().map(sample).collect()
        },
    },
    Family {
        name: "skiff_device_requests_total",
        kind: "counter",
        help: "Requests or packets that a device has finished.",
        samples: of_devices!(requests),
    },
    Family {
        name: "skiff_device_to_guest_bytes_total",
        kind: "counter",
        help: "Bytes that a device has given to the guest.",
        samples: of_devices!(to_guest),
    },
    Family {
        name: "skiff_device_from_guest_bytes_total",
        kind: "counter",
        help: "Bytes that the guest has given to a device.",
        samples: of_devices!(from_guest),
    },
    Family {
        name: "skiff_device_errors_total",
        kind: "counter",
        help: "Requests that failed and packets that were dropped.",
        samples: of_devices!(errors),
    },
    Family {
        name: "skiff_device_throttled_total",
        kind: "counter",
        help: "How often a rate limit made the guest wait.",
        samples: of_devices!(throttled),
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use vmm::stats::{DeviceStats, MemoryStats, VcpuStats};

    use super::*;

    #[test]
    fn every_sample_stands_below_its_family_and_labels_are_escaped() {
        let stats = VmStats {
            uptime_ms: 1500,
            boots: 2,
            vcpus: vec![VcpuStats {
                index: 1,
                time_ns: 1_000_000_002,
                exits: BTreeMap::from([("io_in".to_owned(), 7)]),
            }],
            memory: MemoryStats { total: 64 << 20, ..MemoryStats::default() },
            devices: vec![DeviceStats {
                id: "a\"\\\n".to_owned(),
                kind: "block".to_owned(),
                requests: 3,
                ..DeviceStats::default()
            }],
        };
        let all = [Figures { name: "web".to_owned(), stats }];
        let text = text(&all);
        for line in [
            "skiff_vm_uptime_seconds{vm=\"web\"} 1.500",
            "skiff_vm_boots_total{vm=\"web\"} 2",
            "skiff_vcpu_time_seconds_total{vm=\"web\",vcpu=\"1\"} 1.000000002",
            "skiff_vcpu_exits_total{vm=\"web\",vcpu=\"1\",reason=\"io_in\"} 7",
            "skiff_memory_total_bytes{vm=\"web\"} 67108864",
            "skiff_device_requests_total{vm=\"web\",device=\"a\\\"\\\\\\n\",kind=\"block\"} 3",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\n{text}");
        }
        let mut family = "";
        for line in text.lines() {
            match line.strip_prefix("# TYPE ") {
                Some(rest) => family = rest.split(' ').next().unwrap(),
                None if line.starts_with('#') => {}
                None => assert!(line.starts_with(&format!("{family}{{")), "{line} below {family}"),
            }
        }
    }
}
