//! Who a command runs as, from `/etc/passwd` and `/etc/group`: a static program has no name service switch.
//!
//! The files belong to the guest. Lines that are no entries are passed over.

use std::fs::File;
use std::io::Read as _;

/// What is read of each file at most, in bytes.
const MAX_FILE: u64 = 16 << 20;
/// Groups of one user at most: the kernel takes no more.
const MAX_GROUPS: usize = 65536;

/// A user who is logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Further groups, `gid` among them.
    pub groups: Vec<u32>,
    pub home: String,
    pub shell: String,
}

/// The user that `who` names: `USER`, `UID`, `USER:GROUP` or with numbers. Empty or nothing is root.
///
/// # Errors
/// If there is no such user or group, in words.
pub fn find(who: Option<&str>) -> Result<User, String> {
    find_in(who.unwrap_or_default(), &read("/etc/passwd"), &read("/etc/group"))
}

fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    let _ = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn find_in(who: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (name, group_name) = match who.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (who, None),
    };
    let name = if name.is_empty() { "root" } else { name };
    let mut user = match passwd.lines().filter_map(passwd_line).find(|user| user.name == name) {
        Some(user) => user,
        None => by_number(name, passwd).ok_or_else(|| format!("there is no user '{name}' in the guest"))?,
    };
    match group_name {
        // As docker has it: a group that is said stands for all.
        Some(group_name) => {
            user.gid = group_of(group_name, group)
                .ok_or_else(|| format!("there is no group '{group_name}' in the guest"))?;
            user.groups = vec![user.gid];
        }
        None => user.groups = groups_of(&user, group),
    }
    Ok(user)
}

/// A user by a number that need not be in the file, and root who is always there.
fn by_number(name: &str, passwd: &str) -> Option<User> {
    let uid = if name == "root" { 0 } else { number(name)? };
    let known = passwd.lines().filter_map(passwd_line).find(|user| user.uid == uid);
    Some(known.unwrap_or_else(|| User {
        name: name.to_owned(),
        uid,
        gid: 0,
        groups: Vec::new(),
        home: if uid == 0 { "/root" } else { "/" }.to_owned(),
        shell: "/bin/sh".to_owned(),
    }))
}

fn passwd_line(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let _password = fields.next()?;
    let uid = number(fields.next()?)?;
    let gid = number(fields.next()?)?;
    let _about = fields.next()?;
    let or = |field: Option<&str>, default: &str| {
        field.filter(|field| !field.is_empty()).unwrap_or(default).to_owned()
    };
    let home = or(fields.next(), "/");
    let shell = or(fields.next(), "/bin/sh");
    // A NUL would end the path for the kernel, but not for us.
    let clean = !line.contains('\0');
    clean.then(|| User { name: name.to_owned(), uid, gid, groups: Vec::new(), home, shell })
}

/// A group's name, number and members.
fn group_line(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let _password = fields.next()?;
    let gid = number(fields.next()?)?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

fn group_of(name: &str, group: &str) -> Option<u32> {
    let by_name = group.lines().filter_map(group_line).find(|(known, ..)| *known == name);
    by_name.map(|(_, gid, _)| gid).or_else(|| number(name))
}

fn groups_of(user: &User, group: &str) -> Vec<u32> {
    let listed = group.lines().filter_map(group_line);
    let listed = listed.filter(|(.., members)| members.split(',').any(|member| member == user.name));
    let mut groups = vec![user.gid];
    groups.extend(listed.map(|(_, gid, _)| gid).take(MAX_GROUPS.saturating_sub(1)));
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// A user's or group's number. The highest one means "none" to the kernel.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?.filter(|id| *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/bash\n# a comment\nbroken:x:no\nada:x:1000:1000:Ada,,,:/home/ada:\n";
    const GROUP: &str = "root:x:0:\nada:x:1000:\nsudo:x:27:ada,bob\nkvm:x:104:bob,ada\nempty:x:5\n";

    fn who(text: &str) -> Result<User, String> {
        find_in(text, PASSWD, GROUP)
    }

    #[test]
    fn a_user_is_found_by_name_and_by_number_with_all_groups() {
        let ada = who("ada").unwrap();
        assert_eq!(
            (ada.uid, ada.gid, ada.home.as_str(), ada.shell.as_str()),
            (1000, 1000, "/home/ada", "/bin/sh")
        );
        assert_eq!(ada.groups, [27, 104, 1000]);
        assert_eq!(who("1000").unwrap(), ada);
        assert_eq!(who("").unwrap().shell, "/bin/bash");
    }

    #[test]
    fn a_group_that_is_said_is_the_only_one() {
        let ada = who("ada:kvm").unwrap();
        assert_eq!((ada.gid, ada.groups), (104, vec![104]));
        assert_eq!(who("ada:77").unwrap().gid, 77);
        assert!(who("ada:nobody").unwrap_err().contains("nobody"));
    }

    #[test]
    fn numbers_need_no_entry_and_names_do() {
        let user = who("4711:12").unwrap();
        assert_eq!((user.uid, user.gid, user.home.as_str()), (4711, 12, "/"));
        assert!(who("eve").unwrap_err().contains("eve"));
        assert!(who("4294967295").is_err());
        assert_eq!(find_in("", "", "").unwrap().home, "/root");
    }

    proptest! {
        #[test]
        fn nothing_in_the_files_is_fatal(who in "\\PC{0,12}", passwd in "[a-z0:\n,\\x00]{0,200}", group in "[a-z0:\n,]{0,200}") {
            if let Ok(user) = find_in(&who, &passwd, &group) {
                prop_assert!(!user.groups.is_empty());
            }
        }
    }
}
