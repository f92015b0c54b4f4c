//! Where requests go: URLs, and whether two of them are the same host's.

use ureq::http::Uri;

/// A place that speaks HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// With TLS.
    pub secure: bool,
    /// The host and port, in small letters.
    pub authority: String,
}

impl Origin {
    /// Of a URL: none if it is no HTTP URL, or has a user in it.
    #[must_use]
    pub fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let secure = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?.as_str().to_ascii_lowercase();
        let default = if secure { ":443" } else { ":80" };
        let authority = authority.strip_suffix(default).map_or(authority.clone(), str::to_owned);
        (!authority.contains('@') && !authority.is_empty()).then_some(Self { secure, authority })
    }

    /// The URL of a path here.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http{}://{}{path}", if self.secure { "s" } else { "" }, self.authority)
    }
}

/// Where `location`, which may be relative, leads from `url` (RFC 3986, section 5.2, but for dots).
#[must_use]
pub fn resolve(url: &str, location: &str) -> Option<String> {
    let origin = Origin::of(url)?;
    let location = location.split('#').next().unwrap_or_default();
    let target = if location.starts_with("https://") || location.starts_with("http://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("http{}://{rest}", if origin.secure { "s" } else { "" })
    } else if location.starts_with('/') {
        origin.url(location)
    } else {
        let uri: Uri = url.parse().ok()?;
        let (dir, _) = uri.path().rsplit_once('/')?;
        origin.url(&format!("{dir}/{location}"))
    };
    Origin::of(&target).map(|_| target)
}

/// `url` with one more parameter, whose value needs no escapes but for `:` and `/`.
#[must_use]
pub fn with_query(url: &str, key: &str, value: &str) -> String {
    let between = if url.contains('?') { '&' } else { '?' };
    format!("{url}{between}{key}={}", escape(value))
}

/// `text` as a parameter's value (RFC 3986, section 2.1).
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// `url` for people: its parameters, which may be secret, left out.
#[must_use]
pub fn shown(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_location_leads_where_it_says() {
        let url = "https://reg.example/v2/a/blobs/uploads/";
        for (location, target) in [
            ("https://cdn.example/x?sig=1", Some("https://cdn.example/x?sig=1")),
            ("//cdn.example/x", Some("https://cdn.example/x")),
            ("/v2/a/1?x=y#z", Some("https://reg.example/v2/a/1?x=y")),
            ("1", Some("https://reg.example/v2/a/blobs/uploads/1")),
            ("https://me:secret@reg.example/", None),
            ("http:///", None),
            ("https://a b/", None),
        ] {
            assert_eq!(resolve(url, location).as_deref(), target, "{location}");
        }
    }

    #[test]
    fn origins_differ_by_host_port_and_security() {
        let origin = |url: &str| Origin::of(url).unwrap();
        assert_eq!(origin("https://Reg.example:443/x"), origin("https://reg.example"));
        assert_ne!(origin("https://reg.example"), origin("http://reg.example"));
        assert_ne!(origin("https://reg.example"), origin("https://reg.example:444"));
        assert_ne!(origin("https://reg.example"), origin("https://reg.example.evil"));
        assert!(Origin::of("file:///etc/passwd").is_none());
    }

    #[test]
    fn parameters_are_added_and_hidden() {
        assert_eq!(with_query("http://a/x", "digest", "sha256:1"), "http://a/x?digest=sha256%3A1");
        assert_eq!(with_query("http://a/x?_state=1", "a", "b c"), "http://a/x?_state=1&a=b%20c");
        assert_eq!(shown("http://a/x?secret=1"), "http://a/x");
    }

    proptest! {
        #[test]
        fn no_location_makes_it_fall_over(location: String) {
            if let Some(target) = resolve("http://127.0.0.1:5000/v2/a/b", &location) {
                prop_assert!(Origin::of(&target).is_some());
            }
        }
    }
}
