//! From a spec to a running machine, and the thread that looks after it.
//!
//! [`build`] is the one path to a machine: at start, and again at each reboot of the guest, which drops
//! the old machine whole and builds a new one around the same [`Host`].

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use arch::boot::{self, Entry, Initrd, Kernel};
use arch::memory::{GuestRam, SharedRam};
use arch::regs;
use devices::bus::Effect;
use devices::virtio::console::ConsoleSize;
use kvm_bindings::{
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, kvm_irqchip, kvm_pit_config,
};
use kvm_ioctls::VmFd;

use crate::board::{Board, Parts};
use crate::control::{Outcome, Request, Vm, VmAction, VmReply};
use crate::error::VmError;
use crate::event::{Event, EventSender, Message};
use crate::host::Host;
use crate::interrupts::Interrupts;
use crate::kvm::KvmError;
use crate::memory;
use crate::notice::Listener;
use crate::spec::VmSpec;
use crate::vcpu::{self, Vcpus};

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
    /// Told of what happens to the VM.
    pub listener: Listener,
}

/// Start the VM that `spec` describes. Returns when its vCPUs run.
///
/// # Errors
/// If something that the spec names cannot be used, or the host cannot run VMs.
pub fn start(spec: VmSpec, setup: Setup) -> Result<Vm, VmError> {
    spec.validate()?;
    let host = Host::open(spec, &setup.name)?;
    let console = Arc::clone(&host.console);
    let (messages, inbox) = mpsc::channel();
    let (outcome, outcomes) = mpsc::channel();
    let keeper = Keeper::start(host, messages.clone(), inbox)?;
    let run = move || {
        let console = Arc::clone(&keeper.host.console);
        let result = keeper.run();
        console.end();
        // Nobody waits any more: nobody is to be told.
        let _ = outcome.send(result);
    };
    let builder = devices::worker::named_thread("vmm");
    builder.spawn(run).map_err(VmError::resources("start the vmm thread"))?;
    Ok(Vm::new(messages, console, outcomes))
}

/// One boot of the guest. Fields drop in this order: vCPUs before what they use, devices before the VM.
struct Machine {
    vcpus: Vcpus,
    board: Arc<Board>,
    _vm: Arc<VmFd>,
    _ram: SharedRam,
}

/// Build a machine, its vCPUs paused before their first instruction.
fn build(host: &Host, events: EventSender) -> Result<Machine, VmError> {
    let vm = Arc::new(host.hypervisor.create_vm()?);
    let ram = memory::reserve(host.spec.memory.size)?;
    memory::register(&vm, &ram)?;
    let interrupts = create_chips(&vm)?;
    let cpuid = host.hypervisor.supported_cpuid()?;
    let phys_bits = arch::cpuid::phys_bits(cpuid.as_slice());
    let parts = Parts { host, ram: &ram, interrupts: &interrupts, phys_bits };
    let board = Arc::new(Board::build(&parts)?);
    let entry = load(host, &ram)?;
    let vcpus = vcpu::create(host, &vm, &cpuid, &entry)?;
    let context = vcpu::Context { board: Arc::clone(&board), ram: Arc::clone(&ram), events };
    let vcpus =
        Vcpus::spawn(vcpus, &Arc::new(context)).map_err(VmError::resources("start the vCPU threads"))?;
    Ok(Machine { vcpus, board, _vm: vm, _ram: ram })
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
struct Keeper {
    host: Host,
    messages: Sender<Message>,
    inbox: Receiver<Message>,
    machine: Machine,
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
    fn start(host: Host, messages: Sender<Message>, inbox: Receiver<Message>) -> Result<Self, VmError> {
        let machine = build(&host, EventSender::new(messages.clone(), 0))?;
        machine.vcpus.run();
        Ok(Self { host, messages, inbox, machine, boot: 0, booted: Instant::now() })
    }

    /// Serve until the VM ends.
    fn run(mut self) -> Result<Outcome, VmError> {
        loop {
            // The keeper holds a sender itself: the channel never closes.
            let Ok(message) = self.inbox.recv() else { return Err(VmError::Vanished) };
            match self.serve(message) {
                Then::Serve => {}
                Then::Reboot => self = self.reboot()?,
                Then::End(result) => {
                    // Devices and consoles are done before anybody hears of the end.
                    drop(self.machine);
                    return result.map(|outcome| match outcome {
                        Outcome::Panicked { .. } => {
                            Outcome::Panicked { last_lines: self.host.console.last_lines() }
                        }
                        other => other,
                    });
                }
            }
        }
    }

    fn serve(&mut self, message: Message) -> Then {
        match message {
            Message::Request(request) => self.act(request),
            Message::Event { boot, .. } if boot != self.boot => Then::Serve,
            Message::Event { event, .. } => self.react(event),
        }
    }

    fn act(&mut self, Request { action, reply }: Request) -> Then {
        let then = match action {
            VmAction::Pause
            | VmAction::Resume
            | VmAction::State
            | VmAction::Stats
            | VmAction::ResizeDisk { .. }
            | VmAction::ResizeMemory { .. } => {
                let _ = reply.send(VmReply::Refused("not yet".to_owned()));
                return Then::Serve;
            }
            VmAction::PressPowerButton => {
                self.machine.board.press_power_button();
                Then::Serve
            }
            VmAction::ResizeConsole { columns, rows } => {
                self.machine.board.resize_console(ConsoleSize { columns, rows });
                Then::Serve
            }
            VmAction::Kill => {
                // Again: whoever asked may have cut the outputs of the boot before this one.
                self.host.console.cut();
                Then::End(Ok(Outcome::Killed))
            }
        };
        // Whoever asked may have gone.
        let _ = reply.send(VmReply::Done);
        then
    }

    fn react(&mut self, event: Event) -> Then {
        match event {
            Event::Effect(Effect::Shutdown) => Then::End(Ok(Outcome::PoweredOff)),
            Event::Effect(Effect::Panicked) => Then::End(Ok(Outcome::Panicked { last_lines: Vec::new() })),
            Event::Effect(Effect::Reset) => Then::Reboot,
            // Nothing for this thread, but the vCPU waits.
            Event::Effect(Effect::None | Effect::MoveBars) => Then::Serve,
            Event::TripleFault if self.booted.elapsed() < STARTED => Then::End(Err(VmError::TripleFault)),
            Event::TripleFault => Then::Reboot,
            Event::Failed(error) => Then::End(Err(error)),
        }
    }

    /// The guest is reset: everything of the old boot goes before anything of the new one comes.
    fn reboot(self) -> Result<Self, VmError> {
        let Self { host, messages, inbox, machine, boot, .. } = self;
        log::info!("the guest resets");
        drop(machine);
        host.console.next_boot();
        let boot = boot + 1;
        let machine = build(&host, EventSender::new(messages.clone(), boot))?;
        machine.vcpus.run();
        Ok(Self { host, messages, inbox, machine, boot, booted: Instant::now() })
    }
}
