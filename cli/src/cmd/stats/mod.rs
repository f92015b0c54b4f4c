//! `skiff stats`: what running VMs have used and done.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use serde::Serialize;
use vmm::control::{VmAction, VmReply};
use vmm::stats::VmStats;

use super::Verb;
use super::many;
use super::table::table;
use crate::exit::{self, Usage};
use crate::flags::{self, Completes, Count, Example, Flag, Operand, Takes};
use crate::store::{Store, time};

mod prometheus;

/// How long a VM may take to answer: one that hangs is not to keep the others' figures.
const ANSWER: Duration = Duration::from_secs(2);

/// `skiff stats`.
pub const VERB: Verb = Verb {
    name: "stats",
    about: "Show what running VMs have used and done",
    long: "Show what running VMs have used and done since they were started: processor time and exits of each vCPU, memory, and \
           what each device has moved. All that run, or those named.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[VMS],
    run: stats,
};

const VMS: Operand = Operand {
    name: "VM",
    count: Count::Any,
    completes: Completes::RunningVms,
    help: "The VMs, by name [default: all that run]",
};

#[derive(Default)]
struct Asked {
    json: bool,
    prometheus: bool,
}

const FLAGS: &[Flag<Asked>] = &[
    Flag::json("Print a JSON array of objects", |asked, _| {
        asked.json = true;
        Ok(())
    }),
    Flag {
        name: "prometheus",
        short: None,
        takes: Takes::Nothing,
        help: "Print Prometheus text (exposition format 0.0.4)",
        long: "",
        example: Example { args: &["--prometheus"], toml: "" },
        apply: |asked, _| {
            asked.prometheus = true;
            Ok(())
        },
    },
];

/// What people want to know of what the guest says of its memory, in this order.
const GUEST_MEMORY: [&str; 4] = ["total", "available", "free", "disk_caches"];

/// One VM's figures.
#[derive(Serialize)]
struct Figures {
    name: String,
    #[serde(flatten)]
    stats: VmStats,
}

fn stats(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    if asked.json && asked.prometheus {
        return Err(Usage("--json and --prometheus exclude each other: leave one out".to_owned()).into());
    }
    let store = Store::open()?;
    let named = VMS.given(matches);
    let names = match named.is_empty() {
        true => {
            let live = store.all()?.into_iter().filter(|look| look.is_live());
            live.map(|look| look.entry.name().to_owned()).collect()
        }
        false => named.clone(),
    };
    let (mut all, mut code) = (Vec::new(), exit::SUCCESS);
    for name in names {
        match ask(&store, &name) {
            Ok(stats) => all.push(Figures { name, stats }),
            // Nobody asked for one that ended just now.
            Err(_) if named.is_empty() && !store.get(&name).is_ok_and(|look| look.is_live()) => {}
            Err(error) => {
                exit::say(&error);
                code = exit::FAILURE;
            }
        }
    }
    super::print(match (asked.json, asked.prometheus) {
        (true, _) => super::json(&all)?,
        (_, true) => prometheus::text(&all),
        _ => all.iter().map(people).collect::<Vec<_>>().join("\n"),
    })?;
    Ok(code)
}

fn ask(store: &Store, name: &str) -> Result<VmStats> {
    let look = many::running(store, name)?;
    match look.entry.client(Some(ANSWER))?.act(VmAction::Stats).with_context(|| name.to_owned())? {
        VmReply::Stats(stats) => Ok(*stats),
        VmReply::Ended => bail!("{name} has just ended"),
        _ => bail!("{name} answers something else: it was started by another version of skiff"),
    }
}

fn people(figures: &Figures) -> String {
    let Figures { name, stats } = figures;
    let memory = &stats.memory;
    let mut text = format!("{name}: up {}, boots: {}\n", time::span(stats.uptime_ms), stats.boots);
    text.push_str(&format!("memory: {} of {} on the host", bytes(memory.resident), bytes(memory.total)));
    // The last is all that the guest ever gave back: it may have touched it again since.
    for (what, amount) in [
        ("shared with its snapshot", memory.shared),
        ("in the balloon", memory.balloon),
        ("given back so far", memory.reported_free),
    ] {
        if amount > 0 {
            text.push_str(&format!(", {} {what}", bytes(amount)));
        }
    }
    text.push('\n');
    text.push_str(&guest_memory(&memory.guest));
    let vcpus: Vec<_> = stats
        .vcpus
        .iter()
        .map(|vcpu| {
            let exits: Vec<_> =
                vcpu.exits.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            vec![vcpu.index.to_string(), seconds(vcpu.time_ns), exits.join(", ")]
        })
        .collect();
    text.push_str(&table(&["VCPU", "TIME", "EXITS"], &vcpus));
    let devices: Vec<_> = stats
        .devices
        .iter()
        .map(|device| {
            vec![
                device.id.clone(),
                device.kind.clone(),
                device.requests.to_string(),
                bytes(device.to_guest),
                bytes(device.from_guest),
                device.errors.to_string(),
                device.throttled.to_string(),
            ]
        })
        .collect();
    if !devices.is_empty() {
        let header = ["DEVICE", "KIND", "REQUESTS", "TO GUEST", "FROM GUEST", "ERRORS", "THROTTLED"];
        text.push_str(&table(&header, &devices));
    }
    text
}

/// What the guest says of its memory, on a line; nothing while it says nothing. Counts of faults are for `--json`.
fn guest_memory(said: &BTreeMap<String, u64>) -> String {
    let part = |key: &&str| {
        let amount = said.get(*key)?;
        Some(format!("{} {}", bytes(*amount), key.replace('_', " ")))
    };
    let parts: Vec<_> = GUEST_MEMORY.iter().filter_map(part).collect();
    if parts.is_empty() { String::new() } else { format!("guest: {}\n", parts.join(", ")) }
}

/// With three digits or so: `1.5M`.
fn bytes(amount: u64) -> String {
    for (unit, shift) in [("G", 30), ("M", 20), ("K", 10)] {
        let tenths = (u128::from(amount) * 10) >> shift;
        if tenths >= 1000 {
            return format!("{}{unit}", tenths / 10);
        }
        if tenths >= 10 {
            return format!("{}.{}{unit}", tenths / 10, tenths % 10);
        }
    }
    amount.to_string()
}

fn seconds(nanoseconds: u64) -> String {
    let hundredths = nanoseconds / 10_000_000;
    format!("{}.{:02}s", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        for (amount, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (1536, "1.5K"),
            (512 << 20, "512M"),
            (u64::MAX, "17179869183G"),
        ] {
            assert_eq!(bytes(amount), text);
        }
        assert_eq!(seconds(61_239_000_000), "61.23s");
    }

    #[test]
    fn a_guest_without_a_balloon_driver_says_nothing_of_its_memory() {
        assert_eq!(guest_memory(&BTreeMap::new()), "");
        let said = [("swap_in", 1), ("disk_caches", 3 << 20), ("free", 1 << 20), ("available", 2 << 20)];
        let said = said.map(|(name, value)| (name.to_owned(), value)).into();
        assert_eq!(guest_memory(&said), "guest: 2.0M available, 1.0M free, 3.0M disk caches\n");
    }
}
