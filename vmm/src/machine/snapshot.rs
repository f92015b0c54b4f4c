//! Taking a snapshot of a running machine.
//!
//! ```text
//!   vmm thread       prepare: refusals, draft, new layers, record, memory file
//!                    ├── the guest stands still ───────────────────────────────────────────────┐
//!                    │ vCPUs park ► devices stop, are saved ► chips, vCPUs, clock ► disks ► fork │
//!                    └───────────────────────────────────────────────────────────────────────────┘
//!   snapshot thread  layers synced and summed ► memory written ► state, manifest ► commit ► Message::Saved
//!   vmm thread       record, notice, reply
//! ```
//! A device that is drained may raise an interrupt, so that the chips are saved after the devices; and an interrupt may wake a vCPU, so that these
//! come later still. Whatever fails before the machine stands still leaves nothing behind; whatever fails after leaves it running on
//! its new layers, which say the same as the old ones.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arch::memory::GuestRam;
use devices::disk::Frozen;
use devices::ratelog::Chained;

use super::point::files;
use super::tops::{self, Tops};
use super::{Machine, chips, pause};
use crate::control::VmReply;
use crate::error::VmError;
use crate::event::Message;
use crate::home::Lineage;
use crate::host::Host;
use crate::snapshot::manifest::{FORMAT, Manifest, MemoryFiles, Sum};
use crate::snapshot::memory::{Image, Saver, Saving, rejoin};
use crate::snapshot::state::{STATE, VmState};
use crate::snapshot::store::Draft;
use crate::snapshot::{Id, Store};
use crate::spec::Memory;

/// How often whoever asked is told how far it is, at most.
const TELL: Duration = Duration::from_millis(200);

/// What the snapshot after this is made of.
#[derive(Clone, Debug)]
pub(super) struct Base {
    /// The snapshot that has what is not in the next one; `None` if the next one has all.
    pub(super) id: Option<Id>,
    /// What is in it.
    pub(super) memory: Arc<Image>,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) id: Id,
    pub(super) name: String,
    pub(super) comment: String,
}

/// A snapshot has been made, or not.
#[derive(Debug)]
pub(crate) struct Done {
    pub(super) asked: Asked,
    /// The life of the machine that it was taken of.
    pub(super) life: u64,
    pub(super) reply: Sender<VmReply>,
    pub(super) pause_us: u64,
    pub(super) begun: Instant,
    pub(super) result: Result<Made, VmError>,
}

/// What was made.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) base: Base,
    pub(super) memory_bytes: u64,
    pub(super) disk_bytes: u64,
}

/// Everything that can be done while the guest runs, before it stands still.
pub(super) struct Prepared {
    asked: Asked,
    draft: Draft,
    parent: Option<Id>,
    memory: MemoryFiles,
    saver: Saver,
    /// The VM's spec, as a text.
    spec: String,
    tops: Tops,
    begun: Instant,
}

/// What the `snapshot` thread does.
pub(super) struct Job {
    asked: Asked,
    store: Store,
    draft: Draft,
    manifest: Manifest,
    state: VmState,
    saving: Saving,
    frozen: Vec<Frozen>,
    life: u64,
    /// Only as long as the guest has it.
    ram: Weak<GuestRam>,
    teller: Teller,
    begun: Instant,
}

/// Tells whoever asked how far it is.
struct Teller {
    reply: Sender<VmReply>,
    /// When it was told last.
    told: Instant,
    /// The VM has ended: nobody needs the snapshot any more.
    ended: Arc<AtomicBool>,
}

impl Teller {
    /// So much of all is done. Says whether to go on.
    fn tell(&mut self, done: u64, total: u64) -> ControlFlow<()> {
        if self.ended.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        if self.told.elapsed() >= TELL {
            self.told = Instant::now();
            // Whoever asked may have gone: the snapshot is made all the same.
            let _ = self.reply.send(VmReply::Progress { done, total });
        }
        ControlFlow::Continue(())
    }
}

/// Make ready. Nothing is left of what fails.
pub(super) fn prepare(host: &mut Host, machine: &Machine, asked: Asked) -> Result<Prepared, VmError> {
    let begun = Instant::now();
    let lineage = refuse(host, &asked)?;
    let spec = host.spec.to_toml().map_err(VmError::SpecText)?;
    // One that was removed while the VM was stopped is nobody's parent.
    let parent = lineage.record().parent.filter(|parent| lineage.store.get(*parent).is_ok());
    let draft = lineage.store.begin(asked.id, parent)?;
    let (data, index) = (format!("memory-{}", asked.id), format!("index-{}", asked.id));
    let path = draft.dir().join(&data);
    let (mapped, base) = (&machine.mapped, still_there(&lineage.store, &machine.base));
    let saver = Saver::prepare(&machine.ram, host.spec.memory.hugepages, mapped, &base.memory, &path)?;
    let memory = MemoryFiles { data, index, base: base.id };
    let tops = Tops::prepare(host)?;
    Ok(Prepared { asked, draft, parent, memory, saver, spec, tops, begun })
}

/// What the next snapshot is made of: all of memory if the last one was removed before the VM could say that it is on it.
fn still_there(store: &Store, base: &Base) -> Base {
    match base.id {
        Some(id) if store.get(id).is_err() => {
            let memory = Arc::new(Image::zero(Memory(base.memory.size())));
            Base { id: None, memory }
        }
        _ => base.clone(),
    }
}

/// Why there can be no snapshot of this VM, or no such one.
fn refuse<'a>(host: &'a Host, asked: &Asked) -> Result<&'a Lineage, VmError> {
    let lineage = host.lineage.as_ref().ok_or(VmError::NoHome)?;
    if let Some(disk) = host.written_in_place() {
        return Err(VmError::InPlace(disk));
    }
    match lineage.store.find(lineage.record().vm, &asked.name)? {
        Some(_) => Err(VmError::SnapshotName(asked.name.clone())),
        None => Ok(lineage),
    }
}

impl Prepared {
    /// Save what the guest cannot be allowed to change meanwhile. It stands still for this long, unless it does already, and then stays so.
    pub(super) fn capture(
        self,
        host: &mut Host,
        machine: &Machine,
        running: bool,
        reply: Sender<VmReply>,
        ended: &Arc<AtomicBool>,
    ) -> Result<Job, VmError> {
        let Self { asked, draft, parent, memory, saver, spec, mut tops, begun } = self;
        let stopped = Instant::now();
        let captured = capture(host, machine, running, saver, &mut tops);
        let pause = stopped.elapsed();
        let frozen = tops.settle(host, captured.is_ok())?;
        let (state, saving) = captured?;
        let lineage = host.lineage.as_ref().ok_or(VmError::NoHome)?;
        let manifest = Manifest {
            format: FORMAT,
            arch: std::env::consts::ARCH.to_owned(),
            id: asked.id,
            vm: lineage.record().vm,
            name: asked.name.clone(),
            parent,
            created_ms: crate::vcpu::wall_ns() / 1_000_000,
            comment: asked.comment.clone(),
            removed: false,
            spec,
            memory,
            disks: frozen.points,
            pause_us: if running { micros(pause) } else { 0 },
            files: BTreeMap::new(),
        };
        let (store, frozen) = (lineage.store.clone(), frozen.layers);
        let teller = Teller { reply, told: Instant::now(), ended: Arc::clone(ended) };
        let (life, ram) = (machine.life, Arc::downgrade(&machine.ram));
        Ok(Job { asked, store, draft, manifest, state, saving, frozen, life, ram, teller, begun })
    }
}

/// What is done while the guest stands still.
fn capture(
    host: &Host,
    machine: &Machine,
    running: bool,
    saver: Saver,
    tops: &mut Tops,
) -> Result<(VmState, Saving), VmError> {
    let begun = Instant::now();
    let paused = running.then(|| pause::pause(&machine.vcpus, &machine.board)).transpose()?;
    let parked = begun.elapsed();
    let state = machine.save(host)?;
    let saved = begun.elapsed();
    tops.freeze(host)?;
    let saving = saver.fork()?;
    let forked = begun.elapsed();
    drop(paused);
    log::debug!(
        "the guest stood still for {:?}: parked after {parked:?}, saved after {saved:?}, forked after {forked:?}",
        begun.elapsed()
    );
    Ok((state, saving))
}

/// A time in microseconds.
pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Job {
    /// Do the rest on a thread of its own, and let `messages` know.
    ///
    /// # Errors
    /// If there can be no thread: there is no snapshot then.
    pub(super) fn start(self, messages: Sender<Message>) -> Result<(), VmError> {
        let run = move || {
            let Self { asked, store, draft, manifest, state, saving, frozen, life, ram, mut teller, begun } =
                self;
            let pause_us = manifest.pause_us;
            let result = finish(&store, draft, manifest, &state, saving, frozen, &mut teller);
            if result.is_ok() {
                settle(&ram, &mut teller);
            }
            // The VM may have ended.
            let done = Done { asked, life, reply: teller.reply, pause_us, begun, result };
            let _ = messages.send(Message::Saved(Box::new(done)));
        };
        let builder = devices::worker::named_thread("snapshot");
        builder.spawn(run).map(drop).map_err(VmError::resources("start the snapshot thread"))
    }
}

/// Write all that was saved, and make it a snapshot.
fn finish(
    store: &Store,
    draft: Draft,
    mut manifest: Manifest,
    state: &VmState,
    saving: Saving,
    frozen: Vec<Frozen>,
    teller: &mut Teller,
) -> Result<Made, VmError> {
    let storage = store.storage();
    let sums = finish_disks(store, frozen)?;
    let mut last = (0, 0);
    let saved = saving.finish(&mut |done, total| {
        last = (done, total);
        teller.tell(done, total)
    })?;
    let sums = wait(&sums, last, teller)?;
    let disk_bytes = sums.iter().map(|sum| sum.len).sum();
    let layered = manifest.disks.iter_mut().filter(|point| point.layer.is_some());
    for (point, sum) in layered.zip(sums) {
        point.sum = Some(sum);
    }
    let MemoryFiles { data, index, .. } = &manifest.memory;
    let index_sum = saved.index.write(storage, &draft.dir().join(index))?;
    let state_sum = state.write(storage, &draft.dir().join(STATE))?;
    let data_sum = Sum { len: saved.index.size(), crc32: saved.index.crc32() };
    manifest.files =
        BTreeMap::from([(data.clone(), data_sum), (index.clone(), index_sum), (STATE.to_owned(), state_sum)]);
    draft.commit(&manifest)?;
    let memory = {
        let _pin = store.pin()?;
        Arc::new(Image::open(&files(store, &store.chain(manifest.id)?))?)
    };
    let base = Base { id: Some(manifest.id), memory };
    Ok(Made { base, memory_bytes: saved.stored, disk_bytes })
}

/// Put the guest's memory back in order, so that its next snapshot stops it no longer than this one did.
fn settle(ram: &Weak<GuestRam>, teller: &mut Teller) {
    if let Some(ram) = ram.upgrade() {
        // Held by nobody else, it is a machine's that is gone.
        rejoin(&ram, || Arc::strong_count(&ram) > 1 && teller.tell(1, 1).is_continue());
    }
}

/// Make the disks' layers durable, beside the memory.
fn finish_disks(store: &Store, frozen: Vec<Frozen>) -> Result<Receiver<Result<Vec<Sum>, VmError>>, VmError> {
    let (done, sums) = mpsc::channel();
    let store = store.clone();
    // Nobody waits for it any more if the memory failed.
    let finish = move || drop(done.send(tops::finish(&store, &frozen)));
    let thread = devices::worker::named_thread("snapshot:disks").spawn(finish);
    thread.map_err(VmError::resources("start the snapshot:disks thread"))?;
    Ok(sums)
}

/// Wait for the disks, and let whoever asked know that something goes on.
fn wait(
    sums: &Receiver<Result<Vec<Sum>, VmError>>,
    (done, total): (u64, u64),
    teller: &mut Teller,
) -> Result<Vec<Sum>, VmError> {
    loop {
        match sums.recv_timeout(TELL) {
            Ok(sums) => return sums,
            Err(RecvTimeoutError::Timeout) => drop(teller.tell(done, total)),
            Err(RecvTimeoutError::Disconnected) => return Err(VmError::Vanished),
        }
    }
}

impl Machine {
    /// Everything of it but memory and disks. It stands still.
    fn save(&self, host: &Host) -> Result<VmState, VmError> {
        let board = self.board.save()?;
        let chips = chips::save(&self.vm)?;
        let vcpus = self.vcpus.save()?;
        let clock = chips::save_clock(&self.vm)?;
        Ok(VmState { memory: host.spec.memory.size.0, vcpus, chips, clock, board })
    }
}

/// Why it cannot be done, for whoever asked.
pub(super) fn refused(error: &VmError) -> VmReply {
    VmReply::Refused(Chained(error).to_string())
}
