//! [`Schedule`]: what is done next, and what all runs of a test come to. No guests, no clock, no threads: whoever does it asks for
//! [the next](Schedule::next) and tells [what became of it](Schedule::ended).
//!
//! A test waits for what it starts from, its ground, and for nobody else's: tests come first, and where there is room beside them, grounds are made.

use std::collections::VecDeque;

use super::outcome::Verdict;

/// How tests are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How many at once.
    pub jobs: usize,
    /// How often one that failed is tried again.
    pub retry: u32,
    /// How often each is run, if that is what is of interest.
    pub flaky: Option<u32>,
    /// The first failure ends it all.
    pub fail_fast: bool,
}

/// One run of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    /// Which test.
    pub case: usize,
    /// Which of the runs that `--flaky` wants, from 0.
    pub round: u32,
    /// The how manieth try of it, from 0.
    pub attempt: u32,
}

/// Something to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// Make the ground of this number.
    Make(usize),
    /// Run a test.
    Run(Turn),
}

/// What tests start from, as far as it matters for when they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// It is there, or never will be: its tests can be run.
    Settled,
    /// It is to be made.
    Missing {
        /// Only when no other that is so is being made.
        alone: bool,
    },
    /// It is being made.
    Making {
        /// As it was when it was missing.
        alone: bool,
    },
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Schedule {
    rules: Rules,
    /// What each test starts from.
    of: Vec<usize>,
    grounds: Vec<Ground>,
    waiting: VecDeque<Turn>,
    running: Vec<Turn>,
    stopped: bool,
}

impl Schedule {
    /// Of tests that start from these of the grounds.
    pub fn new(of: Vec<usize>, grounds: Vec<Ground>, rules: Rules) -> Self {
        let (rounds, cases) = (rules.flaky.unwrap_or(1), of.len());
        // Round by round: each test is seen once before one is seen twice.
        let turns =
            (0..rounds).flat_map(|round| (0..cases).map(move |case| Turn { case, round, attempt: 0 }));
        Self { rules, of, grounds, waiting: turns.collect(), running: Vec::new(), stopped: false }
    }

    /// What to start now, if there is something. It counts as being done then.
    pub fn next(&mut self) -> Option<Task> {
        if self.stopped || self.running.len().saturating_add(self.making().count()) >= self.rules.jobs {
            return None;
        }
        let ready = |turn: &Turn| self.ground(*turn).is_none_or(|(_, ground)| ground == Ground::Settled);
        if let Some(at) = self.waiting.iter().position(ready) {
            let turn = self.waiting.remove(at)?;
            self.running.push(turn);
            return Some(Task::Run(turn));
        }
        let taken = self.making().any(|alone| alone);
        let free = |turn: &Turn| match self.ground(*turn)? {
            (at, Ground::Missing { alone }) if !(alone && taken) => Some((at, alone)),
            _ => None,
        };
        let (at, alone) = self.waiting.iter().find_map(free)?;
        *self.grounds.get_mut(at)? = Ground::Making { alone };
        Some(Task::Make(at))
    }

    /// What this test starts from.
    fn ground(&self, turn: Turn) -> Option<(usize, Ground)> {
        let at = *self.of.get(turn.case)?;
        Some((at, *self.grounds.get(at)?))
    }

    /// Of those that are being made, whether each is made alone.
    fn making(&self) -> impl Iterator<Item = bool> {
        self.grounds.iter().filter_map(|ground| match ground {
            Ground::Making { alone } => Some(*alone),
            _ => None,
        })
    }

    /// A ground was made, or could not be.
    pub fn made(&mut self, ground: usize) {
        if let Some(ground) = self.grounds.get_mut(ground) {
            *ground = Ground::Settled;
        }
    }

    /// A run has ended so. Says whether the rest is to be stopped for it, those that run among them.
    pub fn ended(&mut self, turn: Turn, verdict: Verdict) -> bool {
        self.running.retain(|other| *other != turn);
        if verdict.is_good() || verdict == Verdict::NotRun || self.stopped {
            return false;
        }
        // To see how often it fails, it is not tried again; what skiff cannot do it cannot do again.
        if verdict.is_failure() && self.rules.flaky.is_none() && turn.attempt < self.rules.retry {
            self.waiting.push_front(Turn { attempt: turn.attempt.saturating_add(1), ..turn });
            return false;
        }
        self.stopped = self.rules.fail_fast;
        self.stopped
    }

    /// Nothing more is started.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Nothing is being done, and nothing will.
    pub fn is_done(&self) -> bool {
        let idle = self.running.is_empty() && self.making().next().is_none();
        idle && (self.stopped || self.waiting.is_empty())
    }
}

/// What all runs of one test come to: the verdict, and the index of the run that tells why.
pub fn sum(verdicts: &[Verdict], flaky: Option<u32>) -> (Verdict, Option<usize>) {
    let last = verdicts.len().checked_sub(1);
    // What the test did tells more than what skiff could not do afterwards.
    let failed = verdicts.iter().rposition(|verdict| verdict.is_failure());
    let bad = failed.or_else(|| verdicts.iter().rposition(|verdict| *verdict == Verdict::Error));
    match (verdicts.last(), bad) {
        (None, _) => (Verdict::NotRun, None),
        // One failure is one too many.
        (Some(_), Some(at)) if flaky.is_some() => {
            (verdicts.get(at).copied().unwrap_or(Verdict::Error), Some(at))
        }
        (Some(Verdict::Passed), Some(at)) => (Verdict::Flaky, Some(at)),
        // It failed, and was to be tried again when somebody wanted no more, or skiff could not.
        (Some(Verdict::NotRun | Verdict::Error), Some(at)) => {
            (verdicts.get(at).copied().unwrap_or(Verdict::Error), Some(at))
        }
        (Some(verdict), _) => (*verdict, last),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Rules = Rules { jobs: 2, retry: 0, flaky: None, fail_fast: false };

    /// All start from the same, which is there.
    fn plain(cases: usize, rules: Rules) -> Schedule {
        Schedule::new(vec![0; cases], vec![Ground::Settled], rules)
    }

    /// Runs it all with guests that do what `does` says. Says in which order what ended how.
    fn run(cases: usize, rules: Rules, does: impl Fn(Turn) -> Verdict) -> Vec<(Turn, Verdict)> {
        let (mut schedule, mut running, mut ended) = (plain(cases, rules), VecDeque::new(), Vec::new());
        loop {
            while let Some(task) = schedule.next() {
                let Task::Run(turn) = task else { panic!("all is there") };
                running.push_back(turn);
                assert!(running.len() <= rules.jobs, "too many at once");
            }
            let Some(turn) = running.pop_front() else { break };
            let verdict = does(turn);
            ended.push((turn, verdict));
            if schedule.ended(turn, verdict) {
                for turn in running.drain(..) {
                    schedule.ended(turn, Verdict::NotRun);
                    ended.push((turn, Verdict::NotRun));
                }
            }
        }
        assert!(schedule.is_done());
        ended
    }

    fn of(case: usize, ended: &[(Turn, Verdict)]) -> Vec<Verdict> {
        ended.iter().filter(|(turn, _)| turn.case == case).map(|(_, verdict)| *verdict).collect()
    }

    #[test]
    fn a_test_that_fails_is_tried_again_and_is_flaky_if_it_passes_then() {
        let rules = Rules { retry: 2, ..RULES };
        let ended = run(3, rules, |turn| match (turn.case, turn.attempt) {
            (1, 0) => Verdict::TimedOut,
            (2, _) => Verdict::Failed,
            _ => Verdict::Passed,
        });
        assert_eq!(of(1, &ended), [Verdict::TimedOut, Verdict::Passed]);
        assert_eq!(sum(&of(1, &ended), None), (Verdict::Flaky, Some(0)));
        assert_eq!(of(2, &ended), [Verdict::Failed; 3]);
        assert_eq!(sum(&of(2, &ended), None), (Verdict::Failed, Some(2)));
        assert_eq!(sum(&of(0, &ended), None), (Verdict::Passed, Some(0)));
    }

    #[test]
    fn what_skiff_cannot_do_is_not_tried_again() {
        let ended = run(1, Rules { retry: 5, ..RULES }, |_| Verdict::Error);
        assert_eq!(of(0, &ended), [Verdict::Error]);
    }

    #[test]
    fn the_first_failure_ends_it_all_once_it_is_no_more_tried_again() {
        let rules = Rules { fail_fast: true, retry: 1, ..RULES };
        let ended = run(5, rules, |turn| if turn.case == 0 { Verdict::Failed } else { Verdict::Passed });
        assert_eq!(of(0, &ended), [Verdict::Failed; 2]);
        assert!(ended.len() < 6 && ended.iter().any(|(_, verdict)| *verdict == Verdict::NotRun), "{ended:?}");
        assert_eq!(sum(&of(4, &ended), None), (Verdict::NotRun, None));
    }

    #[test]
    fn how_often_one_fails_is_seen_round_by_round() {
        let rules = Rules { flaky: Some(4), retry: 3, ..RULES };
        let ended = run(2, rules, |turn| {
            if turn == (Turn { case: 1, round: 2, attempt: 0 }) { Verdict::Panicked } else { Verdict::Passed }
        });
        assert_eq!(ended.len(), 8);
        let rounds: Vec<u32> = ended.iter().map(|(turn, _)| turn.round).collect();
        assert!(rounds.is_sorted(), "{rounds:?}");
        assert_eq!(sum(&of(1, &ended), rules.flaky), (Verdict::Panicked, Some(2)));
    }

    #[test]
    fn a_failure_is_not_forgotten_for_an_error_after_it() {
        use Verdict::{Error, Failed, NotRun, Passed};
        assert_eq!(sum(&[Failed, Error], None), (Failed, Some(0)));
        assert_eq!(sum(&[Failed, NotRun], None), (Failed, Some(0)));
        assert_eq!(sum(&[Passed, Failed, Error, Passed], Some(4)), (Failed, Some(1)));
        assert_eq!(sum(&[Passed, Error, Passed], Some(3)), (Error, Some(1)));
        assert_eq!(sum(&[Error], None), (Error, Some(0)));
    }

    #[test]
    fn after_a_stop_nothing_starts() {
        let mut schedule = plain(3, RULES);
        let Some(Task::Run(turn)) = schedule.next() else { panic!("nothing is run") };
        schedule.stop();
        assert_eq!(schedule.next(), None);
        assert!(!schedule.is_done());
        assert!(!schedule.ended(turn, Verdict::NotRun));
        assert!(schedule.is_done());
    }

    const MISSING: Ground = Ground::Missing { alone: false };
    const IMAGE: Ground = Ground::Missing { alone: true };

    fn run_of(case: usize) -> Option<Task> {
        Some(Task::Run(Turn { case, round: 0, attempt: 0 }))
    }

    #[test]
    fn a_test_waits_for_its_own_ground_only() {
        let mut schedule = Schedule::new(vec![0, 0, 1, 2], vec![MISSING, Ground::Settled, MISSING], RULES);
        assert_eq!(schedule.next(), run_of(2));
        assert_eq!(schedule.next(), Some(Task::Make(0)));
        assert_eq!(schedule.next(), None);
        schedule.ended(Turn { case: 2, round: 0, attempt: 0 }, Verdict::Passed);
        assert_eq!(schedule.next(), Some(Task::Make(2)));
        schedule.made(0);
        assert_eq!(schedule.next(), run_of(0));
        schedule.made(2);
        assert_eq!(schedule.next(), run_of(1));
        for case in [0, 1] {
            schedule.ended(Turn { case, round: 0, attempt: 0 }, Verdict::Passed);
        }
        assert!(!schedule.is_done());
        assert_eq!(schedule.next(), run_of(3));
        schedule.ended(Turn { case: 3, round: 0, attempt: 0 }, Verdict::Passed);
        assert!(schedule.is_done());
    }

    #[test]
    fn images_are_made_one_at_a_time_and_boots_beside_them() {
        let rules = Rules { jobs: 4, ..RULES };
        let mut schedule = Schedule::new(vec![0, 1, 2, 3], vec![IMAGE, IMAGE, MISSING, MISSING], rules);
        let next = [schedule.next(), schedule.next(), schedule.next(), schedule.next()];
        assert_eq!(next, [Some(Task::Make(0)), Some(Task::Make(2)), Some(Task::Make(3)), None]);
        schedule.made(0);
        assert_eq!([schedule.next(), schedule.next()], [run_of(0), Some(Task::Make(1))]);
        schedule.stop();
        assert!(!schedule.is_done());
    }

    proptest! {
        #[test]
        fn every_test_is_run_to_an_end(
            cases in 0_usize..12,
            jobs in 1_usize..5,
            retry in 0_u32..4,
            flaky in prop::option::of(1_u32..4),
            seed in prop::collection::vec(any::<bool>(), 1..40),
        ) {
            let rules = Rules { jobs, retry, flaky, fail_fast: false };
            let does = |turn: Turn| {
                let at = turn.case * 7 + turn.round as usize * 3 + turn.attempt as usize;
                if seed[at % seed.len()] { Verdict::Passed } else { Verdict::Failed }
            };
            let ended = run(cases, rules, does);
            for case in 0..cases {
                let verdicts = of(case, &ended);
                let (verdict, why) = sum(&verdicts, flaky);
                prop_assert!(why.is_some());
                match flaky {
                    Some(rounds) => {
                        prop_assert_eq!(verdicts.len(), rounds as usize);
                        prop_assert_eq!(verdict.is_good(), verdicts.iter().all(|verdict| verdict.is_good()));
                    }
                    None => {
                        prop_assert!(verdicts.len() <= retry as usize + 1);
                        prop_assert_eq!(verdict.is_good(), verdicts.last().unwrap().is_good());
                        prop_assert!(verdict.is_good() || verdicts.len() == retry as usize + 1);
                    }
                }
            }
        }
    }
}
