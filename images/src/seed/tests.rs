use super::*;

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A key of that kind, of which nobody has the other half.
fn key(kind: &str) -> String {
    let mut data = (kind.len() as u32).to_be_bytes().to_vec();
    data.extend(kind.as_bytes());
    data.extend([0, 0, 0, 32]);
    data.extend([7; 32]);
    format!("{kind} {} somebody@somewhere", STANDARD.encode(data))
}

fn seed() -> Seed {
    Seed {
        instance_id: "i-1".to_owned(),
        hostname: Some("web".to_owned()),
        user_data: Some(b"#!/bin/sh\necho hello\n".to_vec()),
        network_config: Some(b"version: 2\n".to_vec()),
        ..Seed::default()
    }
}

#[test]
fn keys_are_checked() {
    let good = key("ssh-ed25519");
    assert_eq!(keys::parse(&format!("# mine\n\n{good}\n")).unwrap(), std::slice::from_ref(&good));
    assert!(keys::is_key(&good) && !keys::is_key("ssh-keys/id.pub") && !keys::is_key("id_ed25519.pub"));
    let said = |text: &str| keys::parse(text).unwrap_err().to_string();
    assert!(said(&good[..60]).contains("damaged"));
    assert!(said(&good.replacen("ssh-ed25519", "ssh-rsa", 1)).contains("damaged"));
    assert!(said(&key("ssh-dss")).contains("no public key"));
    assert!(said("-----BEGIN OPENSSH PRIVATE KEY-----\n").contains("FILE.pub"));
    assert!(said("\n# nothing\n").contains("no public key in it"));
    assert!(!said("hello\u{1b}[2J world").contains('\u{1b}'));
}

#[test]
fn meta_data_get_what_they_lack() {
    let mut seed = seed();
    assert_eq!(seed.meta().unwrap(), "instance-id: \"i-1\"\nlocal-hostname: \"web\"\n");
    seed.keys = vec!["ssh-ed25519 A".to_owned()];
    seed.meta_data = Some(b"local-hostname: mine".to_vec());
    assert_eq!(
        seed.meta().unwrap(),
        "local-hostname: mine\ninstance-id: \"i-1\"\npublic-keys:\n  - \"ssh-ed25519 A\"\n"
    );
    seed.meta_data = Some(br#"{"instance-id": "theirs"}"#.to_vec());
    let value: serde_json::Value = serde_json::from_str(&seed.meta().unwrap()).unwrap();
    assert_eq!(value["instance-id"], "theirs");
    assert_eq!(value["local-hostname"], "web");
    assert_eq!(value["public-keys"][0], "ssh-ed25519 A");
    for twice in ["public-keys : [x]\n", r#"{"public-keys": []}"#] {
        seed.meta_data = Some(twice.as_bytes().to_vec());
        assert_eq!(seed.meta(), Err(SeedError::KeysTwice));
    }
    // Without user-data of the user's, they stand there.
    seed.user_data = None;
    assert!(seed.meta().unwrap().contains("public-keys\":[]"));
    assert_eq!(seed.user(), b"#cloud-config\nssh_authorized_keys:\n  - \"ssh-ed25519 A\"\n");
    seed.keys.clear();
    assert_eq!(seed.user(), b"#cloud-config\n{}\n");
    seed.meta_data = Some(vec![0xff]);
    assert_eq!(seed.meta(), Err(SeedError::MetaData));
    seed.meta_data = Some(b"{".to_vec());
    assert_eq!(seed.meta(), Err(SeedError::MetaData));
}

#[test]
fn a_seed_is_the_same_whenever_it_is_made() {
    let disk = seed().disk().unwrap();
    assert_eq!(disk, seed().disk().unwrap());
    assert_eq!(disk.len() % 2048, 0);
    assert_eq!(&disk[0x8001..0x8006], b"CD001");
    assert_eq!(&disk[0x8028..0x802e], b"cidata");
    let sectors = u32::from_le_bytes(disk[0x8050..0x8054].try_into().unwrap());
    assert_eq!(sectors as usize * 2048, disk.len());
    let large = Seed { user_data: Some(vec![0; MAX_FILE + 1]), ..seed() };
    assert_eq!(large.disk(), Err(SeedError::TooLarge { what: "user-data", size: MAX_FILE + 1 }));
}

/// Other programs read it; those that are not installed are left out.
#[test]
fn others_find_the_label_and_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seed.iso");
    std::fs::write(&path, seed().disk().unwrap()).unwrap();
    let ask = |program: &str, args: &[&str]| -> Option<String> {
        let output = Command::new(program).args(args).arg(&path).output().ok()?;
        assert!(output.status.success(), "{program}: {output:?}");
        Some(String::from_utf8(output.stdout).unwrap())
    };
    if let Some(said) = ask("/usr/sbin/blkid", &["-p", "-o", "export"]) {
        assert!(said.contains("LABEL=cidata") && said.contains("TYPE=iso9660"), "{said}");
    }
    for names in ["-R", "-J"] {
        for (file, content) in [("user-data", "#!/bin/sh\necho hello\n"), ("network-config", "version: 2\n")]
        {
            if let Some(said) = ask("isoinfo", &[names, "-x", &format!("/{file}"), "-i"]) {
                assert_eq!(said, content, "{names}");
            }
        }
    }
    if let Some(said) = ask("bsdtar", &["-t", "-f"]) {
        assert_eq!(said, ".\nmeta-data\nnetwork-config\nuser-data\nvendor-data\n");
    }
}
