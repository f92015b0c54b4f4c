//! From a spec to a running machine, and the thread that looks after it.
//!
//! [`build`] is the one path to a machine: at start, and again at each reboot of the guest, which drops
//! the old machine whole and builds a new one around the same [`Host`].

mod balloon;
mod pause;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use arch::boot::{self, Entry, Initrd, Kernel};
use arch::memory::{GuestRam, SharedRam};
use arch::regs;
use devices::bus::Effect;
use devices::ratelog::Chained;
use devices::virtio::console::ConsoleSize;
use kvm_bindings::{
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, kvm_irqchip, kvm_pit_config,
};
use kvm_ioctls::VmFd;

use crate::api::types::Ended;
use crate::board::{Board, Parts};
use crate::console::Hub;
use crate::control::{Outcome, Request, RunState, Vm, VmAction, VmReply};
use crate::error::VmError;
use crate::event::{Event, EventSender, Message};
use crate::host::Host;
use crate::interrupts::Interrupts;
use crate::kvm::KvmError;
use crate::memory;
use crate::notice::{Listener, Notice};
use crate::snapshot::{Id, Places};
use crate::spec::{Memory, VmSpec};
use crate::stats::VmStats;
use crate::vcpu::{self, Vcpus};

use balloon::Questions;

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
    /// Where its layers and snapshots are kept. Without it, its disks are written in place, and it has no snapshots.
    pub home: Option<Home>,
    /// The snapshot to start from, in that home; otherwise the kernel is booted. The spec is the snapshot's, but for
    /// what leads to the host.
    pub from: Option<Id>,
    /// Told of what happens to the VM.
    pub listener: Listener,
}

/// Where what a VM keeps for later is.
#[derive(Clone, Debug)]
pub struct Home {
    /// Layers and snapshots, of this VM and of others.
    pub places: Places,
    /// The VM's own record of what it stands on (`layers.json`); made at the first start if it is not there.
    pub record: PathBuf,
}

/// Start the VM that `spec` describes. Returns when its vCPUs run.
///
/// # Errors
/// If something that the spec names cannot be used, or the host cannot run VMs.
pub fn start(spec: VmSpec, setup: Setup) -> Result<Vm, VmError> {
    spec.validate()?;
    let host = Host::open(spec, &setup.name, Hub::new(setup.stdout, setup.log))?;
    let console = Arc::clone(&host.console);
    let (messages, inbox) = mpsc::channel();
    let (outcome, outcomes) = mpsc::channel();
    let listener: Arc<dyn Fn(Notice) + Send + Sync> = Arc::from(setup.listener);
    let keeper = Keeper::start(host, Arc::clone(&listener), messages.clone(), inbox)?;
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
    Ok(Vm::new(messages, console, outcomes))
}

/// A VM's end for those who only read of it.
fn ended(result: &Result<Outcome, VmError>) -> Ended {
    match result {
        Ok(outcome) => Ended::Outcome(outcome.clone()),
        Err(error) => Ended::Failed(Chained(error).to_string()),
    }
}

/// One boot of the guest. Fields drop in this order: vCPUs before what they use, devices before the VM.
struct Machine {
    vcpus: Vcpus,
    board: Arc<Board>,
    _vm: Arc<VmFd>,
    ram: SharedRam,
}

/// Build a machine, its vCPUs paused before their first instruction.
fn build(host: &Host, events: EventSender) -> Result<Machine, VmError> {
    let vm = Arc::new(host.hypervisor.create_vm()?);
    let ram = memory::reserve(&host.spec.memory)?;
    memory::register(&vm, &ram)?;
    let interrupts = create_chips(&vm)?;
    let cpuid = host.hypervisor.supported_cpuid()?;
    let phys_bits = arch::cpuid::phys_bits(cpuid.as_slice());
    let parts = Parts { host, ram: &ram, interrupts: &interrupts, phys_bits };
    let board = Arc::new(Board::build(&parts, None)?);
    let entry = load(host, &ram)?;
    let vcpus = vcpu::create(host, &vm, &cpuid, &vcpu::Start::Boot(&entry))?;
    let context = Arc::new(vcpu::Context::new(Arc::clone(&board), Arc::clone(&ram), events));
    let vcpus = Vcpus::spawn(vcpus, &host.vcpu_counters, &context)
        .map_err(VmError::resources("start the vCPU threads"))?;
    Ok(Machine { vcpus, board, _vm: vm, ram })
}

/// The interrupt controllers and the timer that KVM itself has.
fn create_chips(vm: &Arc<VmFd>) -> Result<Arc<Interrupts>, KvmError> {
    // Intel processors without unrestricted guest need three pages for real mode, and one for its page table.
    vm.set_identity_map_address(arch::layout::KVM_IDENTITY_MAP)
        .map_err(KvmError::failed("set the identity map"))?;
    vm.set_tss_address(arch::layout::KVM_TSS as usize).map_err(KvmError::failed("set the TSS address"))?;
    vm.create_irq_chip().map_err(KvmError::failed("create the interrupt controllers"))?;
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(KvmError::failed("read an interrupt controller"))?;
        regs::mask_pic(&mut chip);
        vm.set_irqchip(&chip).map_err(KvmError::failed("set an interrupt controller"))?;
    }
    // Port 0x61 is answered too: kernels measure time with its speaker bit.
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(KvmError::failed("create the timer"))?;
    Ok(Arc::new(Interrupts::new(Arc::clone(vm))))
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
///                │
///                └── Shutdown, Panicked, Kill, failure ──► machine dropped ──► Outcome
/// ```
///
/// All of that is the same while the VM is paused: what a vCPU asked for just before is done, and after a reset the new
/// machine stays before its first instruction until the VM is resumed.
struct Keeper {
    host: Host,
    listener: Arc<dyn Fn(Notice) + Send + Sync>,
    messages: Sender<Message>,
    inbox: Receiver<Message>,
    machine: Machine,
    state: RunState,
    questions: Questions,
    started: Instant,
    /// Counted from 0.
    boot: u64,
    booted: Instant,
}

/// How to go on after a message.
enum Then {
    Serve,
    Reboot,
    End(Result<Outcome, VmError>),
}

impl Keeper {
    fn start(
        host: Host,
        listener: Arc<dyn Fn(Notice) + Send + Sync>,
        messages: Sender<Message>,
        inbox: Receiver<Message>,
    ) -> Result<Self, VmError> {
        let machine = build(&host, EventSender::new(messages.clone(), 0))?;
        machine.vcpus.run();
        let (state, now) = (RunState::Running, Instant::now());
        Ok(Self {
            host,
            listener,
            messages,
            inbox,
            machine,
            state,
            questions: Questions::default(),
            started: now,
            boot: 0,
            booted: now,
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
                Then::End(result) => return self.end(result),
            }
        }
    }

    /// Devices and consoles are done before anybody hears of the end.
    fn end(self, result: Result<Outcome, VmError>) -> Result<Outcome, VmError> {
        drop(self.machine);
        let Ok(Outcome::Panicked { .. }) = result else { return result };
        let last_lines = self.host.console.last_lines();
        (self.listener)(Notice::Panicked { last_lines: last_lines.clone() });
        Ok(Outcome::Panicked { last_lines })
    }

    fn serve(&mut self, message: Message) -> Then {
        match message {
            Message::Request(request) => self.act(request),
            Message::Event { boot, .. } if boot != self.boot => Then::Serve,
            Message::Event { event, .. } => self.react(event),
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
            VmAction::Snapshot { .. } | VmAction::Rollback { .. } => {
                VmReply::Refused("this VM keeps no snapshots: start it with --name or -d".to_owned())
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
        if self.state == RunState::Paused {
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
            Event::Effect(Effect::Shutdown) => Then::End(Ok(Outcome::PoweredOff)),
            Event::Effect(Effect::Panicked) => Then::End(Ok(Outcome::Panicked { last_lines: Vec::new() })),
            Event::Effect(Effect::Reset) => Then::Reboot,
            // No vCPU sends these.
            Event::Effect(Effect::None | Effect::MoveBars | Effect::DriverReady) => Then::Serve,
            Event::TripleFault if self.booted.elapsed() < STARTED => Then::End(Err(VmError::TripleFault)),
            Event::TripleFault => Then::Reboot,
            Event::Failed(error) => Then::End(Err(error)),
        }
    }

    /// The guest is reset: everything of the old boot goes before anything of the new one comes.
    fn reboot(self) -> Result<Self, VmError> {
        log::info!("the guest resets");
        drop(self.machine);
        self.host.console.next_boot();
        let boot = self.boot + 1;
        let machine = build(&self.host, EventSender::new(self.messages.clone(), boot))?;
        if self.state == RunState::Running {
            machine.vcpus.run();
        }
        (self.listener)(Notice::Rebooted);
        Ok(Self { machine, boot, booted: Instant::now(), ..self })
    }
}
