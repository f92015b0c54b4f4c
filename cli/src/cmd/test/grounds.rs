//! [`Grounds`]: what all tests start from, one for each image and size of machine, and how far each is.

use anyhow::Result;

use super::folder;
use super::matrix::Case;
use super::prepare::{Log, Look, Preparer, Ready, called, moment, shape};
use super::schedule::Ground;
use crate::held::Dir;

/// See the module's documentation.
pub struct Grounds<'a> {
    preparer: Preparer<'a>,
    cases: &'a [Case],
    all: Vec<Place<'a>>,
}

struct Place<'a> {
    /// The first test that starts from it.
    case: &'a Case,
    state: State,
}

enum State {
    Ready(Box<Ready>),
    /// It is to be made, and the image before it.
    Missing {
        image: bool,
    },
    /// It cannot be made, for this reason.
    Unready(String),
}

impl<'a> Grounds<'a> {
    /// Those of `cases`, as far as they are there: `tell` hears of those. And the memory of the largest guest, in bytes.
    pub fn look(
        preparer: Preparer<'a>,
        cases: &'a [Case],
        mut tell: impl FnMut(&str),
    ) -> (Self, Option<u64>) {
        let (mut grounds, mut largest) = (Self { preparer, cases, all: Vec::new() }, None);
        for case in cases {
            if grounds.of(case).is_some() {
                continue;
            }
            let state = match grounds.preparer.look(case, grounds.preparer.fresh) {
                Ok(Look::Ready(ready)) => {
                    tell(&format!("[{}] warm, from {}", called(case), moment(ready.created_ms)));
                    largest = largest.max(Some(ready.spec.memory.size.0));
                    State::Ready(ready)
                }
                Ok(Look::Missing { memory, image }) => {
                    largest = largest.max(memory);
                    State::Missing { image }
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    tell(&format!("[{}] {why}", called(case)));
                    State::Unready(why)
                }
            };
            grounds.all.push(Place { case, state });
        }
        (grounds, largest)
    }

    /// The number of the one that `case` starts from.
    pub fn of(&self, case: &Case) -> Option<usize> {
        self.all.iter().position(|place| shape(place.case) == shape(case))
    }

    /// How far each is.
    pub fn states(&self) -> Vec<Ground> {
        let state = |place: &Place<'_>| match place.state {
            State::Missing { image } => Ground::Missing { alone: image },
            State::Ready(_) | State::Unready(_) => Ground::Settled,
        };
        self.all.iter().map(state).collect()
    }

    /// Where results go.
    pub fn output(&self) -> &Dir {
        self.preparer.output
    }

    /// What the one of this number is called.
    pub fn called(&self, at: usize) -> String {
        self.all.get(at).map(|place| called(place.case)).unwrap_or_default()
    }

    /// Make it. In a process of its own, which has one thread; says why it cannot be.
    pub fn make(&self, at: usize) -> Result<(), String> {
        let Some(place) = self.all.get(at) else { return Err(DEFECT.to_owned()) };
        let (images, mut log) = (self.preparer.store.images(), Log::default());
        // Another store: what the first one holds is not this process's.
        let preparer = Preparer { images: &images, ..self.preparer };
        let why = match preparer.make(place.case, &mut log) {
            Ok(()) => return Ok(()),
            Err(error) => format!("{error:#}"),
        };
        if !log.0.is_empty() {
            log.line(&why);
            let wanted = self.cases.iter().filter(|case| shape(case) == shape(place.case));
            for case in wanted {
                if let Err(error) = folder::write_setup_log(self.preparer.output, &case.slug, &log.0) {
                    log::warn!("{error:#}");
                }
            }
        }
        Err(why)
    }

    /// The one who was to make it says so. Says why there is nothing to start from, if that is so.
    pub fn made(&mut self, at: usize, how: Result<(), String>) -> Option<&str> {
        let place = self.all.get_mut(at)?;
        let look = || {
            match self.preparer.look(place.case, false) {
            Ok(Look::Ready(ready)) => State::Ready(ready),
            Ok(Look::Missing { .. }) => State::Unready(
                "its snapshot has gone again: another skiff test of this project has another setup, or somebody has removed it"
                    .to_owned(),
            ),
            Err(error) => State::Unready(format!("{error:#}")),
        }
        };
        place.state = how.map_or_else(State::Unready, |()| look());
        match &place.state {
            State::Unready(why) => Some(why),
            _ => None,
        }
    }

    /// What `case` starts from, or why there is nothing.
    pub fn ready(&self, case: &Case) -> Result<&Ready, &str> {
        match self.of(case).and_then(|at| self.all.get(at)).map(|place| &place.state) {
            Some(State::Ready(ready)) => Ok(ready),
            Some(State::Unready(why)) => Err(why),
            Some(State::Missing { .. }) | None => Err(DEFECT),
        }
    }
}

/// Nobody is to see this.
const DEFECT: &str = "its snapshot was not made: this is a defect of skiff";
