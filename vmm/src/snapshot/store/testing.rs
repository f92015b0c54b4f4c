//! A store whose storage fails, with VMs that are no more than their records.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use devices::disk::layer::{self, Base, Format};
use devices::storage::Storage as _;
use devices::storage::faulty::FaultyStorage;

use super::super::manifest::{self, DiskPoint, MemoryFiles, Sum};
use super::super::memory::{self, Content, Index, MemoryLayer, PAGE, Run};
use super::super::{Id, Manifest, Places, Record};
use super::{Store, StoreError, User};

/// Pages of the guests' memory.
pub const PAGES: u32 = 8;

/// Of a disk's layer (qcow2).
const CLUSTER: u64 = 64 << 10;
/// Clusters of the guests' disks.
const CLUSTERS: u64 = 3;

/// What clusters of a disk hold: one byte each stands for a whole cluster.
pub type Clusters = [u8; CLUSTERS as usize];

/// What pages hold: one byte each stands for a whole page.
pub type Pages = [u8; PAGES as usize];

pub fn id(number: u64) -> Id {
    format!("{number:016x}").parse().unwrap()
}

/// A user's world.
pub struct World {
    pub storage: FaultyStorage,
    pub store: Store,
    /// By the numbers of their lives: the record, and whether the VM runs.
    pub users: Mutex<BTreeMap<u64, (Record, bool)>>,
}

impl World {
    pub fn new() -> Self {
        Self::on(FaultyStorage::new(), BTreeMap::new())
    }

    pub fn on(storage: FaultyStorage, users: BTreeMap<u64, (Record, bool)>) -> Self {
        let store = Store::over(Arc::new(storage.clone()), Places::new("/data"));
        Self { storage, store, users: Mutex::new(users) }
    }

    /// The same VMs on what is left of the storage.
    pub fn after(&self, storage: FaultyStorage) -> Self {
        Self::on(storage, self.users.lock().unwrap().clone())
    }

    pub fn users(&self) -> Result<Vec<User>, StoreError> {
        let mut users = self.users.lock().unwrap().clone();
        // A VM whose record is in a file.
        if let Some(record) = Record::read(&self.storage, Path::new("/vm/layers.json"))? {
            users.insert(100, (record, true));
        }
        let user = |(number, (record, running)): (&u64, &(Record, bool))| User {
            name: format!("vm{number}"),
            record: record.clone(),
            spec: String::new(),
            running: *running,
        };
        Ok(users.iter().map(user).collect())
    }

    /// The VM `number` is on the snapshot `parent`, and its disk's top layer is `top`.
    pub fn user(&self, number: u64, parent: Option<u64>, top: Option<u64>, running: bool) {
        let mut record = Record::new(id(number), vec![top.map(id)]);
        record.parent = parent.map(id);
        self.users.lock().unwrap().insert(number, (record, running));
    }

    /// Make the snapshot `number` of the VM `vm`, whose memory has `pages` over those of `base`, and whose disk's frozen layer
    /// is called as it is, plus 10.
    pub fn snapshot(
        &self,
        number: u64,
        vm: u64,
        base: Option<u64>,
        pages: &[(u32, u8)],
    ) -> Result<(), StoreError> {
        let draft = self.store.begin(id(number), base.map(id))?;
        let mut manifest = self.fill(draft.dir(), number, vm, base, pages)?;
        let layer = id(number + 10);
        let sum = Some(self.store.sum(&self.store.places().layer(layer))?);
        let (disk, size) = ("disk0".to_owned(), CLUSTERS * CLUSTER);
        manifest.disks.push(DiskPoint { disk, layer: Some(layer), size, sum, merging: None });
        draft.commit(&manifest)
    }

    /// Make the layer `number` on `below`, with these clusters.
    pub fn layer(&self, number: u64, below: Option<u64>, clusters: &[(u64, u8)]) -> Result<(), StoreError> {
        drop(self.store.pin()?);
        let path = |name: &str| PathBuf::from("/").join(name);
        let (raw, alone, empty) = (path("raw"), path("alone"), path("empty"));
        let to = self.store.places().layer(id(number));
        let failed = || StoreError::io("write", &to);
        for path in [&raw, &alone, &empty, &to] {
            self.storage.remove_file(path).map_err(failed())?;
        }
        let file = self.storage.create(&raw).map_err(failed())?;
        file.set_len(CLUSTERS * CLUSTER).map_err(failed())?;
        for (cluster, byte) in clusters {
            file.write_all_at(&vec![*byte; CLUSTER as usize], cluster * CLUSTER).map_err(failed())?;
        }
        let base =
            below.map(|below| Base { name: format!("{}.qcow2", id(below)).into(), format: Format::Qcow2 });
        layer::flatten(&self.storage, &raw, &alone, &mut |_, _| {})?;
        layer::create(&self.storage, &empty, base.as_ref(), CLUSTERS * CLUSTER)?;
        layer::merge(&self.storage, &alone, &empty, &to, &mut |_, _| {})?;
        self.storage.sync_dir(&self.store.places().layers()).map_err(failed())
    }

    /// Make the layer `number` on `below`, with nothing in it.
    pub fn empty_layer(&self, number: u64, below: u64) -> Result<(), StoreError> {
        let to = self.store.places().layer(id(number));
        self.storage.remove_file(&to).map_err(StoreError::io("delete", &to))?;
        let base = Base { name: format!("{}.qcow2", id(below)).into(), format: Format::Qcow2 };
        Ok(layer::create(&self.storage, &to, Some(&base), CLUSTERS * CLUSTER)?)
    }

    /// What the disk whose top layer is `number` holds.
    pub fn disk(&self, number: u64) -> Clusters {
        let (out, path) = (PathBuf::from("/flat-disk"), self.store.places().layer(id(number)));
        self.storage.remove_file(&out).unwrap();
        layer::flatten(&self.storage, &path, &out, &mut |_, _| {}).unwrap();
        read_qcow2(&self.storage.content(&out).unwrap())
    }

    fn fill(
        &self,
        dir: &Path,
        number: u64,
        vm: u64,
        base: Option<u64>,
        pages: &[(u32, u8)],
    ) -> Result<Manifest, StoreError> {
        let failed = || StoreError::io("write", dir);
        let (data, index) = (format!("memory-{number}"), format!("index-{number}"));
        let file = self.storage.create(&dir.join(&data)).map_err(failed())?;
        file.set_len(u64::from(PAGES) * PAGE).map_err(failed())?;
        let (mut hasher, mut runs) = (crc32fast::Hasher::new(), Vec::new());
        for (page, byte) in pages {
            let content = vec![*byte; PAGE as usize];
            if *byte != 0 {
                file.write_all_at(&content, u64::from(*page) * PAGE).map_err(failed())?;
                hasher.update(&content);
            }
            let content = if *byte == 0 { Content::Zero } else { Content::Data };
            runs.push(Run { first: *page, count: 1, content });
        }
        file.sync().map_err(failed())?;
        let made = Index::new(u64::from(PAGES) * PAGE, runs, hasher.finalize()).unwrap();
        let index_sum =
            made.write(&self.storage, &dir.join(&index)).map_err(std::io::Error::other).map_err(failed())?;
        let data_sum = Sum { len: made.size(), crc32: made.crc32() };
        Ok(Manifest {
            format: manifest::FORMAT,
            arch: std::env::consts::ARCH.to_owned(),
            id: id(number),
            vm: id(vm),
            name: format!("s{number}"),
            parent: base.map(id),
            created_ms: number,
            comment: String::new(),
            removed: false,
            spec: String::new(),
            files: [(data.clone(), data_sum), (index.clone(), index_sum)].into(),
            memory: MemoryFiles { data, index, base: base.map(id) },
            disks: Vec::new(),
            pause_us: 0,
        })
    }

    pub fn sweep(&self) -> Result<super::Swept, StoreError> {
        self.store.sweep(&|| self.users(), &mut |_, _| {})
    }

    /// The memory of a snapshot, after everything of it was checked.
    pub fn memory(&self, number: u64) -> Result<Pages, StoreError> {
        let chain = self.store.verify(id(number), &mut |_, _| {})?;
        let layers: Vec<MemoryLayer> =
            chain.iter().map(|manifest| self.store.memory_layer(manifest)).collect();
        let out = MemoryLayer { data: PathBuf::from("/flat"), index: PathBuf::from("/flat-index") };
        for path in [&out.data, &out.index] {
            self.storage.remove_file(path).unwrap();
        }
        memory::flatten(&self.storage, &layers, &out, &mut |_, _| {})?;
        let all = self.storage.content(&out.data).unwrap();
        let mut pages = Pages::default();
        for (page, content) in pages.iter_mut().zip(all.chunks(PAGE as usize)) {
            *page = content[0];
            assert!(content.iter().all(|byte| *byte == *page), "a page is torn");
        }
        Ok(pages)
    }

    /// The numbers of the snapshots that users see.
    pub fn seen(&self) -> Vec<u64> {
        let (all, wrong) = self.store.all().unwrap();
        assert!(wrong.is_empty(), "{wrong:?}");
        let seen = all.iter().filter(|manifest| !manifest.removed);
        seen.map(|manifest| u64::from_str_radix(&manifest.id.to_string(), 16).unwrap()).collect()
    }

    /// Whether the files of the store are those that manifests name, and no others.
    pub fn is_tidy(&self) -> bool {
        self.store.garbage(&|| self.users()).unwrap().is_empty()
    }
}

/// The clusters of a small qcow2 file without a backing file.
fn read_qcow2(file: &[u8]) -> Clusters {
    let number = |at: usize| u64::from_be_bytes(file[at..at + 8].try_into().unwrap());
    let place = |entry: u64| usize::try_from(entry & 0x00ff_ffff_ffff_fe00).unwrap();
    let table = place(number(place(number(40))));
    let mut clusters = Clusters::default();
    for (at, cluster) in clusters.iter_mut().enumerate().filter(|_| table != 0) {
        let entry = number(table + 8 * at);
        if entry & 1 == 0 && place(entry) != 0 {
            let content = &file[place(entry)..][..CLUSTER as usize];
            *cluster = content[0];
            assert!(content.iter().all(|byte| byte == cluster), "a cluster is torn");
        }
    }
    clusters
}
