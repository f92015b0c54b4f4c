//! cloud-init's NoCloud seed: what a stock cloud image is told at its first boot, on a small disk with the label `cidata`.
//!
//! The disk is ISO 9660 with Rock Ridge and Joliet names, made here. The same [`Seed`] makes the same bytes.

mod iso;
pub mod keys;
#[cfg(test)]
mod tests;

/// The largest of its files, in bytes.
pub const MAX_FILE: usize = 16 << 20;

/// What a guest is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seed {
    /// `instance-id`: another one makes cloud-init begin anew.
    pub instance_id: String,
    /// `local-hostname`; `None`: the guest's own.
    pub hostname: Option<String>,
    /// `user-data`, in any of cloud-init's formats.
    pub user_data: Option<Vec<u8>>,
    /// `meta-data`, YAML or JSON; what it does not say is added.
    pub meta_data: Option<Vec<u8>>,
    /// `network-config`, YAML.
    pub network_config: Option<Vec<u8>>,
    /// Public keys that may log in as the image's own user: what [`keys::parse`] gives.
    pub keys: Vec<String>,
}

/// Why there is no seed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// A file is too large.
    #[error("{what} has {size} bytes: a seed's files have at most {MAX_FILE}")]
    TooLarge {
        /// Which.
        what: &'static str,
        /// Its length in bytes.
        size: usize,
    },
    /// It is no text that can be added to.
    #[error("the meta-data are no UTF-8 text: write them as lines of KEY: VALUE")]
    MetaData,
    /// Keys from two places.
    #[error("the meta-data have public-keys: add the key there, and leave out --ssh-key")]
    KeysTwice,
    /// A line is no public key.
    #[error("'{shown}…' is no public key of ssh: it begins with one of {kinds}")]
    Key {
        /// How it begins.
        shown: String,
        /// What keys begin with.
        kinds: String,
    },
    /// A key that is cut off or mistyped.
    #[error("the public key '{shown}…' is damaged: copy all of its line")]
    Damaged {
        /// How it begins.
        shown: String,
    },
    /// What nobody else may see.
    #[error("this is a private key, which stays with you: give the public one, FILE.pub")]
    PrivateKey,
    /// An empty file.
    #[error("there is no public key in it")]
    NoKey,
}

impl Seed {
    /// The seed as a disk's bytes, a multiple of 2048.
    ///
    /// # Errors
    /// If a file is too large, or the meta-data cannot be added to.
    pub fn disk(&self) -> Result<Vec<u8>, SeedError> {
        let meta = self.meta()?;
        let user = self.user();
        let file = |short, name, content| iso::File { short, name, content };
        let mut files = vec![file("META_DAT", "meta-data", meta.as_bytes())];
        if let Some(network) = &self.network_config {
            files.push(file("NETWORK_", "network-config", network));
        }
        files.push(file("USER_DAT", "user-data", &user));
        files.push(file("VENDOR_D", "vendor-data", b""));
        for file in &files {
            if file.content.len() > MAX_FILE {
                return Err(SeedError::TooLarge { what: file.name, size: file.content.len() });
            }
        }
        Ok(iso::write("cidata", &files))
    }

    /// `user-data`, which must be there. Without any of the user's, it has the keys.
    fn user(&self) -> Vec<u8> {
        if let Some(user) = &self.user_data {
            return user.clone();
        }
        let mut text = "#cloud-config\n".to_owned();
        if self.keys.is_empty() {
            text.push_str("{}\n");
        } else {
            text.push_str("ssh_authorized_keys:\n");
            text.extend(self.keys.iter().map(|key| format!("  - {}\n", quoted(key))));
        }
        text.into_bytes()
    }

    /// `meta-data`: the user's, and what they lack. The keys stand here if user-data is the user's, since it may be in any format.
    fn meta(&self) -> Result<String, SeedError> {
        let given = self.meta_data.as_deref().unwrap_or_default();
        let given = std::str::from_utf8(given).map_err(|_| SeedError::MetaData)?;
        let keys = if self.user_data.is_some() { self.keys.as_slice() } else { &[] };
        if given.trim_start().starts_with('{') {
            return self.meta_json(given, keys);
        }
        let says = |key: &str| {
            let value =
                |line: &str| line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(':'));
            given.lines().any(value)
        };
        if says("public-keys") && !keys.is_empty() {
            return Err(SeedError::KeysTwice);
        }
        let mut text = given.to_owned();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        if !says("instance-id") {
            text.push_str(&format!("instance-id: {}\n", quoted(&self.instance_id)));
        }
        if let Some(hostname) = self.hostname.as_ref().filter(|_| !says("local-hostname")) {
            text.push_str(&format!("local-hostname: {}\n", quoted(hostname)));
        }
        if !keys.is_empty() {
            text.push_str("public-keys:\n");
            text.extend(keys.iter().map(|key| format!("  - {}\n", quoted(key))));
        }
        Ok(text)
    }

    fn meta_json(&self, given: &str, keys: &[String]) -> Result<String, SeedError> {
        let parsed: Result<serde_json::Map<_, _>, _> = serde_json::from_str(given);
        let mut map = parsed.map_err(|_| SeedError::MetaData)?;
        if map.contains_key("public-keys") && !keys.is_empty() {
            return Err(SeedError::KeysTwice);
        }
        map.entry("instance-id").or_insert_with(|| self.instance_id.clone().into());
        if let Some(hostname) = &self.hostname {
            map.entry("local-hostname").or_insert_with(|| hostname.clone().into());
        }
        if !keys.is_empty() {
            map.insert("public-keys".to_owned(), keys.to_vec().into());
        }
        Ok(serde_json::Value::Object(map).to_string() + "\n")
    }
}

/// A text as YAML takes it: as JSON has it.
fn quoted(text: &str) -> String {
    serde_json::Value::String(text.to_owned()).to_string()
}
