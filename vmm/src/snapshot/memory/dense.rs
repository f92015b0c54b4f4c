//! Runs that lie close together made one. Values.
//!
//! A guest that writes all over its memory changes every other page of it, and each stretch of unchanged ones between two runs is
//! a mapping more at every restore: 100,000 of them take a second. Where it takes no more than twice as much as has changed, such pages
//! are written too.

use std::ops::Range;

use super::index::{Content, Run};

/// How many stretches of unchanged pages there may be before any is filled.
pub(super) const MANY: usize = 1000;

/// The stretches of unchanged pages between `runs`, in rising order, that had better be filled so that `most` are left; none if there are no
/// more, or if it would take more than twice as many pages as have data.
pub(super) fn fill(runs: &[Run], most: usize) -> Vec<Range<u32>> {
    let pairs = runs.iter().zip(runs.iter().skip(1));
    let mut gaps: Vec<Range<u32>> =
        pairs.map(|(one, next)| one.end()..next.first).filter(|gap| !gap.is_empty()).collect();
    let Some(excess) = gaps.len().checked_sub(most).filter(|excess| *excess > 0) else {
        return Vec::new();
    };
    gaps.sort_unstable_by_key(|gap| (gap.len(), gap.start));
    gaps.truncate(excess);
    let cost: u64 = gaps.iter().map(|gap| gap.len() as u64).sum();
    let data = runs.iter().filter(|run| run.content == Content::Data);
    if cost / 2 > data.map(|run| u64::from(run.count)).sum() {
        return Vec::new();
    }
    gaps.sort_unstable_by_key(|gap| gap.start);
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(all: &[(u32, u32)]) -> Vec<Run> {
        all.iter()
            .map(|(first, count)| Run { first: *first, count: *count, content: Content::Data })
            .collect()
    }

    #[test]
    fn the_shortest_gaps_are_filled_until_few_are_left_if_that_costs_little() {
        // Gaps of 1, 5, 2 and none.
        let close = runs(&[(0, 4), (5, 1), (11, 3), (16, 1), (17, 1)]);
        assert_eq!(fill(&close, 1), [4..5, 14..16]);
        assert_eq!(fill(&close, 2), [4..5; 1]);
        assert!(fill(&close, 3).is_empty());
        assert_eq!(fill(&close, 0), [4..5, 6..11, 14..16]);
        let sparse = runs(&[(0, 1), (10, 1), (20, 1)]);
        assert!(fill(&sparse, 1).is_empty());
        assert!(fill(&[], 0).is_empty());
    }
}
