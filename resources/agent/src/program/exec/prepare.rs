//! What a command is before it runs: program, arguments, environment, user. Everything that can be refused without a process.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::Read as _;

use agent::message::{Exec, Refusal};

use super::failed;
use crate::users::{self, User};

/// Where programs are looked for, if the guest says nothing else.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What is read of `/etc/environment` at most, in bytes.
const MAX_ENVIRONMENT: u64 = 1 << 20;

/// A command that can be started.
#[derive(Debug)]
pub struct Plan {
    /// Its file, or a name that is looked for in `PATH`.
    pub program: String,
    /// What it is told to be called.
    pub name: String,
    /// Its arguments, without its name.
    pub args: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Where it starts.
    pub cwd: CString,
    /// It cannot start anywhere else.
    pub cwd_is_asked: bool,
    pub user: User,
}

/// Find out what `exec` means in this guest.
pub fn prepare(exec: &Exec) -> Result<Plan, Refusal> {
    let user = users::find(exec.user.as_deref()).map_err(failed)?;
    let (program, name, args) = match exec.argv.split_first() {
        Some((program, args)) => (program.clone(), program.clone(), args.to_vec()),
        // A shell whose name begins with a dash is a login shell.
        None => {
            let base = user.shell.rsplit('/').next().unwrap_or("sh");
            (user.shell.clone(), format!("-{base}"), Vec::new())
        }
    };
    if program.is_empty() {
        return Err(Refusal::NotFound("the command is empty".into()));
    }
    let words = exec.argv.iter().chain(&exec.env).chain(&exec.cwd);
    if words.chain(exec.terminal.iter().map(|terminal| &terminal.term)).any(|word| word.contains('\0')) {
        return Err(failed("there is a NUL in the command, its environment or its directory"));
    }
    let mut env = environment(&user, &read_environment());
    if let Some(terminal) = &exec.terminal {
        env.insert("TERM".into(), terminal.term.clone());
    }
    for pair in &exec.env {
        match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => drop(env.insert(key.to_owned(), value.to_owned())),
            _ => return Err(failed(format!("'{pair}' is no KEY=VALUE"))),
        }
    }
    let cwd = exec.cwd.as_deref().filter(|cwd| !cwd.is_empty());
    let c_cwd = CString::new(cwd.unwrap_or(&user.home)).map_err(|error| failed(error.to_string()))?;
    Ok(Plan { program, name, args, env, cwd: c_cwd, cwd_is_asked: cwd.is_some(), user })
}

fn read_environment() -> String {
    let mut bytes = Vec::new();
    let _ =
        File::open("/etc/environment").and_then(|file| file.take(MAX_ENVIRONMENT).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a login has: the guest's own file over our defaults, and who it is over both.
fn environment(user: &User, file: &str) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([("PATH".to_owned(), PATH.to_owned())]);
    env.extend(file.lines().filter_map(assignment));
    for (key, value) in
        [("HOME", &user.home), ("USER", &user.name), ("LOGNAME", &user.name), ("SHELL", &user.shell)]
    {
        env.insert(key.to_owned(), value.clone());
    }
    env
}

/// A line as pam_env reads it: `KEY=VALUE`, an `export` before it, quotes around the value, a comment behind.
fn assignment(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").map_or(line, str::trim_start);
    let (key, value) = line.split_once('=')?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if key.is_empty() || !key.bytes().all(plain) || value.contains('\0') {
        return None;
    }
    let quoted = ['"', '\''].into_iter().find_map(|quote| value.strip_prefix(quote)?.split(quote).next());
    let value = quoted.unwrap_or_else(|| value.split('#').next().unwrap_or_default().trim_end());
    Some((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ada() -> User {
        users::find(Some("4242:7")).unwrap()
    }

    #[test]
    fn a_login_has_the_guests_environment_and_its_own_name() {
        let file =
            "# comment\nLANG=\"C.UTF-8\"\nexport A='b c' # d\nPATH=/opt/bin # e\nno line\nHOME=/tmp\n=x\n";
        let env = environment(&ada(), file);
        let get = |key: &str| env.get(key).map(String::as_str);
        assert_eq!((get("LANG"), get("A"), get("PATH")), (Some("C.UTF-8"), Some("b c"), Some("/opt/bin")));
        assert_eq!((get("HOME"), get("USER"), get("")), (Some("/"), Some("4242"), None));
    }

    #[test]
    fn no_command_is_the_login_shell() {
        let plan = prepare(&Exec { user: Some("4242".into()), ..Exec::default() }).unwrap();
        assert_eq!((plan.program.as_str(), plan.name.as_str()), ("/bin/sh", "-sh"));
        assert!(!plan.cwd_is_asked);
    }

    #[test]
    fn what_cannot_be_a_command_is_refused() {
        let exec = |argv: &[&str], env: &[&str]| Exec {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: env.iter().map(|word| (*word).to_owned()).collect(),
            ..Exec::default()
        };
        assert!(matches!(prepare(&exec(&[""], &[])), Err(Refusal::NotFound(_))));
        assert!(matches!(prepare(&exec(&["a\0b"], &[])), Err(Refusal::Failed(_))));
        assert!(matches!(prepare(&exec(&["a"], &["=b"])), Err(Refusal::Failed(_))));
        assert!(matches!(prepare(&exec(&["a"], &["b"])), Err(Refusal::Failed(_))));
        assert_eq!(prepare(&exec(&["a"], &["b=c=d"])).unwrap().env["b"], "c=d");
    }

    proptest! {
        #[test]
        fn any_environment_file_is_read(text in "\\PC{0,80}\n?[A-Z=\"' #\n]{0,80}") {
            let env = environment(&ada(), &text);
            prop_assert!(env.keys().all(|key| !key.is_empty()));
        }
    }
}
