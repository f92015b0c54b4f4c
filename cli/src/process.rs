//! The process that is a VM, from its fork to its end.
//!
//! It leaves its caller's session, so that neither the terminal's signals nor its closing concern it. Its main thread waits for the
//! VM's end; `signals` takes SIGTERM, SIGINT and SIGQUIT, which end the VM; the rest is `vmm`'s.

use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use anyhow::{Context, Error, Result};
use rustix::process::{Resource, getrlimit, setrlimit};
use vmm::api::server::{self, Owner};
use vmm::api::types::Ended;
use vmm::control::VmAction;
use vmm::machine::{self, Home, Setup};
use vmm::snapshot::Id;
use vmm::spec::VmSpec;

use crate::copy;
use crate::exit::Usage;
use crate::launch::{self, Launch, Report, Which};
use crate::logging;
use crate::signals::Signals;
use crate::store::held::Held;
use crate::store::images::OfImage;
use crate::store::state::{End, State};
use crate::terminal;

/// What the VM's process has from its caller, beside the standard streams.
pub struct Inherited {
    /// Where it tells of its start.
    pub tell: PipeWriter,
    /// To its owner, if it has one.
    pub owner: Option<UnixStream>,
}

/// A VM on its way to run.
struct Prepared {
    held: Arc<Held>,
    spec: VmSpec,
    /// Of the entry, if it is not new.
    before: Option<State>,
    /// The snapshot to start from.
    from: Option<Id>,
    /// If that cannot be, it boots.
    or_boot: bool,
    remove: bool,
    has_agent: bool,
    ends_with_owner: bool,
    image: Option<OfImage>,
}

/// Be the VM, to its end.
pub fn run(launch: Launch, inherited: Inherited) -> ! {
    let store = launch.store.clone();
    match prepare(&launch).and_then(|prepared| serve(&launch, prepared, inherited.owner)) {
        Ok(running) => running.until_the_end(inherited.tell, &store),
        Err(error) => tell(inherited.tell, &Report::failed(&error)),
    }
    std::process::exit(0)
}

impl Report {
    fn failed(error: &Error) -> Self {
        Self::Failed { message: format!("{error:#}"), usage: error.is::<Usage>() }
    }
}

/// Whoever is not there to hear it does not miss it.
fn tell(mut to: PipeWriter, report: &Report) {
    let _ = serde_json::to_writer(&mut to, report);
}

/// Everything of the entry that must be there before the VM is.
fn prepare(launch: &Launch) -> Result<Prepared> {
    // A fork's child leads no group: this cannot fail.
    let _ = rustix::process::setsid();
    raise_file_limit();
    match &launch.which {
        Which::New { name, spec, copy, remove, has_agent, ends_with_owner, image } => {
            let held = Arc::new(launch.store.create(name.as_deref())?);
            let spec = match copy {
                Some(copy) => copy::adapt(VmSpec::clone(spec), &held.name(), copy.ports.clone()),
                None => VmSpec::clone(spec),
            };
            let from = copy.as_ref().map(|copy| copy.from);
            let or_boot = copy.as_ref().is_some_and(|copy| copy.or_boot);
            let (remove, has_agent, ends_with_owner) = (*remove, *has_agent, *ends_with_owner);
            let image = image.clone();
            Ok(Prepared {
                held,
                spec,
                before: None,
                from,
                or_boot,
                remove,
                has_agent,
                ends_with_owner,
                image,
            })
        }
        Which::Again { name, from } => {
            let (held, spec, before) = launch.store.take(name)?;
            let (held, remove, has_agent) = (Arc::new(held), before.remove, before.has_agent);
            let (before, from, or_boot, ends_with_owner) = (Some(before), *from, false, false);
            Ok(Prepared {
                held,
                spec,
                before,
                from,
                or_boot,
                remove,
                has_agent,
                ends_with_owner,
                image: None,
            })
        }
    }
}

/// A VM that runs.
struct Running {
    vm: vmm::control::Vm,
    held: Arc<Held>,
    server: server::Server,
    stays: bool,
}

/// Start the VM. What has been made for it is gone again if that fails.
fn serve(launch: &Launch, prepared: Prepared, owner: Option<UnixStream>) -> Result<Running> {
    let (held, new, stays) = (Arc::clone(&prepared.held), prepared.before.is_none(), !prepared.remove);
    let result = start(launch, prepared, owner);
    match &result {
        // What stays of it is a leftover, which the next who looks removes.
        Err(_) if new => drop(launch.store.remove_own(&held)),
        Err(error) => held.ended(End::Failed { error: format!("{error:#}") }),
        Ok(_) => {}
    }
    result.map(|(vm, server)| Running { vm, held, server, stays })
}

fn start(
    launch: &Launch,
    prepared: Prepared,
    owner: Option<UnixStream>,
) -> Result<(vmm::control::Vm, server::Server)> {
    let Prepared { held, spec, before, from, or_boot, remove, has_agent, ends_with_owner, image } = prepared;
    if let Some(before) = &before {
        held.write_state(before.again(), false)?;
    }
    let signals = Signals::block().context("cannot block signals")?;
    let shown = launch.foreground && launch.logging.guest_on_stdout;
    let stdout = shown.then(launch::stdout).transpose()?;
    let logs = logging::start(&launch.logging)?;
    leave_terminal().context("cannot open /dev/null")?;
    if !launch.foreground {
        // Nobody waits for its first words, and nothing of it is for the terminal.
        to_log(&held)?;
    }
    let set_up = |from| setup(launch, &held, remove, from, &stdout);
    let vm = start_or_boot(&spec, from, or_boot, set_up)?;
    // The VM runs. All that follows is not to keep it from its first words; if it fails, this process ends, and the VM with it.
    let listener = held.listen()?;
    if before.is_none() {
        held.write_state(State::new(remove).with_agent(has_agent).of(image), false)?;
        held.write_spec(&spec, false)?;
    }
    let controller = vm.controller();
    // It may have come before there was a state to note it in.
    held.set_agent(|| controller.agent());
    signals.handle_all(move |_| drop(controller.request(VmAction::Kill))).context("cannot start a thread")?;
    let owner = owner.map(|stream| Owner { stream, ends_vm: ends_with_owner });
    let server =
        server::start(vm.controller(), listener, owner).context("cannot serve the control socket")?;
    if launch.foreground {
        to_log(&held)?;
    }
    if !logs {
        logging::to_stderr();
    }
    log::info!(
        "{} runs: kernel {}, vCPUs {}, memory {}, disks {}, networks {}, transport {:?}",
        held.name(),
        spec.kernel.display(),
        spec.cpus,
        spec.memory.size,
        spec.disks.len(),
        spec.nets.len(),
        spec.transport,
    );
    held.started();
    Ok((vm, server))
}

/// Start the machine; with `or_boot` one whose snapshot `from` cannot be used boots.
fn start_or_boot(
    spec: &VmSpec,
    from: Option<Id>,
    or_boot: bool,
    set_up: impl Fn(Option<Id>) -> Result<Setup>,
) -> Result<vmm::control::Vm> {
    match machine::start(spec.clone(), set_up(from)?) {
        Err(error) if or_boot => {
            terminal::note(&format!(
                "skiff: warning: the VM boots, for the snapshot that its image starts from cannot be used: {:#}; skiff image build IMAGE \
                 --warm makes another",
                Error::new(error)
            ));
            Ok(machine::start(spec.clone(), set_up(None)?)?)
        }
        started => Ok(started?),
    }
}

/// What the machine has of its process.
fn setup(
    launch: &Launch,
    held: &Arc<Held>,
    passing: bool,
    from: Option<Id>,
    stdout: &Option<OwnedFd>,
) -> Result<Setup> {
    let noted = Arc::clone(held);
    Ok(Setup {
        name: held.name(),
        stdout: stdout.as_ref().map(OwnedFd::try_clone).transpose().context("cannot use standard output")?,
        log: Some(held.console_log()),
        dir: Some(held.path()),
        home: Some(Home { places: launch.store.places(), record: held.record(), passing }),
        from,
        listener: Box::new(move |notice| {
            log::info!("the VM: {notice:?}");
            noted.note(&notice);
        }),
    })
}

impl Running {
    fn until_the_end(self, to: PipeWriter, store: &crate::store::Store) {
        let Self { vm, held, server, stays } = self;
        tell(to, &Report::Started(held.name()));
        if stays {
            held.sync();
        }
        let ended = match vm.wait() {
            Ok(outcome) => Ended::Outcome(outcome),
            Err(error) => Ended::Failed(format!("{:#}", Error::new(error))),
        };
        log::info!("the VM has ended: {ended:?}");
        held.ended(End::from(ended.clone()));
        if !stays && let Err(error) = store.remove_own(&held) {
            log::error!("{error:#}");
        }
        server.finish(ended);
    }
}

/// Every queue and every interrupt of a VM is a descriptor. The lower limit is there for programs that use `select`.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        log::info!("the limit of open files stays as it is: {error}");
    }
}

/// Neither hold a terminal, a pipe or a directory open nor read from them.
fn leave_terminal() -> io::Result<()> {
    let null: OwnedFd = File::options().read(true).write(true).open("/dev/null")?.into();
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(rustix::process::chdir("/")?)
}

/// From now on, what this process has to say goes to the VM's own file.
fn to_log(held: &Held) -> Result<()> {
    let log = held.open_log()?;
    rustix::stdio::dup2_stderr(log.as_fd()).context("cannot redirect standard error")
}
