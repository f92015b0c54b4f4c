//! `skiff snapshot tree`.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::ArgMatches;
use vmm::snapshot::Id;
use vmm::snapshot::manifest::Manifest;

use super::family;
use crate::cmd::many::VM;
use crate::cmd::{Verb, print};
use crate::store::layers::Family;
use crate::store::{Store, time};

pub const VERB: Verb = Verb {
    name: "tree",
    about: "Show how the snapshots of a VM come from each other",
    long: "Show how the snapshots of a VM come from each other, and where the VM is. Snapshots of another VM that it comes from \
           are shown as VM@SNAPSHOT.",
    after: String::new,
    flags: Vec::new,
    operands: &[VM],
    run,
};

fn run(matches: &ArgMatches) -> Result<u8> {
    let store = Store::open()?;
    let family = family(&store, &VM.one(matches))?;
    let users = store.users()?;
    // The names that the lives of VMs have now.
    let names = users.into_iter().map(|user| (user.record.vm, user.name)).collect();
    print(Tree::new(&family, names).draw())
}

/// The snapshots of a VM, each below the one that it comes from.
struct Tree<'a> {
    family: &'a Family,
    names: BTreeMap<Id, String>,
    below: BTreeMap<Option<Id>, Vec<&'a Manifest>>,
}

impl<'a> Tree<'a> {
    fn new(family: &'a Family, names: BTreeMap<Id, String>) -> Self {
        let mut below: BTreeMap<Option<Id>, Vec<&Manifest>> = BTreeMap::new();
        for manifest in family.origins.iter().chain(&family.own) {
            below.entry(family.visible(manifest.parent)).or_default().push(manifest);
        }
        Self { family, names, below }
    }

    fn draw(&self) -> String {
        let mut text = format!("{}{}\n", self.family.vm, self.here(None));
        self.draw_below(None, "", &mut text);
        text
    }

    fn draw_below(&self, parent: Option<Id>, indent: &str, text: &mut String) {
        let children = self.below.get(&parent).map(Vec::as_slice).unwrap_or_default();
        for (index, manifest) in children.iter().enumerate() {
            let last = index.saturating_add(1) == children.len();
            let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            text.push_str(&format!("{indent}{branch}{}\n", self.line(manifest)));
            // A wrong manifest that leads in a circle is below nothing, so it is not come to.
            self.draw_below(Some(manifest.id), &format!("{indent}{below}"), text);
        }
    }

    fn line(&self, manifest: &Manifest) -> String {
        let own = self.family.own.iter().any(|own| own.id == manifest.id);
        let vm = if own { "" } else { self.names.get(&manifest.vm).map_or("(removed)", String::as_str) };
        let at = if own { "" } else { "@" };
        let comment =
            if manifest.comment.is_empty() { String::new() } else { format!("  {}", manifest.comment) };
        let age = time::since(manifest.created_ms);
        format!("{vm}{at}{}  {age} ago{comment}{}", manifest.name, self.here(Some(manifest.id)))
    }

    fn here(&self, id: Option<Id>) -> &'static str {
        let nowhere = self.family.own.is_empty() && self.family.origins.is_empty();
        if self.family.current() == id && !nowhere { "  ← the VM is here" } else { "" }
    }
}

#[cfg(test)]
mod tests {
    use vmm::snapshot::Record;
    use vmm::snapshot::manifest::MemoryFiles;

    use super::*;

    fn id(number: u64) -> Id {
        format!("{number:016x}").parse().unwrap()
    }

    /// A snapshot of the VM `vm`, called `s` and its number.
    fn manifest(vm: u64, number: u64, parent: Option<u64>) -> Manifest {
        Manifest {
            format: 1,
            arch: String::new(),
            id: id(number),
            vm: id(vm),
            name: format!("s{number}"),
            parent: parent.map(id),
            created_ms: time::now(),
            comment: String::new(),
            removed: false,
            spec: String::new(),
            memory: MemoryFiles { data: String::new(), index: String::new(), base: None },
            disks: Vec::new(),
            pause_us: 0,
            files: BTreeMap::new(),
        }
    }

    fn family(parent: Option<u64>, own: Vec<Manifest>) -> Family {
        let mut record = Record::new(id(100), Vec::new());
        record.parent = parent.map(id);
        let (origins, hidden, wrong) = (Vec::new(), Vec::new(), Vec::new());
        Family { vm: "web".to_owned(), record: Some(record), own, origins, hidden, wrong }
    }

    #[test]
    fn children_hang_below_their_parents_and_the_vm_is_where_it_is() {
        let own = vec![
            manifest(100, 1, None),
            manifest(100, 2, Some(1)),
            manifest(100, 3, Some(2)),
            manifest(100, 4, Some(1)),
        ];
        let family = family(Some(3), own);
        let drawn = Tree::new(&family, BTreeMap::new()).draw();
        assert_eq!(
            drawn,
            "web\n\
             └─ s1  0s ago\n   \
                ├─ s2  0s ago\n   \
                │  └─ s3  0s ago  ← the VM is here\n   \
                └─ s4  0s ago\n"
        );
    }

    #[test]
    fn a_removed_parent_is_skipped_and_another_vms_is_named() {
        let mut family = family(Some(3), vec![manifest(100, 3, Some(2))]);
        family.hidden = vec![Manifest { removed: true, ..manifest(100, 2, Some(1)) }];
        family.origins = vec![Manifest { comment: "golden".to_owned(), ..manifest(7, 1, None) }];
        let drawn = Tree::new(&family, [(id(7), "gold".to_owned())].into()).draw();
        assert_eq!(drawn, "web\n└─ gold@s1  0s ago  golden\n   └─ s3  0s ago  ← the VM is here\n");
    }

    #[test]
    fn manifests_in_a_circle_are_not_followed_for_ever() {
        let mut family = family(Some(1), vec![manifest(100, 1, Some(2)), manifest(100, 2, Some(1))]);
        assert_eq!(Tree::new(&family, BTreeMap::new()).draw(), "web\n");
        family.hidden = std::mem::take(&mut family.own);
        assert_eq!(Tree::new(&family, BTreeMap::new()).draw(), "web\n");
    }
}
