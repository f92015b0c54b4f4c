//! `--net`: networks, or that there is to be none.

use std::fmt;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use vmm::spec::{NetBackend, NetSpec, ParseError};

/// One `--net`.
#[derive(Clone, Debug, PartialEq)]
pub enum NetAsked {
    /// No network, also none that would be there by default.
    Nothing,
    /// This one.
    Net(NetSpec),
}

impl FromStr for NetAsked {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text == "none" { Ok(Self::Nothing) } else { text.parse().map(Self::Net) }
    }
}

impl<'de> Deserialize<'de> for NetAsked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = NetAsked;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table or a text such as \"tap=tap0\"")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<NetAsked, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<NetAsked, A::Error> {
                NetSpec::deserialize(MapAccessDeserializer::new(map)).map(NetAsked::Net)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// What flags and a file ask for together, the file's first. A `none` of the flags is said of the file's, too.
pub fn over(flags: Vec<NetAsked>, file: Vec<NetAsked>) -> Vec<NetAsked> {
    if flags.contains(&NetAsked::Nothing) || (!flags.is_empty() && file.contains(&NetAsked::Nothing)) {
        return flags;
    }
    file.into_iter().chain(flags).collect()
}

/// The networks, and one for ports of the host that are to lead somewhere if nothing was asked.
pub fn settle(asked: Vec<NetAsked>, has_ports: bool) -> Result<Vec<NetSpec>, String> {
    let (alone, silent) = (asked.len() == 1, asked.is_empty());
    let mut nets = Vec::new();
    for net in asked {
        match net {
            NetAsked::Net(net) => nets.push(net),
            NetAsked::Nothing if alone => {}
            NetAsked::Nothing => {
                return Err("--net none goes with no other network: leave one of them out".to_owned());
            }
        }
    }
    if silent && has_ports {
        nets.push(NetSpec::new(NetBackend::User));
    }
    Ok(nets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(words: &[&str]) -> Vec<NetAsked> {
        words.iter().map(|word| word.parse().unwrap()).collect()
    }

    #[test]
    fn none_stands_alone_and_clears_what_a_file_says() {
        assert_eq!(over(asked(&["none"]), asked(&["tap=t"])), asked(&["none"]));
        assert_eq!(over(asked(&["tap=t"]), asked(&["none"])), asked(&["tap=t"]));
        assert_eq!(over(asked(&["tap=t"]), asked(&["user"])), asked(&["user", "tap=t"]));
        assert!(settle(asked(&["none"]), true).unwrap().is_empty());
        assert!(settle(asked(&["none", "user"]), false).unwrap_err().contains("no other network"));
        assert_eq!(settle(Vec::new(), true).unwrap(), [NetSpec::new(NetBackend::User)]);
    }
}
