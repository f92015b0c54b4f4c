//! [`Proxies`]: through whom others are reached, as variables of the environment say it that most programs read.

use std::net::IpAddr;

use ureq::Proxy;

use super::address::Origin;

/// Proxies for addresses with TLS and without, and who is reached without one. Whoever is on this machine always is.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    secure: Option<Proxy>,
    plain: Option<Proxy>,
    without: Vec<Without>,
    wrong: Option<&'static str>,
}

/// An entry of `NO_PROXY`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Without {
    who: Who,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    All,
    /// A domain's hosts, and the host of that name unless that is left out.
    Domain {
        name: String,
        itself: bool,
    },
    /// A network, by its address and how many bits of that count.
    Network(IpAddr, u32),
}

impl Proxies {
    /// As this process's environment says.
    #[must_use]
    pub fn of_environment() -> Self {
        Self::of(&|name| std::env::var(name).ok())
    }

    /// As variables say that are looked up so: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, or the same in small letters.
    #[must_use]
    pub fn of(look: &dyn Fn(&str) -> Option<String>) -> Self {
        let value = |name: &str| {
            let set = |name: &str| look(name).filter(|value| !value.trim().is_empty());
            set(name).or_else(|| set(&name.to_ascii_lowercase()))
        };
        let mut wrong = None;
        let mut proxy = |name: &'static str| {
            let (name, address) = match value(name) {
                Some(address) => (name, address),
                None => ("ALL_PROXY", value("ALL_PROXY")?),
            };
            let proxy = Proxy::new(address.trim()).ok();
            if proxy.is_none() {
                wrong = Some(name);
            }
            proxy
        };
        let (secure, plain) = (proxy("HTTPS_PROXY"), proxy("HTTP_PROXY"));
        let without = value("NO_PROXY").unwrap_or_default();
        let without = without.split(',').filter_map(Without::parse).collect();
        Self { secure, plain, without, wrong }
    }

    /// The variable that has no address of a proxy.
    pub(super) fn wrong(&self) -> Option<&'static str> {
        self.wrong
    }

    /// The one through which `origin` is reached, if it is through one.
    pub(super) fn through(&self, origin: &Origin) -> Option<&Proxy> {
        let proxy = if origin.secure { self.secure.as_ref() } else { self.plain.as_ref() }?;
        let (host, port) = split(&origin.authority);
        let port = port.unwrap_or(if origin.secure { 443 } else { 80 });
        let address: Option<IpAddr> = host.parse().ok();
        let own = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        let matches = |without: &Without| {
            without.port.is_none_or(|wanted| wanted == port) && without.who.is(host, address)
        };
        (!own && !self.without.iter().any(matches)).then_some(proxy)
    }
}

impl Without {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if text.is_empty() {
            return None;
        }
        if text == "*" {
            return Some(Self { who: Who::All, port: None });
        }
        if let Some((address, bits)) = text.split_once('/') {
            let who = Who::Network(address.parse().ok()?, bits.parse().ok()?);
            return Some(Self { who, port: None });
        }
        // An address of IPv6 has colons, and no port unless it is in brackets.
        let (host, port) = if text.parse::<IpAddr>().is_ok() { (text.as_str(), None) } else { split(&text) };
        let who = match host.parse::<IpAddr>() {
            Ok(address) => Who::Network(address, 128),
            Err(_) => {
                let name = host.strip_prefix('*').unwrap_or(host);
                let itself = !name.starts_with('.');
                Who::Domain { name: name.trim_start_matches('.').to_owned(), itself }
            }
        };
        Some(Self { who, port })
    }
}

impl Who {
    fn is(&self, host: &str, address: Option<IpAddr>) -> bool {
        match self {
            Self::All => true,
            Self::Network(network, bits) => address.is_some_and(|address| same(*network, address, *bits)),
            Self::Domain { name, itself } => match host.strip_suffix(name.as_str()) {
                Some("") => *itself,
                Some(before) => before.ends_with('.'),
                None => false,
            },
        }
    }
}

/// Whether the first bits of two addresses of one kind are the same.
fn same(one: IpAddr, other: IpAddr, bits: u32) -> bool {
    let (difference, width) = match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => (u128::from(one.to_bits() ^ other.to_bits()), 32_u32),
        (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits() ^ other.to_bits(), 128),
        _ => return false,
    };
    difference.checked_shr(width.saturating_sub(bits)).is_none_or(|rest| rest == 0)
}

/// A host without brackets, and its port if there is one.
fn split(authority: &str) -> (&str, Option<u16>) {
    let bare = |host: &str| host.trim_start_matches('[').trim_end_matches(']').len();
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !port.is_empty() => {
            let start = host.len().saturating_sub(host.trim_start_matches('[').len());
            (host.get(start..).unwrap_or_default().get(..bare(host)).unwrap_or_default(), port.parse().ok())
        }
        _ => (authority.trim_start_matches('[').trim_end_matches(']'), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::of(&|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn origin(secure: bool, authority: &str) -> Origin {
        Origin { secure, authority: authority.to_owned() }
    }

    #[test]
    fn each_kind_of_address_has_its_own_proxy() {
        let both = proxies(&[("HTTPS_PROXY", "http://s.example:1"), ("http_proxy", "http://p.example:2")]);
        let port = |proxies: &Proxies, secure| {
            proxies.through(&origin(secure, "reg.example")).map(|proxy| proxy.uri().port_u16().unwrap())
        };
        assert_eq!((port(&both, true), port(&both, false)), (Some(1), Some(2)));
        let all = proxies(&[("ALL_PROXY", "p.example:3"), ("HTTP_PROXY", "")]);
        assert_eq!((port(&all, true), port(&all, false)), (Some(3), Some(3)));
        assert_eq!(port(&proxies(&[]), true), None);
        assert_eq!(both.wrong(), None);
        let wrong = proxies(&[("https_proxy", "gopher://user:secret@x")]);
        assert_eq!(wrong.wrong(), Some("HTTPS_PROXY"));
        assert!(!format!("{wrong:?}{:?}", proxies(&[("ALL_PROXY", "http://u:secret@x")])).contains("secret"));
    }

    #[test]
    fn who_needs_none_is_reached_without() {
        let list =
            " Example.com, .sub.test,*.star.test , 10.0.0.0/8,192.0.2.1,port.test:5000,fd00::/8,::2,,/,x/y";
        let through = proxies(&[("HTTPS_PROXY", "http://p.example:1"), ("NO_PROXY", list)]);
        for (authority, without) in [
            ("example.com", true),
            ("reg.example.com:5000", true),
            ("notexample.com", false),
            ("a.sub.test", true),
            ("sub.test", false),
            ("a.star.test", true),
            ("star.test", false),
            ("10.1.2.3:443", true),
            ("11.1.2.3", false),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("port.test:5000", true),
            ("port.test", false),
            ("[fd12::1]:5000", true),
            ("[fe80::1]", false),
            ("[::2]", true),
            ("localhost:5000", true),
            ("127.0.0.9", true),
            ("[::1]:5000", true),
        ] {
            assert_eq!(through.through(&origin(true, authority)).is_none(), without, "{authority}");
        }
        let none = proxies(&[("HTTPS_PROXY", "http://p.example:1"), ("no_proxy", "*")]);
        assert!(none.through(&origin(true, "reg.example")).is_none());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_fall_over(list in ".{0,60}", authority in ".{0,30}") {
            let proxies = proxies(&[("ALL_PROXY", "http://p.example:1"), ("NO_PROXY", &list)]);
            let _ = proxies.through(&origin(true, &authority));
        }
    }
}
