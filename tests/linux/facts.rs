//! What a guest said: its lines are `skiff-guest: word key=value…` (see `guest/init.sh`).

use anyhow::{Context, Result, bail};

/// One line.
#[derive(Debug, Clone)]
pub struct Fact {
    word: String,
    pairs: Vec<(String, String)>,
}

/// Everything that was said, in order.
#[derive(Debug, Default)]
pub struct Facts(Vec<Fact>);

impl Facts {
    /// Finds the guest's lines among a console's: whole ones, not one that is still being printed. A line that a rollback cut off
    /// goes on with what the guest says in its new life, of which the last counts.
    pub fn of(console: &str) -> Facts {
        let whole = console.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let said =
            whole.lines().filter_map(|line| line.rsplit_once("skiff-guest: ")).map(|(_, said)| said.trim());
        Facts(said.map(Fact::of).collect())
    }

    /// How often the guest said `word`.
    pub fn count(&self, word: &str) -> usize {
        self.all(word).count()
    }

    /// The last line that starts with `word`.
    ///
    /// # Errors
    /// When there is none.
    pub fn last(&self, word: &str) -> Result<&Fact> {
        self.0
            .iter()
            .rev()
            .find(|fact| fact.word == word)
            .with_context(|| format!("the guest did not say '{word}'"))
    }

    /// All lines that start with `word`.
    pub fn all<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a Fact> {
        self.0.iter().filter(move |fact| fact.word == word)
    }

    /// All lines that start with `word` and are whole up to a key that they end with: a rollback, or a clone, goes on in the
    /// middle of a line.
    pub fn ending_with<'a>(&'a self, word: &'a str, key: &'a str) -> impl Iterator<Item = &'a Fact> {
        self.all(word).filter(move |fact| fact.pairs.last().is_some_and(|(name, _)| name == key))
    }

    /// Fails with the first problem that the guest itself saw.
    ///
    /// # Errors
    /// That problem.
    pub fn no_problems(&self) -> Result<()> {
        match self.all("problem").next() {
            Some(problem) => bail!("the guest had a problem: {:?}", problem.pairs),
            None => Ok(()),
        }
    }
}

impl Fact {
    fn of(line: &str) -> Fact {
        let mut words = line.split_whitespace();
        let word = words.next().unwrap_or_default().to_string();
        let pairs = words.filter_map(|pair| pair.split_once('='));
        Fact { word, pairs: pairs.map(|(key, value)| (key.to_string(), value.to_string())).collect() }
    }

    /// The value of a key.
    ///
    /// # Errors
    /// When the line has no such key.
    pub fn get(&self, key: &str) -> Result<&str> {
        let pair = self.pairs.iter().find(|(name, _)| name == key);
        pair.map(|(_, value)| value.as_str())
            .with_context(|| format!("the guest said '{}' without {key}", self.word))
    }

    /// The value of a key that is a number.
    ///
    /// # Errors
    /// When the line has no such key, or something else there.
    pub fn number(&self, key: &str) -> Result<u64> {
        let said = self.get(key)?;
        said.parse()
            .with_context(|| format!("the guest said '{}' {key}={said}, which is no number", self.word))
    }

    /// Checks a value.
    ///
    /// # Errors
    /// Names the key with both values when they differ.
    pub fn expect(&self, key: &str, wanted: &str) -> Result<()> {
        let said = self.get(key)?;
        if said != wanted {
            bail!("the guest said '{}' {key}={said}, not {wanted}: {:?}", self.word, self.pairs);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_among_the_kernels() {
        let facts = Facts::of(
            "[ 1.0] x\r\n[ 2.0] skiff-guest: ready cpus=0-1 memory=5K\r\nskiff-guest: poweroff\r\n",
        );
        assert_eq!(facts.last("ready").unwrap().get("memory").unwrap(), "5K");
        assert_eq!(facts.count("poweroff"), 1);
        assert!(facts.last("check").is_err());
    }

    #[test]
    fn what_is_still_being_printed_does_not_count() {
        let facts = Facts::of("skiff-guest: tick n=1 wall=2\r\nskiff-guest: tick n=2\r\nskiff-guest: tick");
        assert_eq!(facts.count("tick"), 2);
        let whole: Vec<_> = facts.ending_with("tick", "wall").collect();
        assert_eq!(whole.len(), 1);
        assert_eq!(whole[0].number("n").unwrap(), 1);
    }

    #[test]
    fn what_was_cut_off_by_a_rollback_does_not_count() {
        let facts = Facts::of("skiff-guest: tick n=7 waskiff-guest: tick n=3 wall=4\n");
        assert_eq!(facts.last("tick").unwrap().number("n").unwrap(), 3);
    }
}
