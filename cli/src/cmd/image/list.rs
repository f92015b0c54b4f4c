//! `skiff image ls`: which images there are.

use anyhow::Result;
use clap::ArgMatches;
use images::manifest::{Agent, Manifest, Source};
use images::store::{Image, Store as Images};
use serde::Serialize;

use crate::cmd::snapshot::bytes;
use crate::cmd::table::table;
use crate::cmd::{Verb, print, print_json};
use crate::flags::{self, Flag};
use crate::store::entry::Look;
use crate::store::{Store, images::tell_wrong, time};

/// `skiff image ls`.
pub const LS: Verb = Verb {
    name: "ls",
    about: "List images",
    long: "List images: a line a name. SIZE is what the image takes by itself; what several images share is counted for each. AGENT says how \
           skiff's agent runs in its VMs: as a service of the guest's init, as the init itself, or not at all (then skiff exec and cp cannot be used). \
           A warm image is started from a snapshot, and not booted.",
    after: String::new,
    flags: || flags::describe(FLAGS),
    operands: &[],
    run: ls,
};

#[derive(Default)]
struct Asked {
    quiet: bool,
    json: bool,
}

const FLAGS: &[Flag<Asked>] = &[
    Flag::quiet("Print names only; of an image that has none, the short ID", |asked, _| {
        asked.quiet = true;
        Ok(())
    }),
    Flag::json("Print a JSON array of objects", |asked, _| {
        asked.json = true;
        Ok(())
    }),
];

/// An image as programs see it. The keys stay what they are.
#[derive(Serialize)]
pub struct Shown {
    pub name: Option<String>,
    pub names: Vec<String>,
    pub id: String,
    pub os: String,
    pub created: String,
    /// In bytes of the host's file system.
    pub size: u64,
    /// Of the root disk as a VM sees it at first, in bytes.
    pub disk_size: u64,
    pub agent: Agent,
    pub warm: bool,
    pub source: Source,
    /// The VMs of it.
    pub vms: Vec<String>,
}

impl Shown {
    pub fn new(store: &Store, images: &Images, image: &Image, vms: &[Look]) -> Result<Self> {
        let names: Vec<String> = image.names.iter().map(ToString::to_string).collect();
        let manifest = &image.manifest;
        Ok(Self {
            name: names.first().cloned(),
            names,
            id: image.id.to_string(),
            os: manifest.os.clone(),
            created: time::rfc3339(manifest.created_ms),
            size: size(images, manifest),
            disk_size: manifest.disk.grows_to,
            agent: manifest.agent,
            warm: images.warm(&image.id)?.is_some(),
            source: manifest.source.clone(),
            vms: store.vms_of(image, vms),
        })
    }
}

/// What an image's files take of the host's file system, in bytes.
pub fn size(images: &Images, manifest: &Manifest) -> u64 {
    manifest.blobs().iter().map(|blob| images.taken(&blob.digest)).fold(0, u64::saturating_add)
}

/// As the table has it.
pub fn agent(agent: Agent) -> &'static str {
    match agent {
        Agent::None => "none",
        Agent::Service => "service",
        Agent::Init => "init",
    }
}

fn ls(matches: &ArgMatches) -> Result<u8> {
    let mut asked = Asked::default();
    flags::apply(FLAGS, matches, &mut asked)?;
    let store = Store::open()?;
    let images = store.images();
    let (all, wrong) = images.list()?;
    tell_wrong(wrong);
    if asked.quiet {
        return print(all.iter().flat_map(called).map(|name| format!("{name}\n")).collect::<String>());
    }
    if asked.json {
        let vms = store.all()?;
        let shown: Result<Vec<Shown>> =
            all.iter().map(|image| Shown::new(&store, &images, image, &vms)).collect();
        return print_json(&shown?);
    }
    let mut rows = Vec::new();
    for image in &all {
        let warm = if images.warm(&image.id)?.is_some() { "yes" } else { "" };
        let names = image.names.iter().map(ToString::to_string);
        let nameless = image.names.is_empty().then(|| "<none>".to_owned());
        rows.extend(names.chain(nameless).map(|name| {
            vec![
                name,
                image.id.short(),
                image.manifest.os.clone(),
                bytes(size(&images, &image.manifest)),
                format!("{} ago", time::since(image.manifest.created_ms)),
                agent(image.manifest.agent).to_owned(),
                warm.to_owned(),
            ]
        }));
    }
    print(table(&["NAME", "ID", "OS", "SIZE", "CREATED", "AGENT", "WARM"], &rows))
}

/// Its names, or its short ID.
fn called(image: &Image) -> Vec<String> {
    if image.names.is_empty() {
        return vec![image.id.short()];
    }
    image.names.iter().map(ToString::to_string).collect()
}
