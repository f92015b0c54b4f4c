//! [`Challenge`]: how a registry wants to know who asks (RFC 9110, section 11.6.1; the distribution's token specification).

/// The longest header that is looked at, in bytes.
const MAX_HEADER: usize = 8 << 10;
/// The most parameters that a challenge may have.
const MAX_PARAMETERS: usize = 32;

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A user's name and password.
    Basic,
    /// A token that another service gives out.
    Bearer {
        /// That service's URL.
        realm: String,
        /// What the registry is called there.
        service: Option<String>,
        /// What is to be allowed.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The challenges in one `WWW-Authenticate` header, those that are of a kind that is not known left out. What cannot be read ends the list.
    #[must_use]
    pub fn parse(header: &str) -> Vec<Self> {
        let mut found = Vec::new();
        if header.len() > MAX_HEADER {
            return found;
        }
        let mut rest = Scanner(header);
        while let Some(scheme) = rest.token() {
            let parameters = rest.parameters();
            let value = |key: &str| {
                let same = |(name, _): &&(String, String)| name.eq_ignore_ascii_case(key);
                parameters.iter().find(same).map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("basic") {
                found.push(Self::Basic);
            } else if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = value("realm")
            {
                found.push(Self::Bearer { realm, service: value("service"), scope: value("scope") });
            }
            if !rest.separator() {
                break;
            }
        }
        found
    }
}

/// What is left of a header.
struct Scanner<'a>(&'a str);

impl<'a> Scanner<'a> {
    fn blanks(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t']);
    }

    /// A word; none at the end or where there is something else.
    fn token(&mut self) -> Option<&'a str> {
        self.blanks();
        let is_token = |letter: char| letter.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(letter);
        let end = self.0.find(|letter: char| !is_token(letter)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at_checked(end)?;
        self.0 = rest;
        (!token.is_empty()).then_some(token)
    }

    /// Commas, of which several may stand in a row. Whether there was one.
    fn separator(&mut self) -> bool {
        let before = self.0.len();
        self.0 = self.0.trim_start_matches([' ', '\t', ',']);
        before != self.0.len()
    }

    /// `key=value` pairs up to where another challenge begins.
    fn parameters(&mut self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        while found.len() < MAX_PARAMETERS {
            let before = self.0;
            self.separator();
            let pair = self.token().and_then(|key| {
                self.blanks();
                self.0 = self.0.strip_prefix('=')?;
                Some((key.to_owned(), self.value()?))
            });
            let Some(pair) = pair else {
                self.0 = before;
                break;
            };
            found.push(pair);
        }
        found
    }

    /// A word, or a text in quotes with escapes.
    fn value(&mut self) -> Option<String> {
        self.blanks();
        let Some(quoted) = self.0.strip_prefix('"') else {
            return self.token().map(str::to_owned);
        };
        let mut value = String::new();
        let mut letters = quoted.char_indices();
        while let Some((at, letter)) = letters.next() {
            match letter {
                '"' => {
                    self.0 = quoted.get(at.saturating_add(1)..)?;
                    return Some(value);
                }
                '\\' => value.push(letters.next()?.1),
                other => value.push(other),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        }
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let hub = r#"Bearer realm="https://auth.example/token",service="reg.example",scope="repository:library/x:pull,push""#;
        let read =
            bearer("https://auth.example/token", Some("reg.example"), Some("repository:library/x:pull,push"));
        for (header, challenges) in [
            (hub, vec![read]),
            (r#"Basic realm="a b", charset="UTF-8""#, vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (r#"Negotiate abc==, Basic realm="x""#, vec![]),
            (r#"Digest realm="x", nonce=y, Basic realm="z""#, vec![Challenge::Basic]),
            (r#"Bearer realm="a\"b" , Basic"#, vec![bearer("a\"b", None, None), Challenge::Basic]),
            (r#"Bearer service="x""#, vec![]),
            (r#"Bearer realm="open"#, vec![]),
            ("", vec![]),
            (",,", vec![]),
        ] {
            assert_eq!(Challenge::parse(header), challenges, "{header}");
        }
        assert_eq!(Challenge::parse(&format!("Basic {}", "x".repeat(MAX_HEADER))), []);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_fall_over(text: String) {
            let _ = Challenge::parse(&text);
        }

        #[test]
        fn what_is_quoted_comes_through(realm in "[ -~]{0,40}", scope in "[ -~é]{0,40}") {
            let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let header = format!(r#"Bearer realm="{}",scope="{}""#, quote(&realm), quote(&scope));
            prop_assert_eq!(Challenge::parse(&header), vec![bearer(&realm, None, Some(&scope))]);
        }
    }
}
