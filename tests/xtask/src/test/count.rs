//! Results of tests, and where they are read from.

/// How many tests passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub passed: u32,
    pub failed: u32,
}

impl Count {
    /// One that passed.
    pub const ONE: Count = Count { passed: 1, failed: 0 };
    /// One that failed.
    pub const FAILURE: Count = Count { passed: 0, failed: 1 };

    /// Both together.
    pub fn plus(self, other: Count) -> Count {
        Count { passed: self.passed + other.passed, failed: self.failed + other.failed }
    }

    /// Adds up lines like `test result: ok. 3 passed; 0 failed; …`.
    pub fn of_libtest(output: &str) -> Count {
        let results = output.lines().filter_map(|line| line.strip_prefix("test result: "));
        let number = |line: &str, word: &str| {
            let mut parts = line.split([';', '.']).map(str::trim);
            parts.find_map(|part| part.strip_suffix(word)?.trim().parse().ok()).unwrap_or(0)
        };
        results.fold(Count::default(), |sum, line| {
            sum.plus(Count { passed: number(line, "passed"), failed: number(line, "failed") })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up() {
        let output = "running 3 tests\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
                      test result: FAILED. 10 passed; 2 failed; 0 ignored\n";
        assert_eq!(Count::of_libtest(output), Count { passed: 13, failed: 2 });
        assert_eq!(Count::of_libtest("nothing").plus(Count::ONE), Count::ONE);
    }
}
