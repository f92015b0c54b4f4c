//! What one session of the guest holds: the nodes that it looked up and the files that it opened.
//!
//! The guest names both by numbers that are made here, counted up and never used twice, so that a number that was not given to
//! it, or was given back, means nothing. Both tables are bounded.
//!
//! What the library has costs the host a file descriptor each. When there are too many, those that the library got first and that the guest has
//! not open become names ([`Place::Saved`]) until the guest uses them, as all are after a restore.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;

use rustix::io::Errno;

/// The node of the shared folder itself (`FUSE_ROOT_ID`).
pub(super) const ROOT: u64 = 1;
/// The most nodes of a guest: those that are names cost memory alone.
pub(super) const MOST_NODES: usize = 1 << 20;

/// How many more than it may the library has while a request is served: as many as a list of a directory gives.
pub(super) const SLACK: usize = 256;
/// How long all names are together, in bytes. What has no room among them is gone for the guest (ESTALE).
const MOST_NAMED: usize = 64 << 20;

/// What a node or a file is to the library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It has it, under this number.
    Library(u64),
    /// It is this beneath the shared folder, components joined by `/`, and nobody has looked since it was saved.
    Saved(Vec<u8>),
    /// What was saved is not there any more.
    Gone,
}

impl Place {
    /// How long its name is, in bytes.
    fn named(&self) -> usize {
        match self {
            Self::Saved(path) => path.len(),
            Self::Library(_) | Self::Gone => 0,
        }
    }
}

/// A file, directory or other thing that the guest has looked up.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    /// The host's inode number.
    pub(super) ino: u64,
    /// What it is: the file type bits of a mode.
    pub(super) kind: u32,
    /// How often the guest was given it and has not given it back.
    pub(super) lookups: u64,
    /// How often the library has given it, and has not been given it back.
    pub(super) held: u64,
    /// How often it is open.
    pub(super) open: u64,
}

/// An open file or directory.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    /// The guest's number of what is open.
    pub(super) node: u64,
    /// The library's number of what is open; nothing before a saved one is used.
    pub(super) inode: u64,
    pub(super) place: Place,
    /// How it was opened.
    pub(super) flags: u32,
    pub(super) directory: bool,
}

/// What the library is to be told of a node that the guest holds no more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Forget {
    /// The library's number.
    pub(super) inode: u64,
    /// How often the library gave it.
    pub(super) count: u64,
}

/// Both tables.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) nodes: BTreeMap<u64, Node>,
    /// The guest's number of what the library knows by this one.
    by_library: HashMap<u64, u64>,
    pub(super) handles: BTreeMap<u64, Handle>,
    pub(super) next_node: u64,
    pub(super) next_handle: u64,
    /// Nodes that the library has, in the order in which it got them; and some that it has no more.
    order: VecDeque<u64>,
    /// How many nodes the library has.
    live: usize,
    /// How long all names ([`Place::Saved`]) are, in bytes.
    named: usize,
    most: usize,
}

impl Tables {
    /// With the shared folder alone. `most` bounds the open files, and the nodes that the library has when [`Tables::oldest`] is heeded.
    pub(super) fn new(root: Node, most: usize) -> Self {
        let mut tables = Self {
            nodes: BTreeMap::new(),
            by_library: HashMap::new(),
            handles: BTreeMap::new(),
            next_node: ROOT + 1,
            next_handle: 1,
            order: VecDeque::new(),
            live: 0,
            named: 0,
            most,
        };
        if let Place::Library(inode) = root.place {
            tables.by_library.insert(inode, ROOT);
        }
        tables.nodes.insert(ROOT, root);
        tables
    }

    /// The guest is given the library's `inode`, as a node of its own. The library has given it once more.
    ///
    /// # Errors
    /// If the guest holds too many; the library is to forget it.
    pub(super) fn give(&mut self, inode: u64, ino: u64, kind: u32) -> io::Result<u64> {
        if let Some(id) = self.by_library.get(&inode)
            && let Some(node) = self.nodes.get_mut(id)
        {
            node.lookups = node.lookups.saturating_add(1);
            node.held = node.held.saturating_add(1);
            return Ok(*id);
        }
        // Some cannot become names.
        if self.nodes.len() >= MOST_NODES || self.live >= self.most.saturating_add(SLACK) {
            return Err(Errno::NFILE.into());
        }
        let id = self.next_node;
        self.next_node = id.checked_add(1).ok_or(Errno::NFILE)?;
        let place = Place::Library(inode);
        self.nodes.insert(id, Node { place, ino, kind, lookups: 1, held: 1, open: 0 });
        self.by_library.insert(inode, id);
        self.is_live(id);
        Ok(id)
    }

    /// The guest gives `id` back `count` times: what the library is to forget then. More often than it was given is as often.
    pub(super) fn forget(&mut self, id: u64, count: u64) -> Option<Forget> {
        if id == ROOT {
            return None;
        }
        let node = self.nodes.get_mut(&id)?;
        node.lookups = node.lookups.saturating_sub(count);
        if node.lookups > 0 {
            return None;
        }
        let node = self.nodes.remove(&id)?;
        let Place::Library(inode) = node.place else {
            self.named = self.named.saturating_sub(node.place.named());
            return None;
        };
        Some(self.is_live_no_more(id, inode, node.held))
    }

    /// The guest has `node` as `id`. It is none that the library has.
    pub(super) fn put_node(&mut self, id: u64, mut node: Node) {
        node.place = self.room_for(node.place);
        self.nodes.insert(id, node);
    }

    /// A place for a node, with room for its name.
    fn room_for(&mut self, place: Place) -> Place {
        let named = self.named.saturating_add(place.named());
        if named > MOST_NAMED {
            return Place::Gone;
        }
        self.named = named;
        place
    }

    /// A node becomes what it was not. Says what it was.
    fn change(&mut self, id: u64, place: Place) -> Option<Place> {
        let place = self.room_for(place);
        let before = std::mem::replace(&mut self.nodes.get_mut(&id)?.place, place);
        self.named = self.named.saturating_sub(before.named());
        Some(before)
    }

    fn is_live(&mut self, id: u64) {
        self.live += 1;
        if self.order.len() > 2 * self.live + 64 {
            let nodes = &self.nodes;
            let live = |id: &u64| nodes.get(id).is_some_and(|node| matches!(node.place, Place::Library(_)));
            self.order.retain(live);
        }
        self.order.push_back(id);
    }

    fn is_live_no_more(&mut self, id: u64, inode: u64, held: u64) -> Forget {
        self.live = self.live.saturating_sub(1);
        if self.by_library.get(&inode) == Some(&id) {
            self.by_library.remove(&inode);
        }
        Forget { inode, count: held }
    }

    /// If the library has too many nodes: the one that is to become a name, and the library's number of it.
    pub(super) fn oldest(&mut self) -> Option<(u64, u64)> {
        if self.live <= self.most {
            return None;
        }
        for _ in 0..self.order.len() {
            let id = self.order.pop_front()?;
            let Some(Node { place: Place::Library(inode), open, .. }) = self.nodes.get(&id) else { continue };
            if *open == 0 {
                return Some((id, *inode));
            }
            self.order.push_back(id);
        }
        None
    }

    /// The node that [`Tables::oldest`] said is this name from now on: what the library is to forget. Without a name it cannot be, and stays.
    pub(super) fn park(&mut self, id: u64, path: Option<Vec<u8>>) -> Option<Forget> {
        let node = self.nodes.get_mut(&id)?;
        let Place::Library(inode) = node.place else { return None };
        let Some(path) = path else {
            self.order.push_back(id);
            return None;
        };
        let held = std::mem::take(&mut node.held);
        self.change(id, Place::Saved(path));
        Some(self.is_live_no_more(id, inode, held))
    }

    /// What was given as `id` just now did not reach the guest, and the library has taken it back itself.
    pub(super) fn take_back(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.held = node.held.saturating_sub(1);
        }
        // With nothing held there is nothing to tell the library.
        self.forget(id, 1);
    }

    /// What was saved as `id` is the library's `inode`, which it has given once.
    pub(super) fn found(&mut self, id: u64, inode: u64) {
        if self.change(id, Place::Library(inode)).is_none() {
            return;
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.held = 1;
        }
        self.by_library.entry(inode).or_insert(id);
        self.is_live(id);
    }

    /// What was saved as `id` is not there any more.
    pub(super) fn lost(&mut self, id: u64) {
        self.change(id, Place::Gone);
    }

    /// Whether one more file can be opened.
    ///
    /// # Errors
    /// If the guest holds too many.
    pub(super) fn room_to_open(&self) -> io::Result<()> {
        if self.handles.len() >= self.most { Err(Errno::NFILE.into()) } else { Ok(()) }
    }

    /// Give the guest an open file.
    pub(super) fn opened(&mut self, handle: Handle) -> io::Result<u64> {
        self.room_to_open()?;
        let id = self.next_handle;
        self.next_handle = id.checked_add(1).ok_or(Errno::NFILE)?;
        self.put_handle(id, handle);
        Ok(id)
    }

    /// The guest has `handle` open as `id`.
    pub(super) fn put_handle(&mut self, id: u64, handle: Handle) {
        if let Some(node) = self.nodes.get_mut(&handle.node) {
            node.open = node.open.saturating_add(1);
        }
        self.handles.insert(id, handle);
    }

    /// The guest has `id` open no more.
    pub(super) fn close(&mut self, id: u64) -> Option<Handle> {
        let handle = self.handles.remove(&id)?;
        if let Some(node) = self.nodes.get_mut(&handle.node) {
            node.open = node.open.saturating_sub(1);
        }
        Some(handle)
    }

    /// The open file `id`, if it is of `node` and of that kind.
    ///
    /// # Errors
    /// If it is not the guest's.
    pub(super) fn handle(&self, node: u64, id: u64, directory: bool) -> io::Result<&Handle> {
        let handle = self.handles.get(&id).filter(|handle| handle.node == node);
        handle.filter(|handle| handle.directory == directory).ok_or(Errno::BADF.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(most: usize) -> Tables {
        let place = Place::Library(1);
        Tables::new(Node { place, ino: 1, kind: 0o040_000, lookups: 1, held: 1, open: 0 }, most)
    }

    #[test]
    fn a_node_is_the_guests_until_it_gave_it_back_as_often_as_it_got_it() {
        let mut tables = tables(9);
        let id = tables.give(70, 7, 0).unwrap();
        assert_eq!(tables.give(70, 7, 0).unwrap(), id);
        assert_eq!(tables.forget(id, 1), None);
        assert_eq!(tables.forget(id, 1), Some(Forget { inode: 70, count: 2 }));
        assert_eq!(tables.forget(id, 1), None, "it is not there any more");
        assert_ne!(tables.give(70, 7, 0).unwrap(), id, "no number is used twice");
    }

    #[test]
    fn who_gives_back_too_much_gives_back_what_there_is() {
        let mut tables = tables(9);
        let id = tables.give(70, 7, 0).unwrap();
        let other = tables.give(71, 8, 0).unwrap();
        assert_eq!(tables.forget(id, u64::MAX), Some(Forget { inode: 70, count: 1 }));
        assert_eq!(tables.forget(ROOT, u64::MAX), None, "the folder stays");
        assert_eq!(tables.forget(12345, 1), None);
        assert_eq!(tables.nodes.keys().copied().collect::<Vec<_>>(), [ROOT, other]);
    }

    #[test]
    fn what_did_not_reach_the_guest_was_not_given() {
        let mut tables = tables(9);
        let id = tables.give(70, 7, 0).unwrap();
        tables.give(70, 7, 0).unwrap();
        tables.take_back(id);
        assert_eq!(tables.forget(id, 1), Some(Forget { inode: 70, count: 1 }));
        let id = tables.give(70, 7, 0).unwrap();
        tables.take_back(id);
        assert!(!tables.nodes.contains_key(&id));
    }

    #[test]
    fn the_first_that_is_not_open_becomes_a_name() {
        let mut tables = tables(2);
        let ids: Vec<u64> = (70..74).map(|inode| tables.give(inode, inode, 0).unwrap()).collect();
        let open = Handle { node: ids[0], inode: 70, place: Place::Library(1), flags: 0, directory: false };
        let open = tables.opened(open).unwrap();
        assert_eq!(tables.oldest(), Some((ids[1], 71)));
        assert_eq!(tables.park(ids[1], Some(b"b".to_vec())), Some(Forget { inode: 71, count: 1 }));
        // One that has no name stays, and another goes.
        assert_eq!(tables.oldest(), Some((ids[2], 72)));
        assert_eq!(tables.park(ids[2], None), None);
        assert_eq!(tables.oldest(), Some((ids[3], 73)));
        assert_eq!(tables.park(ids[3], Some(b"d".to_vec())), Some(Forget { inode: 73, count: 1 }));
        assert_eq!(tables.oldest(), None, "two are left");
        assert_eq!(tables.forget(ids[3], 1), None, "the library knows nothing of a name");
        tables.found(ids[1], 71);
        tables.close(open);
        assert_eq!(tables.oldest().map(|(id, _)| id), Some(ids[0]), "it is open no more");
    }

    #[test]
    fn what_cannot_become_a_name_is_bounded_too() {
        let mut tables = tables(2);
        for inode in 0..2 + SLACK as u64 {
            tables.give(70 + inode, inode, 0).unwrap();
        }
        assert_eq!(tables.give(9999, 1, 0).unwrap_err().raw_os_error(), Some(libc::ENFILE));
    }

    #[test]
    fn names_have_so_much_room_and_no_more() {
        let mut tables = tables(0);
        let id = tables.give(70, 7, 0).unwrap();
        tables.park(id, Some(vec![b'a'; 100]));
        assert_eq!(tables.named, 100);
        let other = tables.give(71, 8, 0).unwrap();
        tables.park(other, Some(vec![b'a'; MOST_NAMED]));
        assert_eq!((tables.nodes[&other].place.clone(), tables.named), (Place::Gone, 100));
        tables.found(id, 70);
        assert_eq!(tables.named, 0);
        tables.park(id, Some(vec![b'a'; 50]));
        tables.forget(id, 1);
        assert_eq!(tables.named, 0);
    }

    #[test]
    fn nobody_opens_too_many() {
        let mut tables = tables(3);
        let id = tables.give(71, 7, 0).unwrap();
        let handle = Handle { node: id, inode: 71, place: Place::Library(1), flags: 0, directory: false };
        for _ in 0..3 {
            tables.opened(handle.clone()).unwrap();
        }
        assert_eq!(tables.opened(handle).unwrap_err().raw_os_error(), Some(libc::ENFILE));
    }

    #[test]
    fn an_open_file_belongs_to_its_node_and_is_what_it_is() {
        let mut tables = tables(9);
        let handle = Handle { node: 5, inode: 71, place: Place::Library(1), flags: 0, directory: false };
        let id = tables.opened(handle).unwrap();
        assert!(tables.handle(5, id, false).is_ok());
        for (node, id, directory) in [(6, id, false), (5, id, true), (5, id + 1, false), (5, 0, false)] {
            let error = tables.handle(node, id, directory).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        }
    }
}
