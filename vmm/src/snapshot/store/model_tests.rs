//! Random lives of VMs beside a model that is no more than what each page and cluster must hold.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::testing::{Clusters, PAGES, Pages, World, id};

/// What happens. Which VM or snapshot is meant is a number, of which those that there are are counted off.
#[derive(Clone, Debug)]
enum Step {
    /// The guest writes a byte all over a page and one all over a cluster.
    Write {
        vm: usize,
        page: usize,
        cluster: usize,
        byte: u8,
    },
    Snapshot {
        vm: usize,
    },
    RollBack {
        vm: usize,
        to: usize,
    },
    Clone {
        of: usize,
    },
    Remove {
        which: usize,
    },
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    let any = 0..64_usize;
    prop_oneof![
        4 => (any.clone(), any.clone(), any.clone(), 0..4_u8)
            .prop_map(|(vm, page, cluster, byte)| Step::Write { vm, page, cluster, byte }),
        3 => any.clone().prop_map(|vm| Step::Snapshot { vm }),
        2 => (any.clone(), any.clone()).prop_map(|(vm, to)| Step::RollBack { vm, to }),
        1 => any.clone().prop_map(|of| Step::Clone { of }),
        2 => any.prop_map(|which| Step::Remove { which }),
        1 => Just(Step::Sweep),
    ]
}

/// What a machine holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Machine {
    pages: Pages,
    clusters: Clusters,
}

/// A VM: what it holds now, and the snapshot that it is on.
#[derive(Clone, Copy, Debug, Default)]
struct Vm {
    now: Machine,
    on: Option<u64>,
}

/// The world and what must be in it.
struct Model {
    world: World,
    vms: BTreeMap<u64, Vm>,
    /// Removed ones, too, for VMs may be on them.
    snapshots: BTreeMap<u64, Machine>,
    seen: Vec<u64>,
    next: u64,
}

/// The frozen layer of a snapshot (see [`World::snapshot`]).
fn layer(snapshot: u64) -> u64 {
    snapshot + 10
}

impl Model {
    fn new() -> Self {
        let vms = BTreeMap::from([(1, Vm::default())]);
        Self { world: World::new(), vms, snapshots: BTreeMap::new(), seen: Vec::new(), next: 100 }
    }

    /// A number of which the next ten belong to nobody else.
    fn number(&mut self) -> u64 {
        self.next += 100;
        self.next
    }

    fn vm(&self, which: usize) -> u64 {
        self.vms.keys().nth(which % self.vms.len()).copied().unwrap()
    }

    fn snapshot(&self, which: usize) -> Option<u64> {
        self.seen.get(which.checked_rem(self.seen.len())?).copied()
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Write { vm, page, cluster, byte } => {
                let number = self.vm(vm);
                let now = &mut self.vms.get_mut(&number).unwrap().now;
                now.pages[page % PAGES as usize] = byte;
                let clusters = now.clusters.len();
                // A layer that is made of a file has no zeroes in it.
                now.clusters[cluster % clusters] = byte.max(1);
            }
            Step::Snapshot { vm } => self.freeze(self.vm(vm)),
            Step::RollBack { vm, to } => {
                if let Some(to) = self.snapshot(to) {
                    self.put(self.vm(vm), to);
                }
            }
            Step::Clone { of } => {
                if let Some(of) = self.snapshot(of) {
                    let number = self.number();
                    self.put(number, of);
                }
            }
            Step::Remove { which } => {
                if let Some(which) = self.snapshot(which) {
                    self.world.store.mark_removed(id(which)).unwrap();
                    self.seen.retain(|seen| *seen != which);
                }
            }
            Step::Sweep => drop(self.world.sweep().unwrap()),
        }
    }

    /// A snapshot holds what differs from the one that the VM is on, and the VM goes on from it.
    fn freeze(&mut self, vm: u64) {
        let Vm { now, on } = self.vms[&vm];
        let before = on.map(|on| self.snapshots[&on]).unwrap_or_default();
        let changed = |(now, before): (&u8, &u8)| (now != before).then_some(*now);
        let pages = now.pages.iter().zip(&before.pages).map(changed);
        let pages: Vec<(u32, u8)> = (0..).zip(pages).filter_map(|(at, byte)| Some((at, byte?))).collect();
        let clusters = now.clusters.iter().zip(&before.clusters).map(changed);
        let clusters: Vec<(u64, u8)> =
            (0..).zip(clusters).filter_map(|(at, byte)| Some((at, byte?))).collect();
        let number = self.number();
        self.world.layer(layer(number), on.map(layer), &clusters).unwrap();
        self.world.snapshot(number, vm, on, &pages).unwrap();
        self.snapshots.insert(number, now);
        self.seen.push(number);
        self.put(vm, number);
    }

    /// The VM goes on from a snapshot, with an empty layer on top.
    fn put(&mut self, vm: u64, on: u64) {
        let top = self.number();
        self.world.empty_layer(top, layer(on)).unwrap();
        self.world.user(vm, Some(on), Some(top), true);
        self.vms.insert(vm, Vm { now: self.snapshots[&on], on: Some(on) });
    }

    /// Every snapshot that users see holds what it held, and so does the one below each VM.
    fn check(&self) {
        assert_eq!(self.world.seen(), self.seen);
        for number in &self.seen {
            let machine = self.snapshots[number];
            assert_eq!(self.world.memory(*number).unwrap(), machine.pages, "memory of {number}");
            assert_eq!(self.world.disk(layer(*number)), machine.clusters, "disk of {number}");
        }
        for (record, _) in self.world.users.lock().unwrap().values() {
            let top = record.disks[0].map(|top| u64::from_str_radix(&top.to_string(), 16).unwrap());
            let on = record.parent.map(|on| u64::from_str_radix(&on.to_string(), 16).unwrap());
            if let Some((top, on)) = top.zip(on) {
                assert_eq!(
                    self.world.disk(top),
                    self.snapshots[&on].clusters,
                    "what a VM on {on} starts from"
                );
                assert_eq!(self.world.memory(on).unwrap(), self.snapshots[&on].pages, "memory below a VM");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_done_each_snapshot_holds_what_it_held(steps in prop::collection::vec(step(), 1..40)) {
        let mut model = Model::new();
        for step in &steps {
            model.take(step);
            if matches!(step, Step::Sweep | Step::Remove { .. }) {
                model.check();
            }
        }
        model.world.sweep().unwrap();
        model.check();
        assert!(model.world.is_tidy(), "a sweep leaves something");
    }
}
