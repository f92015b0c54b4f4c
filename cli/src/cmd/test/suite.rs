//! [`Suite`]: what is to be tested and how, whoever says so: flags, a file, or both.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use images::file::{Copy, Run, Step, What};
use vmm::spec::Memory;

use crate::cmd::run::volume::Volume;

/// The most tests of one run: each is a row of the report, and a directory.
pub const MOST_TESTS: usize = 1000;
/// The most times that one test is run with `--flaky`, or again with `--retry`.
pub const MOST_RUNS: u32 = 1000;

/// What is to be tested. What nobody has said is `None` or empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Suite {
    /// The images, in order.
    pub on: Vec<String>,
    /// Numbers of vCPUs; empty: the image's.
    pub cpus: Vec<u8>,
    /// Amounts of memory; empty: the image's.
    pub memory: Vec<Memory>,
    /// Variables of which each value is tested.
    pub env_matrix: BTreeMap<String, Vec<String>>,
    /// What is done once before the tests of an image.
    pub setup: Vec<Step>,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Folders of the host that the command sees; the setup does not.
    pub volumes: Vec<Volume>,
    /// `KEY=VALUE`, for the setup and for the command.
    pub env: Vec<String>,
    /// Who runs the command; otherwise whom the image says.
    pub user: Option<String>,
    /// Where the command starts; otherwise where the image says.
    pub workdir: Option<String>,
    /// How long the command may take.
    pub timeout: Option<Duration>,
    /// How often a test that failed is tried again.
    pub retry: Option<u32>,
    /// How often each test is run, to see how often it fails.
    pub flaky: Option<u32>,
    /// How many guests there are at once.
    pub jobs: Option<u32>,
    /// The first failure ends it all.
    pub fail_fast: Option<bool>,
    /// What is fetched from each guest: paths in it.
    pub artifacts: Vec<String>,
    /// Where logs and artifacts go.
    pub output: Option<PathBuf>,
    /// How many failed guests of one test are kept; 0: none.
    pub keep: Option<u32>,
    /// Patterns of which a test's name must match one, if there are some.
    pub include: Vec<String>,
    /// Patterns of which a test's name must match none.
    pub exclude: Vec<String>,
}

impl Suite {
    /// What this says, and where it is silent, what `below` does. Steps and variables come after those of `below`.
    fn over(self, below: Self) -> Self {
        let either = |upper: Vec<String>, lower: Vec<String>| if upper.is_empty() { lower } else { upper };
        let both = |upper: Vec<String>, lower: Vec<String>| lower.into_iter().chain(upper).collect();
        Self {
            on: either(self.on, below.on),
            cpus: if self.cpus.is_empty() { below.cpus } else { self.cpus },
            memory: if self.memory.is_empty() { below.memory } else { self.memory },
            env_matrix: if self.env_matrix.is_empty() { below.env_matrix } else { self.env_matrix },
            setup: below.setup.into_iter().chain(self.setup).collect(),
            command: either(self.command, below.command),
            volumes: below.volumes.into_iter().chain(self.volumes).collect(),
            env: both(self.env, below.env),
            user: self.user.or(below.user),
            workdir: self.workdir.or(below.workdir),
            timeout: self.timeout.or(below.timeout),
            retry: self.retry.or(below.retry),
            flaky: self.flaky.or(below.flaky),
            jobs: self.jobs.or(below.jobs),
            fail_fast: self.fail_fast.or(below.fail_fast),
            artifacts: both(self.artifacts, below.artifacts),
            output: self.output.or(below.output),
            keep: self.keep.or(below.keep),
            // Of the file's tests, the command line chooses some.
            include: either(self.include, below.include),
            exclude: both(self.exclude, below.exclude),
        }
    }
}

/// What the flags say over what the file does. A directory that a flag names is made before all else, instead of the file's.
pub fn merge(flags: Suite, file: Suite) -> Suite {
    let workdir = flags.workdir.clone();
    let mut suite = flags.over(file);
    if let Some(dir) = workdir {
        suite.setup.retain(|step| !matches!(step.what, What::Workdir(_)));
        suite.setup.insert(0, Step { line: 0, what: What::Workdir(dir) });
    }
    suite
}

/// A step of `--setup`: a line for the shell.
pub fn run_step(text: &str) -> Step {
    let argv = vec!["/bin/sh".to_owned(), "-ec".to_owned(), text.to_owned()];
    Step { line: 0, what: What::Run(Run { text: text.to_owned(), argv, ..Run::default() }) }
}

/// A step of `--copy`.
pub fn copy_step(from: &str, to: &str) -> Step {
    let copy = Copy { sources: vec![from.to_owned()], to: to.to_owned(), ..Copy::default() };
    Step { line: 0, what: What::Copy(copy) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_a_file_and_add_to_its_lists() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let file = Suite {
            on: words("debian:11 debian:12"),
            command: words("make test"),
            env: words("A=1"),
            setup: vec![run_step("make")],
            retry: Some(3),
            include: words("debian"),
            exclude: words("debian:11"),
            artifacts: words("/log"),
            ..Suite::default()
        };
        let flags = Suite {
            on: words("debian:13"),
            env: words("A=2"),
            setup: vec![run_step("true")],
            include: words("13"),
            artifacts: words("/core"),
            jobs: Some(2),
            ..Suite::default()
        };
        let suite = merge(flags, file);
        assert_eq!((suite.on, suite.command), (words("debian:13"), words("make test")));
        assert_eq!((suite.env, suite.artifacts), (words("A=1 A=2"), words("/log /core")));
        assert_eq!(suite.setup, [run_step("make"), run_step("true")]);
        assert_eq!((suite.include, suite.exclude), (words("13"), words("debian:11")));
        assert_eq!((suite.retry, suite.jobs), (Some(3), Some(2)));
    }

    #[test]
    fn a_directory_of_the_flags_is_made_before_all_else() {
        let dir = |dir: &str| Step { line: 0, what: What::Workdir(dir.to_owned()) };
        let of = |path: &str, setup| Suite { workdir: Some(path.to_owned()), setup, ..Suite::default() };
        let suite = merge(of("/b", vec![run_step("ls")]), Suite::default());
        assert_eq!(suite.setup, [dir("/b"), run_step("ls")]);
        let file = of("/a", vec![run_step("apt-get"), dir("/a"), run_step("make")]);
        let suite = merge(of("/b", Vec::new()), file.clone());
        assert_eq!(suite.setup, [dir("/b"), run_step("apt-get"), run_step("make")]);
        assert_eq!(merge(Suite::default(), file.clone()).setup, file.setup);
    }
}
