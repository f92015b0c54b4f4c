//! How an image of several files is put together by mappings. Values without files.

use std::ops::Range;

use super::index::{Content, Run};
use super::pieces::{Piece, inside};

/// Fewer zero pages than these, 2 MiB, get no mapping of their own where the file below has a hole: each mapping costs a
/// little at every fault.
const LARGE: u32 = 512;

/// What is put over the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// The pages of a layer's file that lie there.
    File(usize),
    /// New memory, which is zero.
    Zero,
}

/// Pages, and what is put there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) pages: Range<u32>,
    pub(super) what: What,
}

impl Part {
    fn count(&self) -> u32 {
        self.pages.end.saturating_sub(self.pages.start)
    }
}

/// What there is to do once the base's file is mapped over all.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// To be mapped.
    pub(super) mapped: Vec<Part>,
    /// To be copied.
    pub(super) copied: Vec<Part>,
}

/// Plan an image of `total` pages that shows `pieces`, all data, and zero elsewhere, of `layers` base first, with at most
/// `most` mappings: the shortest parts are copied instead.
pub(super) fn plan(pieces: &[Piece], layers: &[&[Piece]], total: u32, most: usize) -> Plan {
    let (mut needed, mut useful): (Vec<Part>, Vec<Part>) = (Vec::new(), Vec::new());
    let mut end = 0;
    let last = Piece { first: total, end: total, layer: 0, content: Content::Data };
    for piece in pieces.iter().chain([&last]) {
        let gap = end..piece.first;
        end = piece.end;
        let room = gap.end.saturating_sub(gap.start);
        if room > 0 && room < LARGE && piece.layer != 0 && bridge(&mut needed, &gap, piece, layers) {
            continue;
        }
        let part = Part { pages: gap.clone(), what: What::Zero };
        if has_data(layers, 0, &gap) {
            needed.push(part);
        } else if room >= LARGE {
            useful.push(part);
        }
        if piece.layer != 0 {
            needed.push(Part { pages: piece.pages(), what: What::File(piece.layer) });
        }
    }
    needed.sort_by_key(|part| std::cmp::Reverse(part.count()));
    useful.sort_by_key(|part| std::cmp::Reverse(part.count()));
    let mut copied = needed.split_off(needed.len().min(most));
    // In their order in memory and file, which is quicker.
    copied.sort_unstable_by_key(|part| part.pages.start);
    useful.truncate(most.saturating_sub(needed.len()));
    needed.append(&mut useful);
    Plan { mapped: needed, copied }
}

/// Make the last part reach over `gap` and `piece`, if it is of the same file and that has a hole in between.
fn bridge(needed: &mut [Part], gap: &Range<u32>, piece: &Piece, layers: &[&[Piece]]) -> bool {
    let Some(last) = needed.last_mut().filter(|last| last.pages.end == gap.start) else { return false };
    if last.what != What::File(piece.layer) || has_data(layers, piece.layer, gap) {
        return false;
    }
    last.pages.end = piece.end;
    true
}

fn has_data(layers: &[&[Piece]], layer: usize, pages: &Range<u32>) -> bool {
    layers.get(layer).is_some_and(|own| inside(own, pages).next().is_some())
}

/// The pages of a layer that have data.
pub(super) fn data_of(runs: &[Run], layer: usize) -> Vec<Piece> {
    let data = runs.iter().filter(|run| run.content == Content::Data);
    data.map(|run| Piece { first: run.first, end: run.end(), layer, content: Content::Data }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::pieces::overlay;
    use super::*;
    use proptest::prelude::*;

    fn run(first: u32, count: u32, content: Content) -> Run {
        Run { first, count, content }
    }

    fn plan_of(layers: &[Vec<Run>], total: u32, most: usize) -> Plan {
        let mut pieces = overlay(layers.iter().map(Vec::as_slice));
        pieces.retain(|piece| piece.content == Content::Data);
        let own: Vec<_> = layers.iter().enumerate().map(|(at, runs)| data_of(runs, at)).collect();
        let own: Vec<_> = own.iter().map(Vec::as_slice).collect();
        plan(&pieces, &own, total, most)
    }

    #[test]
    fn a_single_layer_needs_mappings_for_large_holes_alone() {
        let plan = plan_of(&[vec![run(1, 9, Content::Data), run(20, 1, Content::Data)]], 2000, 10);
        assert_eq!(plan.mapped, [Part { pages: 21..2000, what: What::Zero }]);
        assert!(plan.copied.is_empty());
    }

    #[test]
    fn the_shortest_parts_are_copied_when_there_are_too_many() {
        let upper = vec![run(1, 1, Content::Data), run(10, 3, Content::Zero), run(30, 9, Content::Data)];
        let plan = plan_of(&[vec![run(0, 100, Content::Data)], upper], 100, 1);
        assert_eq!(plan.mapped, [Part { pages: 30..39, what: What::File(1) }]);
        let copied = [(1..2, What::File(1)), (10..13, What::Zero)];
        assert_eq!(plan.copied, copied.map(|(pages, what)| Part { pages, what }));
    }

    #[test]
    fn a_file_is_mapped_once_over_its_own_small_holes() {
        let upper = vec![run(1, 1, Content::Data), run(2, 3, Content::Zero), run(5, 2, Content::Data)];
        let plan = plan_of(&[vec![run(0, 100, Content::Data)], upper], 100, 10);
        assert_eq!(plan.mapped, [Part { pages: 1..7, what: What::File(1) }]);
    }

    fn layers() -> impl Strategy<Value = Vec<Vec<(u32, u32, bool)>>> {
        prop::collection::vec(prop::collection::vec((0..700_u32, 1..40_u32, any::<bool>()), 0..8), 1..5)
    }

    proptest! {
        /// What is seen in the end is the topmost layer's, however much is copied.
        #[test]
        fn a_plan_shows_what_the_layers_do(layers in layers(), most in 0..6_usize) {
            const TOTAL: u32 = 1400;
            let mut indexes = Vec::new();
            let mut model = vec![None; TOTAL as usize];
            for (layer, steps) in layers.iter().enumerate() {
                let (mut at, mut runs) = (0, Vec::new());
                for (skip, count, zero) in steps {
                    at += skip;
                    if at + count > TOTAL { break; }
                    let content = if *zero { Content::Zero } else { Content::Data };
                    runs.push(run(at, *count, content));
                    model[at as usize..(at + count) as usize].fill((!zero).then_some(layer));
                    at += count;
                }
                indexes.push(runs);
            }
            let of_file = |layer: usize, page: u32| {
                let data = indexes[layer].iter().any(|run| run.content == Content::Data
                    && (run.first..run.end()).contains(&page));
                data.then_some(layer)
            };
            let plan = plan_of(&indexes, TOTAL, most);
            prop_assert!(plan.mapped.len() <= most);
            let mut shown: Vec<_> = (0..TOTAL).map(|page| of_file(0, page)).collect();
            for part in plan.mapped.iter().chain(&plan.copied) {
                for page in part.pages.clone() {
                    shown[page as usize] = match part.what {
                        What::Zero => None,
                        What::File(layer) => of_file(layer, page),
                    };
                }
            }
            prop_assert_eq!(shown, model);
        }
    }
}
