use super::*;

use proptest::prelude::*;

fn limit(rate: u64, burst: u64) -> Limit {
    Limit { rate: NonZero::new(rate).unwrap(), burst: NonZero::new(burst).unwrap() }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_full_bucket_gives_its_burst_at_once_and_then_its_rate() {
    let start = Instant::now();
    let mut bucket = Bucket::full(limit(10, 5), start);
    for _ in 0..5 {
        assert_eq!(bucket.take(1, start), Duration::ZERO);
    }
    // Each that asks waits a turn longer, also if it asks before the one ahead of it has gone.
    assert_eq!(bucket.take(1, start), SECOND / 10);
    assert_eq!(bucket.take(2, start), SECOND * 3 / 10);
    assert_eq!(bucket.take(1, start + SECOND / 10), SECOND * 3 / 10);
}

#[test]
fn a_bucket_that_rests_fills_up_to_its_burst() {
    let start = Instant::now();
    let mut bucket = Bucket::full(limit(10, 5), start);
    assert_eq!(bucket.take(5, start), Duration::ZERO);
    let later = start + SECOND * 1000;
    assert_eq!(bucket.take(5, later), Duration::ZERO);
    assert_eq!(bucket.take(1, later), SECOND / 10);
}

#[test]
fn a_request_larger_than_the_burst_waits_for_a_full_bucket_and_leaves_a_debt() {
    let start = Instant::now();
    let mut bucket = Bucket::full(limit(10, 5), start);
    assert_eq!(bucket.take(1, start), Duration::ZERO);
    assert_eq!(bucket.take(50, start), SECOND / 10, "until it is full");
    assert_eq!(bucket.take(1, start + SECOND / 10), SECOND * 46 / 10, "until 46 tokens more are there");
}

#[test]
fn what_is_given_back_is_there_for_the_next() {
    let start = Instant::now();
    let mut bucket = Bucket::full(limit(1, 1), start);
    assert_eq!(bucket.take(100, start), Duration::ZERO);
    bucket.give_back(100);
    assert_eq!(bucket, Bucket::full(limit(1, 1), start));
    bucket.give_back(100);
    assert_eq!(bucket, Bucket::full(limit(1, 1), start), "no more than full");
}

#[test]
fn the_slowest_and_the_fastest_of_all_do_not_overflow() {
    let start = Instant::now();
    let mut slow = Bucket::full(limit(1, 1), start);
    for _ in 0..100 {
        let _ = slow.take(u64::MAX, start);
    }
    assert_eq!(slow.wait(1, start), Duration::from_nanos(u64::MAX));
    let mut fast = Bucket::full(limit(u64::MAX, u64::MAX), start);
    assert_eq!(fast.take(u64::MAX, start), Duration::ZERO);
    assert_eq!(fast.take(u64::MAX, start), SECOND);
    assert_eq!(fast.wait(u64::MAX, start + SECOND * u32::MAX), Duration::ZERO);
    assert_eq!(fast.wait(1, start), Duration::ZERO, "a clock that is behind takes nothing away");
}

proptest! {
    /// In any time no more is spent than the burst (or the one request that is larger) and what the rate gives; and
    /// who always has something to send gets all of that.
    #[test]
    fn the_limit_holds_over_any_time(
        rate in 1_u64..2_000_000,
        burst in 1_u64..1_000_000,
        requests in prop::collection::vec((0_u64..3_000_000_000, 0_u64..1_500_000, 0_u8..8), 1..60),
    ) {
        let start = Instant::now();
        let mut bucket = Bucket::full(limit(rate, burst), start);
        let (mut now, mut spent) = (start, Vec::new());
        for (pause, tokens, kind) in requests {
            // Some come one upon the other.
            now += Duration::from_nanos(if kind < 4 { 0 } else { pause });
            let wait = bucket.take(tokens, now);
            if kind == 7 {
                // Its queue was reset.
                bucket.give_back(tokens);
            } else {
                spent.push((now + wait, tokens));
            }
        }
        prop_assert!(spent.is_sorted_by_key(|(at, _)| *at), "in the order in which they asked");
        for first in 0..spent.len() {
            let mut sum = 0;
            for (at, tokens) in &spent[first..] {
                sum += u128::from(*tokens);
                // The first may have waited the part of a nanosecond too long.
                let time = (*at - spent[first].0).as_nanos() + 1;
                let most = u128::from(burst.max(*tokens)) * UNIT + u128::from(rate) * time;
                prop_assert!(sum * UNIT <= most, "{sum} in {time} ns");
            }
        }
    }

    #[test]
    fn nobody_waits_longer_than_the_rate_asks_for(
        rate in 1_u64..2_000_000,
        burst in 1_u64..1_000_000,
        requests in prop::collection::vec(0_u64..1_500_000, 1..60),
    ) {
        let start = Instant::now();
        let mut bucket = Bucket::full(limit(rate, burst), start);
        let mut before = 0;
        for tokens in requests {
            let wait = bucket.take(tokens, start);
            let needed = before + u128::from(tokens.min(burst));
            let exact = needed.saturating_sub(burst.into()) * UNIT;
            prop_assert_eq!(wait.as_nanos(), exact.div_ceil(rate.into()));
            before += u128::from(tokens);
        }
    }
}

fn limiter(bandwidth: Option<Limit>, ops: Option<Limit>) -> Option<Arc<Limiter>> {
    Limiter::new(Limits { bandwidth, ops })
}

fn gate(limiter: &Option<Arc<Limiter>>) -> (Gate, Arc<Counters>) {
    let counters = Arc::<Counters>::default();
    (Gate::new(limiter.clone(), Arc::clone(&counters)), counters)
}

/// So slow that nothing is refilled while a test runs.
const SLOW: u64 = 1;

#[test]
fn no_limit_is_no_limiter() {
    assert!(limiter(None, None).is_none());
    let (mut gate, counters) = gate(&None);
    for _ in 0..100 {
        assert_eq!((gate.pass(u64::MAX), gate.check()), (Ok(()), Ok(())));
        gate.charge(u64::MAX);
    }
    assert_eq!(counters.throttled.get(), 0);
}

#[test]
fn queues_share_their_limiter_and_each_limit_holds() {
    let shared = limiter(Some(limit(SLOW, 1 << 40)), Some(limit(SLOW, 3)));
    let ([mut one, mut two], counters) = {
        let (one, counters) = gate(&shared);
        ([one, Gate::new(shared.clone(), Arc::clone(&counters))], counters)
    };
    assert_eq!((one.pass(1), two.pass(1), one.pass(1)), (Ok(()), Ok(()), Ok(())));
    let first = two.pass(1).unwrap_err();
    assert_eq!(two.pass(1), Err(first), "the same request keeps its place");
    assert!(one.pass(1).unwrap_err() > first, "who asks later goes later");
    assert_eq!(counters.throttled.get(), 2, "each is counted once");
}

#[test]
fn a_request_that_waited_goes_when_its_time_has_come() {
    let shared = limiter(None, Some(limit(1000, 1)));
    let (mut gate, counters) = gate(&shared);
    assert_eq!(gate.pass(7), Ok(()));
    for _ in 0..3 {
        while let Err(at) = gate.pass(7) {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
        }
    }
    assert!(counters.throttled.get() <= 3);
}

#[test]
fn a_request_that_never_goes_costs_nothing() {
    let shared = limiter(Some(limit(SLOW, 1 << 40)), None);
    let (mut one, _) = gate(&shared);
    assert_eq!(one.pass(1 << 39), Ok(()));
    one.pass(1 << 40).unwrap_err();
    // The guest changed it.
    assert_eq!(one.pass(1 << 38), Ok(()));
    one.pass(1 << 39).unwrap_err();
    drop(one);
    let (mut two, _) = gate(&shared);
    assert_eq!(two.pass(1 << 38), Ok(()));
    two.pass(1 << 38).unwrap_err();
}

#[test]
fn a_request_that_something_else_holds_up_pays_once() {
    let shared = limiter(Some(limit(SLOW, 100)), None);
    let (mut gate, _) = gate(&shared);
    for _ in 0..10 {
        assert_eq!(gate.pass(60), Ok(()));
        gate.postpone(60);
    }
    assert_eq!((gate.pass(60), gate.pass(40)), (Ok(()), Ok(())));
    gate.pass(40).unwrap_err();
}

#[test]
fn what_is_charged_afterwards_is_waited_for_before_the_next() {
    let shared = limiter(Some(limit(SLOW, 100)), None);
    let (mut gate, counters) = gate(&shared);
    assert_eq!(gate.check(), Ok(()));
    gate.charge(60);
    assert_eq!(gate.check(), Ok(()), "there is something left");
    gate.charge(1000);
    gate.check().unwrap_err();
    gate.check().unwrap_err();
    assert_eq!(counters.throttled.get(), 1, "one wait, asked about twice");
}
