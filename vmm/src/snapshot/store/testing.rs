//! A store whose storage fails, with VMs that are no more than their records.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use devices::storage::Storage as _;
use devices::storage::faulty::FaultyStorage;

use super::super::manifest::{self, MemoryFiles, Sum};
use super::super::memory::{self, Content, Index, MemoryLayer, PAGE, Run};
use super::super::{Id, Manifest, Places, Record};
use super::{Store, StoreError, User};

/// Pages of the guests' memory.
pub const PAGES: u32 = 8;

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
        let users = self.users.lock().unwrap();
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

    /// Make the snapshot `number` of the VM `vm`, whose memory has `pages` over those of `base`.
    pub fn snapshot(
        &self,
        number: u64,
        vm: u64,
        base: Option<u64>,
        pages: &[(u32, u8)],
    ) -> Result<(), StoreError> {
        let draft = self.store.begin(id(number), base.map(id))?;
        let manifest = self.fill(draft.dir(), number, vm, base, pages)?;
        draft.commit(&manifest)
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
