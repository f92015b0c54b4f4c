//! From a spec to a running machine, and the thread that looks after it.
//!
//! [`build`] is the one path to a machine: at start, from a kernel or a snapshot, and again at each reboot of the guest and each
//! rollback, which drop the old machine whole and build a new one around the same [`Host`].

mod balloon;
mod chips;
mod pause;
mod point;
mod rollback;
mod snapshot;
mod tops;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use arch::boot::{self, Entry, Initrd, Kernel};
use arch::memory::{GuestRam, SharedRam};
use devices::bus::Effect;
use devices::ratelog::Chained;
use devices::virtio::console::ConsoleSize;
use kvm_ioctls::VmFd;

use ::agent::message::Mount;

use crate::agent::link::{Identity, Link};
use crate::agent::readiness::Readiness;
use crate::api::types::Ended;
use crate::board::{Board, Parts};
use crate::console::Hub;
use crate::control::{Outcome, Request, RunState, Vm, VmAction, VmReply};
use crate::error::VmError;
use crate::event::{Event, EventSender, Message};
use crate::host::{Host, Place};
use crate::memory;
use crate::notice::{Listener, Notice};
use crate::snapshot::Id;
use crate::snapshot::memory::{Image, Reaper};
use crate::spec::{Mac, Memory, VmSpec};
use crate::stats::VmStats;
use crate::vcpu::{self, Start, Vcpus};

use balloon::Questions;
pub(crate) use point::Point;
use snapshot::{Asked, Base};

pub use crate::home::Home;
pub(crate) use snapshot::Done;

/// A guest that crashes sooner than this after its start did not start at all; later, a triple fault is
/// one of the ways to reset a PC.
const STARTED: Duration = Duration::from_secs(1);

/// What a VM is given beside its spec.
pub struct Setup {
    /// Its name, from which addresses are made that the spec does not give.
    pub name: String,
    /// Where what the guest prints on its `stdio` stream goes until the owner leaves, at the pace of whoever reads it.
    pub stdout: Option<OwnedFd>,
    /// The file in which the same is kept, bounded: it is renamed with `.1` after it when it is full.
    pub log: Option<PathBuf>,
    /// Its own directory, by a name short enough for sockets in it (see [`VsockSpec::OWN`](crate::spec::VsockSpec::OWN)), for as long as it
    /// runs. Without it, a vsock needs a path.
    pub dir: Option<PathBuf>,
    /// Where its layers and snapshots are kept. Without it, its disks are written in place, and it has no snapshots.
    pub home: Option<Home>,
    /// The snapshot to start from, in that home; otherwise the kernel is booted. The spec is the snapshot's, but for
    /// what leads to the host.
    pub from: Option<Id>,
    /// Told of what happens to the VM.
    pub listener: Listener,
}

/// Start the VM that `spec` describes. Returns when its vCPUs run.
///
/// # Errors
/// If something that the spec names cannot be used, or the host cannot run VMs.
pub fn start(spec: VmSpec, setup: Setup) -> Result<Vm, VmError> {
    let begun = Instant::now();
    spec.validate()?;
    let stdio = Hub::new(setup.stdout, setup.log);
    let place = Place { name: &setup.name, dir: setup.dir.as_deref(), home: setup.home.as_ref() };
    let (host, point) = Host::open(spec, &place, stdio, setup.from)?;
    let opened = begun.elapsed();
    let console = Arc::clone(&host.console);
    let (messages, inbox) = mpsc::channel();
    let (outcome, outcomes) = mpsc::channel();
    let listener: Arc<dyn Fn(Notice) + Send + Sync> = Arc::from(setup.listener);
    let link = start_link(&host, setup.name, &listener)?;
    let readiness = link.as_ref().map(|(_, readiness)| Arc::clone(readiness));
    let link = link.map(|(link, _)| link);
    let keeper = Keeper::start(host, point.as_ref(), link, Arc::clone(&listener), messages.clone(), inbox)?;
    log::debug!("the guest runs after {:?}: the host's side was open after {opened:?}", begun.elapsed());
    let run = move || {
        let console = Arc::clone(&keeper.host.console);
        let result = keeper.run();
        console.end();
        listener(Notice::Stopped { end: ended(&result) });
        // Nobody waits any more: nobody is to be told.
        let _ = outcome.send(result);
    };
    let builder = devices::worker::named_thread("vmm");
    builder.spawn(run).map_err(VmError::resources("start the vmm thread"))?;
    Ok(Vm::new(messages, console, readiness, outcomes))
}

/// Listen for the agent of a guest that has a vsock.
fn start_link(
    host: &Host,
    hostname: String,
    listener: &Arc<dyn Fn(Notice) + Send + Sync>,
) -> Result<Option<(Link, Arc<Readiness>)>, VmError> {
    let Some(vsock) = &host.vsock else { return Ok(None) };
    let socket = match vsock.of_port(::agent::LINK_PORT) {
        Ok(socket) => socket,
        Err(error) => {
            // A program of the user's has that port for itself.
            log::warn!("skiff exec will not reach this guest: {}", Chained(&error));
            return Ok(None);
        }
    };
    let vm = match &host.lineage {
        Some(lineage) => lineage.record().vm,
        None => Id::draw().map_err(VmError::resources("draw an id"))?,
    };
    let macs = host.nets.iter().map(|net| Mac(net.options.mac).to_string()).collect();
    let folders = host.spec.folders.iter().zip(host.spec.tags());
    let mounts = folders.filter_map(|(folder, tag)| {
        Some(Mount { tag, path: folder.mount.clone()?, readonly: folder.readonly })
    });
    let identity = Identity { vm: vm.to_string(), hostname, macs, mounts: mounts.collect() };
    let failed = VmError::resources("listen for the guest's agent");
    let readiness = Arc::new(Readiness::new().map_err(failed)?);
    let link = Link::start(socket, identity, Arc::clone(&readiness), Arc::clone(listener));
    Ok(Some((link.map_err(VmError::resources("start the agent thread"))?, readiness)))
}

/// A VM's end for those who only read of it.
fn ended(result: &Result<Outcome, VmError>) -> Ended {
    match result {
        Ok(outcome) => Ended::Outcome(outcome.clone()),
        Err(error) => Ended::Failed(Chained(error).to_string()),
    }
}

/// One life of the guest: from a boot, or from a snapshot. Fields drop in this order: vCPUs before what they use, devices before the
/// VM.
struct Machine {
    vcpus: Vcpus,
    board: Arc<Board>,
    vm: Arc<VmFd>,
    ram: SharedRam,
    /// What the RAM was before the guest wrote to it.
    mapped: Arc<Image>,
    base: Base,
    /// Which machine of this VM it is.
    life: u64,
}

/// Build a machine, its vCPUs paused before their first instruction: that of the kernel, or the one after a snapshot.
fn build(host: &Host, from: Option<&Point>, events: EventSender) -> Result<Machine, VmError> {
    let memory = &host.spec.memory;
    let vm = Arc::new(host.hypervisor.create_vm()?);
    let cpuid = host.hypervisor.supported_cpuid()?;
    let (ram, mapped) = match from {
        Some(point) => {
            point.state.check(&host.spec, cpuid.as_slice())?;
            (point.memory.map(memory)?, Arc::clone(&point.memory))
        }
        None => (memory::reserve(memory)?, Arc::new(Image::zero(memory.size))),
    };
    memory::register(&vm, &ram)?;
    let interrupts = chips::create(&vm)?;
    let phys_bits = match from {
        Some(point) => arch::cpuid::phys_bits(&point.state.cpuid()),
        None => arch::cpuid::phys_bits(cpuid.as_slice()),
    };
    let parts = Parts { host, ram: &ram, interrupts: &interrupts, phys_bits };
    let board = Arc::new(Board::build(&parts, from.map(|point| &point.state.board))?);
    let created = match from {
        Some(point) => vcpu::create(host, &vm, &cpuid, &Start::From(&point.state.vcpus))?,
        None => vcpu::create(host, &vm, &cpuid, &Start::Boot(&load(host, &ram)?))?,
    };
    if let Some(point) = from {
        board.new_generation(&ram)?;
        // The local APICs must be there, and what is armed by them.
        chips::restore(&vm, &point.state.chips)?;
        chips::restore_clock(&vm, &point.state.clock)?;
    }
    let life = events.life();
    let context = Arc::new(vcpu::Context::new(Arc::clone(&board), Arc::clone(&ram), events, from.is_some()));
    let vcpus = Vcpus::spawn(created, &host.vcpu_counters, &context)
        .map_err(VmError::resources("start the vCPU threads"))?;
    let base = Base { id: from.map(|point| point.manifest.id), memory: Arc::clone(&mapped) };
    Ok(Machine { vcpus, board, vm, ram, mapped, base, life })
}

impl Machine {
    /// Let it run for the first time.
    fn begin(&self) {
        // Devices of a snapshot interrupt for what may have been lost, now that there is somebody to hear it.
        pause::resume(&self.vcpus, &self.board);
    }
}

/// Put kernel, command line and initrd into guest memory.
fn load(host: &Host, ram: &GuestRam) -> Result<Entry, VmError> {
    let path = || host.spec.kernel.display().to_string();
    let file = host.read_kernel()?;
    let kernel = Kernel::parse(file).map_err(|source| VmError::Kernel { path: path(), source })?;
    let mut initrd = host.initrd()?;
    let initrd = initrd.as_mut().map(|(source, len)| Initrd { source, len: *len });
    boot::load(&kernel, ram, &host.spec.cmdline, initrd)
        .map_err(|source| VmError::Load { path: path(), source })
}

/// What the `vmm` thread owns: the VM over all boots of its guest.
///
/// ```text
///   start ──► serving ──Reset──► machine dropped, a new one built ──► serving
///                ├── Rollback ──► machine dropped, one built from the snapshot ──► serving
///                ├── Panicked, if that was asked for ──► paused ──► serving
///                └── Shutdown, Panicked, Kill, failure ──► machine dropped ──► Outcome
/// ```
///
/// All of that is the same while the VM is paused: what a vCPU asked for just before is done, and after a reset the new
/// machine stays before its first instruction until the VM is resumed.
struct Keeper {
    host: Host,
    /// To the agent in the guest.
    link: Option<Link>,
    listener: Arc<dyn Fn(Notice) + Send + Sync>,
    messages: Sender<Message>,
    inbox: Receiver<Message>,
    machine: Machine,
    state: RunState,
    /// A panic pauses it.
    stop_on_panic: bool,
    questions: Questions,
    started: Instant,
    /// Boots of the guest, counted from 0.
    boot: u64,
    /// When the guest was booted; it was not, if it came from a snapshot.
    booted: Option<Instant>,
    /// A snapshot is on its way.
    saving: bool,
    /// Nobody needs it any more.
    ended: Arc<AtomicBool>,
    /// Gives back the memory of machines that were rolled back.
    reaper: Option<Reaper>,
}

/// How to go on after a message.
enum Then {
    Serve,
    Reboot,
    RollBack(Box<rollback::Prepared>),
    End(Result<Outcome, VmError>),
}

impl Keeper {
    fn start(
        mut host: Host,
        from: Option<&Point>,
        link: Option<Link>,
        listener: Arc<dyn Fn(Notice) + Send + Sync>,
        messages: Sender<Message>,
        inbox: Receiver<Message>,
    ) -> Result<Self, VmError> {
        let machine = build(&host, from, EventSender::new(messages.clone(), 0))?;
        if let Some(lineage) = &mut host.lineage {
            lineage.confirm();
        }
        machine.begin();
        let (state, now) = (RunState::Running, Instant::now());
        Ok(Self {
            host,
            link,
            listener,
            messages,
            inbox,
            machine,
            state,
            stop_on_panic: false,
            questions: Questions::default(),
            started: now,
            boot: 0,
            booted: from.is_none().then_some(now),
            saving: false,
            ended: Arc::default(),
            reaper: None,
        })
    }

    /// Serve until the VM ends.
    fn run(mut self) -> Result<Outcome, VmError> {
        (self.listener)(Notice::Started);
        loop {
            // The keeper holds a sender itself: the channel never closes.
            let Ok(message) = self.inbox.recv() else { return Err(VmError::Vanished) };
            match self.serve(message) {
                Then::Serve => {}
                Then::Reboot => self = self.reboot()?,
                Then::RollBack(prepared) => self = self.roll_back(*prepared)?,
                Then::End(result) => return self.end(result),
            }
        }
    }

    /// Devices and consoles are done before anybody hears of the end.
    fn end(self, result: Result<Outcome, VmError>) -> Result<Outcome, VmError> {
        self.ended.store(true, Ordering::Relaxed);
        drop((self.machine, self.link));
        let Ok(Outcome::Panicked { .. }) = result else { return result };
        let last_lines = self.host.console.last_lines();
        (self.listener)(Notice::Panicked { last_lines: last_lines.clone() });
        Ok(Outcome::Panicked { last_lines })
    }

    fn serve(&mut self, message: Message) -> Then {
        match message {
            Message::Request(request) => self.act(request),
            Message::Event { life, .. } if life != self.machine.life => Then::Serve,
            Message::Event { event, .. } => self.react(event),
            Message::Saved(done) => {
                self.saved(*done);
                Then::Serve
            }
        }
    }

    fn act(&mut self, Request { action, reply }: Request) -> Then {
        let mut then = Then::Serve;
        let answer = match action {
            VmAction::Pause => self.pause(),
            VmAction::Resume => self.resume(),
            VmAction::State => VmReply::State(self.state),
            VmAction::Stats => VmReply::Stats(Box::new(self.stats())),
            VmAction::ResizeMemory { size } => balloon::resize(&self.host, Memory(size)),
            VmAction::PressPowerButton => {
                self.machine.board.press_power_button();
                self.link.iter().for_each(Link::power_off);
                VmReply::Done
            }
            VmAction::ResizeConsole { columns, rows } => {
                self.machine.board.resize_console(ConsoleSize { columns, rows });
                VmReply::Done
            }
            VmAction::ResizeDisk { disk, size } => {
                let refused = self.machine.board.resize_disk(&disk, size).err();
                refused.map_or(VmReply::Done, |error| VmReply::Refused(Chained(&error).to_string()))
            }
            VmAction::Snapshot { id, name, comment } => {
                match self.snapshot(Asked { id, name, comment }, reply.clone()) {
                    // The answer comes later.
                    Ok(()) => return Then::Serve,
                    Err(error) => snapshot::refused(&error),
                }
            }
            VmAction::Rollback { .. } if self.saving => snapshot::refused(&VmError::Saving),
            VmAction::Rollback { snapshot } => {
                match rollback::prepare(&mut self.host, &self.machine, snapshot, reply.clone()) {
                    Ok(prepared) => return Then::RollBack(Box::new(prepared)),
                    Err(error) => snapshot::refused(&error),
                }
            }
            VmAction::StopOnPanic => {
                self.stop_on_panic = true;
                VmReply::Done
            }
            VmAction::Kill => {
                // Again: whoever asked may have cut the outputs of the boot before this one.
                self.host.console.cut();
                then = Then::End(Ok(Outcome::Killed));
                VmReply::Done
            }
        };
        // Whoever asked may have gone.
        let _ = reply.send(answer);
        then
    }

    fn pause(&mut self) -> VmReply {
        if self.state == RunState::Running {
            match pause::pause(&self.machine.vcpus, &self.machine.board) {
                Ok(paused) => paused.keep(),
                Err(stuck) => return VmReply::Refused(stuck.to_string()),
            }
            self.state = RunState::Paused;
            (self.listener)(Notice::Paused);
        }
        VmReply::Done
    }

    fn resume(&mut self) -> VmReply {
        if self.state != RunState::Running {
            pause::resume(&self.machine.vcpus, &self.machine.board);
            self.state = RunState::Running;
            (self.listener)(Notice::Resumed);
        }
        VmReply::Done
    }

    fn stats(&mut self) -> VmStats {
        self.questions.ask(&self.host);
        VmStats {
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            boots: self.boot.saturating_add(1),
            vcpus: self.machine.vcpus.stats(),
            memory: balloon::stats(&self.host, &self.machine.ram),
            devices: self.host.counters.stats(),
        }
    }

    fn react(&mut self, event: Event) -> Then {
        match event {
            Event::Booted => {
                (self.listener)(Notice::Booted);
                Then::Serve
            }
            Event::Effect(Effect::Shutdown) => {
                let code = self.link.as_ref().and_then(Link::finished);
                Then::End(Ok(code.map_or(Outcome::PoweredOff, |code| Outcome::Finished { code })))
            }
            Event::Effect(Effect::Panicked) => self.panicked(),
            Event::Effect(Effect::Reset) => Then::Reboot,
            // No vCPU sends these.
            Event::Effect(Effect::None | Effect::MoveBars | Effect::DriverReady) => Then::Serve,
            Event::TripleFault if self.booted.is_some_and(|booted| booted.elapsed() < STARTED) => {
                Then::End(Err(VmError::TripleFault))
            }
            Event::TripleFault => Then::Reboot,
            Event::Failed(error) => Then::End(Err(error)),
        }
    }

    /// The guest's kernel has panicked: that is its end, or it is kept where it is.
    fn panicked(&mut self) -> Then {
        let kept = self.stop_on_panic && (self.state != RunState::Running || self.pause() == VmReply::Done);
        if !kept {
            return Then::End(Ok(Outcome::Panicked { last_lines: Vec::new() }));
        }
        self.state = RunState::Panicked;
        (self.listener)(Notice::Panicked { last_lines: self.host.console.last_lines() });
        Then::Serve
    }

    /// The guest is reset: everything of the old boot goes before anything of the new one comes.
    fn reboot(self) -> Result<Self, VmError> {
        log::info!("the guest resets");
        let life = self.machine.life + 1;
        drop(self.machine);
        self.link.iter().for_each(Link::reset);
        self.host.console.next_boot();
        let machine = build(&self.host, None, EventSender::new(self.messages.clone(), life))?;
        if self.state == RunState::Running {
            machine.begin();
        }
        (self.listener)(Notice::Rebooted);
        Ok(Self { machine, boot: self.boot + 1, booted: Some(Instant::now()), ..self })
    }

    /// Begin a snapshot. Its answer comes by the channel.
    fn snapshot(&mut self, asked: Asked, reply: Sender<VmReply>) -> Result<(), VmError> {
        if self.saving {
            return Err(VmError::Saving);
        }
        let running = self.state == RunState::Running;
        let prepared = snapshot::prepare(&mut self.host, &self.machine, asked)?;
        let job = prepared.capture(&mut self.host, &self.machine, running, reply, &self.ended)?;
        job.start(self.messages.clone())?;
        self.saving = true;
        Ok(())
    }

    /// The snapshot is there, or it failed.
    fn saved(&mut self, done: snapshot::Done) {
        self.saving = false;
        let snapshot::Done { asked, life, reply, pause_us, begun, result } = done;
        let recorded = result.and_then(|made| {
            self.host.is_on(asked.id)?;
            Ok(made)
        });
        let answer = match recorded {
            Ok(snapshot::Made { base, memory_bytes, disk_bytes }) => {
                // A machine that was booted since has nothing in common with it.
                if life == self.machine.life {
                    self.machine.base = base;
                }
                (self.listener)(Notice::Snapshot { name: asked.name, id: asked.id, pause_us });
                let total_us = snapshot::micros(begun.elapsed());
                VmReply::Snapshot { pause_us, total_us, memory_bytes, disk_bytes }
            }
            Err(error) => snapshot::refused(&error),
        };
        let _ = reply.send(answer);
    }

    /// The machine goes, and one that is as it was at the snapshot comes.
    fn roll_back(self, prepared: rollback::Prepared) -> Result<Self, VmError> {
        let rollback::Prepared { point, disks, before, begun, reply } = prepared;
        let mut host = self.host;
        let ready = begun.elapsed();
        let Machine { vcpus, board, vm, ram, mapped, life, .. } = self.machine;
        drop((vcpus, board));
        let gone = begun.elapsed();
        self.link.iter().for_each(Link::reset);
        host.console.next_boot();
        host.put_disks(disks);
        let machine = build(&host, Some(&point), EventSender::new(self.messages.clone(), life + 1))?;
        machine.begin();
        let us = snapshot::micros(begun.elapsed());
        log::debug!("rolled back in {us} us: ready after {ready:?}, the old machine gone after {gone:?}");
        drop(mapped);
        if let Some(lineage) = &host.lineage {
            lineage.forget(&before);
        }
        let reaper = match self.reaper {
            Some(reaper) => reaper,
            None => Reaper::start().map_err(VmError::resources("start the reaper thread"))?,
        };
        reaper.take(vm, ram);
        if self.state != RunState::Running {
            (self.listener)(Notice::Resumed);
        }
        (self.listener)(Notice::RolledBack { name: point.manifest.name, id: point.manifest.id });
        let _ = reply.send(VmReply::RolledBack { us });
        let (state, reaper) = (RunState::Running, Some(reaper));
        Ok(Self { host, machine, state, reaper, booted: None, ..self })
    }
}
