//! The tree of files, twice: as programs see it, and as it would be if the power failed now.
//!
//! ```text
//! change ──► seen at once, and pending ──sync, sync_dir──► durable
//!                        └──power cut──► any of it durable, the rest never happened
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::path::{Component, Path};

use super::content::{Content, SECTOR};

pub(super) type NodeId = u64;
const ROOT: NodeId = 0;

/// A change of a file that is not durable yet.
#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, data: Vec<u8> },
    Erase { offset: u64, len: u64 },
    SetLen(u64),
}

impl Change {
    fn apply(&self, content: &mut Content) {
        match self {
            Self::Write { offset, data } => content.write(data, *offset),
            Self::Erase { offset, len } => content.erase(*offset, *len),
            Self::SetLen(len) => content.set_len(*len),
        }
    }

    /// What is left of it after the power failed: all, nothing, or some of its sectors.
    fn survive(&self, dice: &mut Dice, content: &mut Content) {
        match (dice.roll(3), self) {
            (0, _) => {}
            (1, Self::Write { offset, data }) => {
                let mut at = 0;
                while at < data.len() {
                    let sector = SECTOR - (offset + at as u64) % SECTOR;
                    let end = data.len().min(at + sector as usize);
                    if dice.roll(2) == 0 {
                        content.write(&data[at..end], offset + at as u64);
                    }
                    at = end;
                }
            }
            _ => self.apply(content),
        }
    }
}

#[derive(Clone, Debug)]
enum Node {
    File { seen: Content, durable: Content, pending: Vec<Change> },
    Dir { seen: BTreeMap<OsString, NodeId>, durable: BTreeMap<OsString, NodeId> },
}

/// A change of names that is not durable yet.
#[derive(Clone, Debug)]
struct Naming {
    /// Where a name goes away.
    from: Option<(NodeId, OsString)>,
    /// Where it appears, replacing what had it.
    to: Option<(NodeId, OsString, NodeId)>,
}

impl Naming {
    fn touches(&self, dir: NodeId) -> bool {
        self.from.as_ref().is_some_and(|(from, _)| *from == dir)
            || self.to.as_ref().is_some_and(|(to, _, _)| *to == dir)
    }
}

/// A generator of pseudo-random numbers (SplitMix64).
pub(super) struct Dice(pub u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub(super) struct World {
    nodes: BTreeMap<NodeId, Node>,
    next: NodeId,
    naming: Vec<Naming>,
}

impl World {
    pub(super) fn new() -> Self {
        let root = Node::Dir { seen: BTreeMap::new(), durable: BTreeMap::new() };
        Self { nodes: BTreeMap::from([(ROOT, root)]), next: ROOT + 1, naming: Vec::new() }
    }

    fn dir(&self, id: NodeId) -> io::Result<&BTreeMap<OsString, NodeId>> {
        match self.nodes.get(&id) {
            Some(Node::Dir { seen, .. }) => Ok(seen),
            _ => Err(ErrorKind::NotADirectory.into()),
        }
    }

    fn dir_mut(&mut self, id: NodeId) -> io::Result<&mut BTreeMap<OsString, NodeId>> {
        match self.nodes.get_mut(&id) {
            Some(Node::Dir { seen, .. }) => Ok(seen),
            _ => Err(ErrorKind::NotADirectory.into()),
        }
    }

    /// What has a name.
    pub(super) fn find(&self, path: &Path) -> io::Result<NodeId> {
        let mut at = ROOT;
        for name in names(path)? {
            at = *self.dir(at)?.get(&name).ok_or(ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    pub(super) fn file(&self, path: &Path) -> io::Result<NodeId> {
        let id = self.find(path)?;
        match self.nodes.get(&id) {
            Some(Node::File { .. }) => Ok(id),
            _ => Err(ErrorKind::IsADirectory.into()),
        }
    }

    fn parent(&self, path: &Path) -> io::Result<(NodeId, OsString)> {
        let mut names = names(path)?;
        let name = names.pop().ok_or(ErrorKind::InvalidInput)?;
        let mut at = ROOT;
        for name in names {
            at = *self.dir(at)?.get(&name).ok_or(ErrorKind::NotFound)?;
        }
        self.dir(at)?;
        Ok((at, name))
    }

    fn link(&mut self, dir: NodeId, name: OsString, node: Node) -> io::Result<NodeId> {
        let id = self.next;
        if self.dir_mut(dir)?.insert(name.clone(), id).is_some() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.next += 1;
        self.nodes.insert(id, node);
        self.naming.push(Naming { from: None, to: Some((dir, name, id)) });
        Ok(id)
    }

    pub(super) fn create(&mut self, path: &Path) -> io::Result<NodeId> {
        let (dir, name) = self.parent(path)?;
        if self.dir(dir)?.contains_key(&name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let (seen, durable, pending) = (Content::default(), Content::default(), Vec::new());
        self.link(dir, name, Node::File { seen, durable, pending })
    }

    pub(super) fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        let mut at = ROOT;
        for name in names(path)? {
            at = match self.dir(at)?.get(&name) {
                Some(id) => *id,
                None => self.link(at, name, Node::Dir { seen: BTreeMap::new(), durable: BTreeMap::new() })?,
            };
        }
        self.dir(at).map(drop)
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let id = self.find(from)?;
        let (from_dir, from) = self.parent(from)?;
        let (to_dir, to) = self.parent(to)?;
        let is_dir = self.dir(id).is_ok();
        if let Some(old) = self.dir(to_dir)?.get(&to).copied() {
            match self.dir(old) {
                Ok(names) if is_dir && !names.is_empty() => return Err(ErrorKind::DirectoryNotEmpty.into()),
                Ok(_) if !is_dir => return Err(ErrorKind::IsADirectory.into()),
                Err(_) if is_dir => return Err(ErrorKind::NotADirectory.into()),
                _ => {}
            }
        }
        self.dir_mut(from_dir)?.remove(&from);
        self.dir_mut(to_dir)?.insert(to.clone(), id);
        self.naming.push(Naming { from: Some((from_dir, from)), to: Some((to_dir, to, id)) });
        Ok(())
    }

    /// Remove a name of a file, or of an empty directory. One that is gone is no error.
    pub(super) fn remove(&mut self, path: &Path, dir_wanted: bool) -> io::Result<()> {
        let id = match self.find(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            found => found?,
        };
        match (self.dir(id), dir_wanted) {
            (Ok(_), false) => return Err(ErrorKind::IsADirectory.into()),
            (Err(_), true) => return Err(ErrorKind::NotADirectory.into()),
            (Ok(names), true) if !names.is_empty() => return Err(ErrorKind::DirectoryNotEmpty.into()),
            _ => {}
        }
        let (dir, name) = self.parent(path)?;
        self.dir_mut(dir)?.remove(&name);
        self.naming.push(Naming { from: Some((dir, name)), to: None });
        Ok(())
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        match self.find(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            id => Ok(self.dir(id?)?.keys().cloned().collect()),
        }
    }

    pub(super) fn content(&self, id: NodeId) -> io::Result<&Content> {
        match self.nodes.get(&id) {
            Some(Node::File { seen, .. }) => Ok(seen),
            _ => Err(ErrorKind::IsADirectory.into()),
        }
    }

    fn change(&mut self, id: NodeId, change: Change) -> io::Result<()> {
        match self.nodes.get_mut(&id) {
            Some(Node::File { seen, pending, .. }) => {
                change.apply(seen);
                pending.push(change);
                Ok(())
            }
            _ => Err(ErrorKind::IsADirectory.into()),
        }
    }

    pub(super) fn write(&mut self, id: NodeId, data: &[u8], offset: u64) -> io::Result<()> {
        self.change(id, Change::Write { offset, data: data.to_vec() })
    }

    pub(super) fn erase(&mut self, id: NodeId, offset: u64, len: u64) -> io::Result<()> {
        self.change(id, Change::Erase { offset, len })
    }

    pub(super) fn set_len(&mut self, id: NodeId, len: u64) -> io::Result<()> {
        self.change(id, Change::SetLen(len))
    }

    pub(super) fn sync(&mut self, id: NodeId) -> io::Result<()> {
        match self.nodes.get_mut(&id) {
            Some(Node::File { durable, pending, .. }) => {
                pending.drain(..).for_each(|change| change.apply(durable));
                Ok(())
            }
            _ => Err(ErrorKind::IsADirectory.into()),
        }
    }

    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let id = self.find(path)?;
        self.dir(id)?;
        let (now, later) =
            std::mem::take(&mut self.naming).into_iter().partition(|naming| naming.touches(id));
        self.naming = later;
        for naming in now {
            self.make_durable(naming);
        }
        Ok(())
    }

    fn make_durable(&mut self, naming: Naming) {
        let mut durable = |id, change: &mut dyn FnMut(&mut BTreeMap<OsString, NodeId>)| {
            if let Some(Node::Dir { durable, .. }) = self.nodes.get_mut(&id) {
                change(durable);
            }
        };
        if let Some((dir, name, id)) = naming.to {
            durable(dir, &mut |names| {
                names.insert(name.clone(), id);
            });
        }
        if let Some((dir, name)) = naming.from {
            durable(dir, &mut |names| {
                names.remove(&name);
            });
        }
    }

    /// The power fails: of what is pending an arbitrary part has become durable, and that is all there is now.
    pub(super) fn lose_power(&mut self, dice: &mut Dice) {
        for naming in std::mem::take(&mut self.naming) {
            if dice.roll(2) == 0 {
                self.make_durable(naming);
            }
        }
        for node in self.nodes.values_mut() {
            match node {
                Node::File { seen, durable, pending } => {
                    pending.drain(..).for_each(|change| change.survive(dice, durable));
                    *seen = durable.clone();
                }
                Node::Dir { seen, durable } => *seen = durable.clone(),
            }
        }
    }

    /// Every file with its path, in order.
    pub(super) fn files(&self) -> Vec<(std::path::PathBuf, NodeId)> {
        let mut found = Vec::new();
        let mut dirs = vec![(std::path::PathBuf::from("/"), ROOT)];
        while let Some((path, id)) = dirs.pop() {
            for (name, id) in self.dir(id).into_iter().flatten() {
                let list = if self.dir(*id).is_ok() { &mut dirs } else { &mut found };
                list.push((path.join(name), *id));
            }
        }
        found.sort();
        found
    }
}

fn names(path: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => names.push(name.to_owned()),
            Component::ParentDir => drop(names.pop()),
            Component::Prefix(_) => return Err(ErrorKind::InvalidInput.into()),
        }
    }
    Ok(names)
}
