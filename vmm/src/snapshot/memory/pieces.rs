//! The pages of several indexes put over each other. Values without files or threads.

use std::ops::Range;

use super::index::{Content, Run};

/// Pages side by side whose content is that of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) first: u32,
    pub(super) end: u32,
    /// The layer's place in the chain, the base being 0.
    pub(super) layer: usize,
    pub(super) content: Content,
}

impl Piece {
    pub(super) fn count(&self) -> u32 {
        self.end.saturating_sub(self.first)
    }

    pub(super) fn pages(&self) -> Range<u32> {
        self.first..self.end
    }
}

/// What is seen of `layers`, base first, when each lies over those before it.
pub(super) fn overlay<'a>(layers: impl IntoIterator<Item = &'a [Run]>) -> Vec<Piece> {
    let mut seen = Vec::new();
    for (layer, runs) in layers.into_iter().enumerate() {
        seen = over(&seen, layer, runs);
    }
    seen
}

/// Put `runs` of `layer` over `below`; both in rising order.
fn over(below: &[Piece], layer: usize, runs: &[Run]) -> Vec<Piece> {
    let mut seen = Vec::with_capacity(below.len().saturating_add(runs.len()));
    let mut below = below.iter().copied();
    let mut rest = below.next();
    for run in runs {
        while let Some(piece) = rest.filter(|piece| piece.first < run.end()) {
            if piece.first < run.first {
                push(&mut seen, Piece { end: piece.end.min(run.first), ..piece });
            }
            if piece.end > run.end() {
                rest = Some(Piece { first: run.end(), ..piece });
                break;
            }
            rest = below.next();
        }
        push(&mut seen, Piece { first: run.first, end: run.end(), layer, content: run.content });
    }
    for piece in rest.into_iter().chain(below) {
        push(&mut seen, piece);
    }
    seen
}

/// Add `piece` behind the last, or make that longer.
fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    match pieces.last_mut() {
        Some(last)
            if last.end == piece.first && (last.layer, last.content) == (piece.layer, piece.content) =>
        {
            last.end = piece.end;
        }
        _ => pieces.push(piece),
    }
}

/// Put ranges together: in rising order, without overlaps, none empty.
pub(super) fn union(mut ranges: Vec<Range<u32>>) -> Vec<Range<u32>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    let mut all: Vec<Range<u32>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

/// Those of `pieces`, which are in rising order, that overlap `pages`, cut to them.
pub(super) fn inside<'a>(pieces: &'a [Piece], pages: &Range<u32>) -> impl Iterator<Item = Piece> + use<'a> {
    let Range { start, end } = *pages;
    let from = pieces.partition_point(|piece| piece.end <= start);
    let pieces = pieces.get(from..).unwrap_or_default().iter();
    pieces.take_while(move |piece| start < end && piece.first < end).map(move |piece| Piece {
        first: piece.first.max(start),
        end: piece.end.min(end),
        ..*piece
    })
}

/// Runs made page by page, in rising order.
#[derive(Debug, Default)]
pub(super) struct Runs(Vec<Run>);

impl Runs {
    /// Add `count` pages behind all before.
    pub(super) fn add(&mut self, first: u32, count: u32, content: Content) {
        match self.0.last_mut() {
            Some(last) if last.end() == first && last.content == content => last.count += count,
            _ if count > 0 => self.0.push(Run { first, count, content }),
            _ => {}
        }
    }

    pub(super) fn into_vec(self) -> Vec<Run> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn data(first: u32, count: u32) -> Run {
        Run { first, count, content: Content::Data }
    }

    #[test]
    fn the_topmost_layer_is_seen_and_cuts_those_below_it() {
        let zero = Run { content: Content::Zero, ..data(4, 2) };
        let seen = overlay([&[data(0, 10)][..], &[data(2, 1), zero], &[data(9, 5)]]);
        let seen: Vec<_> = seen.iter().map(|piece| (piece.pages(), piece.layer, piece.content)).collect();
        let all = [(0..2, 0), (2..3, 1), (3..4, 0), (4..6, 1), (6..9, 0), (9..14, 2)];
        let content = |at: usize| if at == 3 { Content::Zero } else { Content::Data };
        let expected: Vec<_> =
            all.into_iter().enumerate().map(|(at, (pages, layer))| (pages, layer, content(at))).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn ranges_are_put_together_and_pieces_cut_to_them() {
        assert_eq!(union(vec![5..7, 1..2, 2..4, 6..6, 6..9, 20..20]), [1..4, 5..9]);
        let pieces = overlay([&[data(0, 4), data(6, 4), data(20, 1)][..]]);
        let cut: Vec<_> = inside(&pieces, &(2..7)).map(|piece| piece.pages()).collect();
        assert_eq!(cut, [2..4, 6..7]);
        assert_eq!(inside(&pieces, &(10..20)).count(), 0);
        assert_eq!(inside(&pieces, &(7..7)).count(), 0);
    }

    /// What a page shows, by layer and content.
    type Page = Option<(usize, Content)>;

    fn layers() -> impl Strategy<Value = Vec<Vec<Page>>> {
        let page = prop_oneof![Just(None), Just(Some((0, Content::Data))), Just(Some((0, Content::Zero)))];
        prop::collection::vec(prop::collection::vec(page, 48), 0..5)
    }

    proptest! {
        #[test]
        fn layers_over_each_other_show_what_a_list_of_pages_shows(layers in layers()) {
            let mut model: Vec<Page> = vec![None; 48];
            let mut indexes = Vec::new();
            for (layer, pages) in layers.iter().enumerate() {
                let mut runs = Runs::default();
                for (at, page) in pages.iter().enumerate() {
                    if let Some((_, content)) = page {
                        runs.add(at as u32, 1, *content);
                        model[at] = Some((layer, *content));
                    }
                }
                indexes.push(runs.into_vec());
            }
            let mut shown: Vec<Page> = vec![None; 48];
            let seen = overlay(indexes.iter().map(Vec::as_slice));
            for pair in seen.windows(2) {
                prop_assert!(pair[0].end <= pair[1].first);
            }
            for piece in seen {
                for page in piece.pages() {
                    shown[page as usize] = Some((piece.layer, piece.content));
                }
            }
            prop_assert_eq!(shown, model);
        }
    }
}
