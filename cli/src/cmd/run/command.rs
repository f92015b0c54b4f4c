//! `skiff run … CMD`: a command in a VM that is there for it alone.

use std::time::Duration;

use anyhow::Result;
use images::manifest::{Agent, Manifest};

use crate::cmd::{many, power, print};
use crate::exec::{self, Wish};
use crate::exit::{self, Usage};
use crate::guest::{BOOT, Guest};
use crate::launch::{Launch, Which};
use crate::store::command;

/// How long a guest that stays may take to switch itself off.
const STOPPING: Duration = Duration::from_secs(30);

/// What was asked for of a command, and of what VM.
#[derive(Debug, Default)]
pub struct Said {
    /// What was typed.
    pub words: Wish,
    /// What takes the place of the image's own program, and of what it would be told.
    pub entrypoint: Option<String>,
    /// The VM goes on from a snapshot: the image's own command was started in it before.
    pub from: bool,
    /// Nobody stays to see it.
    pub detach: bool,
}

/// The command that `said` comes to in a VM of the image, if any is to run: what the image says stands before what was typed. Whose it is and where
/// it starts is the image's to say when it is started ([`Wish::over`]).
pub fn wish(said: Said, image: Option<&Manifest>) -> Result<Option<Wish>> {
    let Said { mut words, entrypoint, from, detach } = said;
    let typed = std::mem::take(&mut words.argv);
    words.argv = match (entrypoint, image) {
        (Some(program), _) => {
            Some(program).filter(|text| !text.is_empty()).into_iter().chain(typed).collect()
        }
        (None, Some(image)) if !from => {
            let defaults = &image.defaults;
            let rest = if typed.is_empty() { &defaults.command } else { &typed };
            defaults.entrypoint.iter().chain(rest).cloned().collect()
        }
        (None, _) => typed,
    };
    // A container's without a command is refused by the agent, which says so.
    let runs = !words.argv.is_empty() || (!from && image.is_some_and(|image| image.agent == Agent::Init));
    let wants_shell = words.interactive && words.terminal && (from || image.is_some());
    match words == Wish::default() {
        _ if runs => Ok(Some(words)),
        // There is nobody to type into it.
        _ if wants_shell && detach => Ok(None),
        _ if wants_shell => Ok(Some(words)),
        true => Ok(None),
        false => {
            let message =
                "-i, -t, -u, -w and -e go with a CMD: write one after the image, or -it alone for a shell";
            Err(Usage(message.to_owned()).into())
        }
    }
}

/// Start the VM, and run the command in it. Says the exit code: the command's, if it came to that.
pub fn run(launch: Launch, mut wish: Wish) -> Result<u8> {
    let (store, detach) = (launch.store.clone(), !launch.foreground);
    wish.detach = detach;
    wish.then_power_off = detach;
    if detach {
        // Nobody is there to type.
        (wish.interactive, wish.terminal) = (false, false);
    }
    wish.check()?;
    let remove = matches!(launch.which, Which::New { remove: true, .. });
    // One that has a name is gone when this returns: the name may be given to the next.
    let throw_away = matches!(launch.which, Which::New { name: None, ends_with_owner: true, .. });
    let mut launched = launch.fork()?;
    // As long as it is open, a VM that is to be thrown away lives.
    let stream = launched.stream.take();
    let name = launched.started()?;
    let code = exec::run(|| Guest::find(&store, &name, Some(BOOT)), &wish);
    if detach {
        return match code {
            exit::SUCCESS => {
                // Started again, the VM does it again.
                if let Some(entry) = store.find(&name).filter(|_| !remove) {
                    command::remember(&entry, &wish)?;
                }
                print(format!("{name}\n"))
            }
            code => {
                many::running(&store, &name).and_then(|look| many::kill(&store, &look.entry)).map(|()| code)
            }
        };
    }
    if !throw_away {
        // It may have switched itself off.
        let ended = match many::running(&store, &name) {
            Ok(look) if remove => many::kill(&store, &look.entry),
            Ok(_) => power::stop_one(&store, &name, STOPPING),
            Err(_) => Ok(()),
        };
        ended.unwrap_or_else(|error| exit::say(&error));
    }
    // Its end is that of a VM that is to be thrown away. Nobody waits for it: what it has written is of no use.
    drop(stream);
    Ok(code)
}

#[cfg(test)]
mod tests {
    use images::digest::Digest;
    use images::manifest::{Blob, Defaults, Disk, SCHEMA, Source};

    use super::*;

    fn image(agent: Agent) -> Manifest {
        let blob = Blob { digest: Digest::of(b"x"), size: 1 };
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        Manifest {
            schema: SCHEMA,
            os: "Test".to_owned(),
            created_ms: 0,
            source: Source::Rootfs,
            kernel: blob,
            initrd: None,
            modules: None,
            cmdline: String::new(),
            disk: Disk { layers: vec![blob], size: 1, grows_to: 1 },
            agent,
            defaults: Defaults {
                entrypoint: words("/entry -x"),
                command: words("serve"),
                env: words("A=1 B=2"),
                user: "www".to_owned(),
                cwd: "/srv".to_owned(),
                ..Defaults::default()
            },
        }
    }

    fn typed(words: &[&str]) -> Said {
        let argv = words.iter().map(|word| (*word).to_owned()).collect();
        Said { words: Wish { argv, ..Wish::default() }, ..Said::default() }
    }

    fn argv(said: Said, image: Option<&Manifest>) -> Vec<String> {
        wish(said, image).unwrap().unwrap().argv
    }

    #[test]
    fn what_was_typed_takes_the_place_of_the_images_command_and_stands_behind_its_entrypoint() {
        let image = image(Agent::Init);
        assert_eq!(argv(typed(&["ls"]), Some(&image)), ["/entry", "-x", "ls"]);
        assert_eq!(argv(typed(&[]), Some(&image)), ["/entry", "-x", "serve"]);
        let other = |words| Said { entrypoint: Some("sh".to_owned()), ..typed(words) };
        assert_eq!(argv(other(&["-c", "ls"]), Some(&image)), ["sh", "-c", "ls"]);
        assert_eq!(argv(other(&[]), Some(&image)), ["sh"]);
        let none = Said { entrypoint: Some(String::new()), ..typed(&["ls"]) };
        assert_eq!(argv(none, Some(&image)), ["ls"]);
    }

    #[test]
    fn a_snapshot_has_the_images_command_in_it_already() {
        let image = image(Agent::Init);
        let from = |words| Said { from: true, ..typed(words) };
        assert_eq!(argv(from(&["ls"]), Some(&image)), ["ls"]);
        assert_eq!(wish(from(&[]), Some(&image)).unwrap(), None);
    }

    #[test]
    fn a_distribution_has_a_command_of_its_own_only_if_somebody_gave_it_one() {
        assert_eq!(argv(typed(&[]), Some(&image(Agent::Service))), ["/entry", "-x", "serve"]);
        let plain = Manifest { defaults: Defaults::default(), ..image(Agent::Service) };
        assert_eq!(wish(typed(&[]), Some(&plain)).unwrap(), None);
        assert_eq!(wish(typed(&[]), None).unwrap(), None);
        let terminal = Wish { interactive: true, terminal: true, ..Wish::default() };
        let shell = || Said { words: terminal.clone(), ..Said::default() };
        assert_eq!(argv(shell(), Some(&plain)), [""; 0], "the login shell");
        assert_eq!(wish(Said { detach: true, ..shell() }, Some(&plain)).unwrap(), None);
        for image in [None, Some(&plain)] {
            let lost = Wish { interactive: true, ..Wish::default() };
            let said = Said { words: lost, ..Said::default() };
            assert!(wish(said, image).unwrap_err().to_string().contains("go with a CMD"));
        }
    }
}
