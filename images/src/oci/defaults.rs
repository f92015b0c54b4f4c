//! What a container's image says about its programs, as skiff's [`Defaults`], and back.

use std::collections::BTreeMap;

use super::spec::{Error, Execution, Nothing};
use crate::manifest::Defaults;

/// What a VM of an image has if nobody says otherwise, by the image's configuration.
///
/// # Errors
/// If something is in it that no program could be started with.
pub fn defaults(execution: &Execution) -> Result<Defaults, Error> {
    let wrong = |why: String| Error::Wrong { what: "configuration", why };
    let Execution { user, env, entrypoint, cmd, working_dir, .. } = execution;
    let words = env.iter().chain(entrypoint).chain(cmd).chain([user, working_dir]);
    if words.into_iter().any(|word| word.contains('\0')) {
        return Err(wrong("it has a NUL in what is run".to_owned()));
    }
    if let Some(entry) =
        env.iter().find(|entry| !matches!(entry.split_once('='), Some((name, _)) if !name.is_empty()))
    {
        return Err(wrong(format!("its environment has {entry:.100?}, which is no NAME=VALUE")));
    }
    if user.chars().any(char::is_control) {
        return Err(wrong("its user is no name".to_owned()));
    }
    let ports = execution
        .exposed_ports
        .keys()
        .map(|port| ports(port).ok_or_else(|| wrong(format!("{port:.100?} is no port"))));
    Ok(Defaults {
        user: user.clone(),
        env: env.clone(),
        cwd: if working_dir.is_empty() || working_dir.starts_with('/') {
            working_dir.clone()
        } else {
            format!("/{working_dir}")
        },
        entrypoint: entrypoint.clone(),
        command: cmd.clone(),
        ports: ports.collect::<Result<_, _>>()?,
        ..Defaults::default()
    })
}

/// What an image's configuration says for these defaults.
#[must_use]
pub fn execution(defaults: &Defaults) -> Execution {
    Execution {
        user: defaults.user.clone(),
        exposed_ports: defaults
            .ports
            .iter()
            .map(|port| (port.clone(), Nothing {}))
            .collect::<BTreeMap<_, _>>(),
        env: defaults.env.clone(),
        entrypoint: defaults.entrypoint.clone(),
        cmd: defaults.command.clone(),
        working_dir: defaults.cwd.clone(),
        labels: BTreeMap::new(),
    }
}

/// A port or a range of them with its protocol, which is TCP if it is not said.
fn ports(text: &str) -> Option<String> {
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let is_port = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
    };
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let fits = is_port(first) && is_port(last) && matches!(protocol.as_str(), "tcp" | "udp" | "sctp");
    fits.then(|| format!("{numbers}/{protocol}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ports_have_a_protocol() {
        for (text, read) in [
            ("80", Some("80/tcp")),
            ("53/UDP", Some("53/udp")),
            ("8000-8010/tcp", Some("8000-8010/tcp")),
            ("0/tcp", None),
            ("70000", None),
            ("80/icmp", None),
            ("", None),
            ("+80", None),
        ] {
            assert_eq!(ports(text).as_deref(), read, "{text}");
        }
    }

    #[test]
    fn what_no_program_can_be_started_with_is_refused() {
        let with = |env: &str, user: &str| {
            defaults(&Execution { env: vec![env.to_owned()], user: user.to_owned(), ..Execution::default() })
        };
        assert!(with("A=b=c", "1000:1000").is_ok());
        for (env, user) in [("A", ""), ("=b", ""), ("A=\0", ""), ("A=b", "x\ny")] {
            assert!(with(env, user).is_err(), "{env:?} {user:?}");
        }
        let relative = Execution { working_dir: "srv".to_owned(), ..Execution::default() };
        assert_eq!(defaults(&relative).unwrap().cwd, "/srv");
    }

    proptest! {
        #[test]
        fn defaults_come_back(user in "[a-z0-9:]{0,8}", value in "[^\\x00]{0,8}", word in "[^\\x00]{0,8}", dir in "(/[a-z]{1,4}){0,3}", port in 1_u16..) {
            let said = Defaults {
                user,
                env: vec![format!("NAME={value}")],
                cwd: dir,
                entrypoint: vec![word.clone()],
                command: vec![word],
                ports: vec![format!("{port}/udp")],
                ..Defaults::default()
            };
            prop_assert_eq!(defaults(&execution(&said)).unwrap(), said);
        }
    }
}
