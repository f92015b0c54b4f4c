//! `skiff run … CMD`: a command in a VM that is there for it alone.

use std::time::Duration;

use anyhow::Result;
use images::manifest::{Agent, Manifest};

use crate::cmd::{many, power, print};
use crate::exec::{self, Wish};
use crate::exit::{self, Usage};
use crate::guest::{BOOT, Guest};
use crate::launch::{Launch, Which};

/// How long a guest that stays may take to switch itself off.
const STOPPING: Duration = Duration::from_secs(30);

/// The command that `words` come to in a VM of the image, if any is to run: flags win, and what the image says stands before what was typed.
pub fn wish(mut words: Wish, image: Option<&Manifest>) -> Result<Option<Wish>> {
    // A container's, or one that a file gives to a distribution.
    let has_own = image.is_some_and(|image| {
        image.agent == Agent::Init
            || !image.defaults.entrypoint.is_empty()
            || !image.defaults.command.is_empty()
    });
    if words.argv.is_empty() && !has_own {
        let alone = Wish::default();
        return match words == alone {
            true => Ok(None),
            false => {
                Err(Usage("-i, -t, -u, -w and -e go with a CMD: write one after the image".to_owned()).into())
            }
        };
    }
    let Some(defaults) = image.map(|image| &image.defaults) else { return Ok(Some(words)) };
    let said = std::mem::take(&mut words.argv);
    let rest = if said.is_empty() { &defaults.command } else { &said };
    words.argv = defaults.entrypoint.iter().chain(rest).cloned().collect();
    // The last of two values counts.
    words.env.splice(0..0, defaults.env.iter().cloned());
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    words.user = words.user.or_else(|| given(&defaults.user));
    words.cwd = words.cwd.or_else(|| given(&defaults.cwd));
    Ok(Some(words))
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
            exit::SUCCESS => print(format!("{name}\n")),
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

    #[test]
    fn what_was_typed_takes_the_place_of_the_images_command_and_stands_behind_its_entrypoint() {
        let typed = Wish { argv: vec!["ls".to_owned()], env: vec!["A=3".to_owned()], ..Wish::default() };
        let wish = wish(typed, Some(&image(Agent::Init))).unwrap().unwrap();
        assert_eq!(wish.argv, ["/entry", "-x", "ls"]);
        assert_eq!(wish.env, ["A=1", "B=2", "A=3"]);
        assert_eq!((wish.user.as_deref(), wish.cwd.as_deref()), (Some("www"), Some("/srv")));
    }

    #[test]
    fn a_distribution_has_a_command_of_its_own_only_if_somebody_gave_it_one() {
        let container = wish(Wish::default(), Some(&image(Agent::Init))).unwrap().unwrap();
        assert_eq!(container.argv, ["/entry", "-x", "serve"]);
        let given = wish(Wish::default(), Some(&image(Agent::Service))).unwrap().unwrap();
        assert_eq!(given.argv, container.argv);
        let plain = Manifest { defaults: Defaults::default(), ..image(Agent::Service) };
        assert_eq!(wish(Wish::default(), Some(&plain)).unwrap(), None);
        assert_eq!(wish(Wish::default(), None).unwrap(), None);
        let lost = Wish { interactive: true, ..Wish::default() };
        assert!(wish(lost, None).unwrap_err().to_string().contains("go with a CMD"));
    }
}
