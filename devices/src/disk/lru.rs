//! A small cache: what was not used for long makes room (second chance).

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A hash for numbers that is a few instructions long. Whoever chooses the numbers can make a small table slow, and no more.
#[derive(Debug, Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Debug)]
struct Slot<V> {
    key: u64,
    value: V,
    used: bool,
}

/// Values by number, about `capacity` of them.
#[derive(Debug)]
pub(super) struct Lru<V> {
    places: HashMap<u64, usize, BuildHasherDefault<Mix>>,
    slots: Vec<Slot<V>>,
    hand: usize,
    capacity: usize,
}

impl<V> Lru<V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { places: HashMap::default(), slots: Vec::new(), hand: 0, capacity }
    }

    pub(super) fn get(&mut self, key: u64) -> Option<&mut V> {
        let slot = self.slots.get_mut(*self.places.get(&key)?)?;
        slot.used = true;
        Some(&mut slot.value)
    }

    /// Put in what is not there, in the place of one that `may_go` if it is full. If none may, it grows.
    pub(super) fn insert(&mut self, key: u64, value: V, may_go: impl Fn(&V) -> bool) -> &mut V {
        let slot = Slot { key, value, used: true };
        let place = match self.victim(may_go) {
            Some(place) => place,
            None => {
                self.slots.push(slot);
                self.places.insert(key, self.slots.len() - 1);
                let last = self.slots.len() - 1;
                return &mut self.slots[last].value;
            }
        };
        // `victim` gave a place that is there.
        let old = &mut self.slots[place];
        self.places.remove(&old.key);
        *old = slot;
        self.places.insert(key, place);
        &mut self.slots[place].value
    }

    fn victim(&mut self, may_go: impl Fn(&V) -> bool) -> Option<usize> {
        if self.slots.len() < self.capacity {
            return None;
        }
        for _ in 0..self.slots.len() * 2 {
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = self.slots.get_mut(self.hand)?;
            if !std::mem::take(&mut slot.used) && may_go(&slot.value) {
                return Some(self.hand);
            }
        }
        None
    }

    /// All of them, in no order.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut V)> {
        self.slots.iter_mut().map(|slot| (slot.key, &mut slot.value))
    }

    pub(super) fn clear(&mut self) {
        self.places = HashMap::default();
        self.slots = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_what_is_pinned_too() {
        let mut lru = Lru::new(3);
        for key in 0..3 {
            lru.insert(key, key * 10, |_| true);
        }
        for key in 3..20 {
            lru.insert(key, key * 10, |value| *value != 10);
            assert_eq!(lru.get(1).copied(), Some(10), "pinned");
            assert_eq!(lru.get(key).copied(), Some(key * 10));
        }
        assert_eq!(lru.iter_mut().count(), 3);
        lru.insert(90, 900, |_| false);
        assert_eq!(lru.iter_mut().count(), 4, "it grows rather than lose what must stay");
        lru.clear();
        assert!(lru.get(90).is_none());
    }
}
