//! What a registry asks for before it answers: `WWW-Authenticate` challenges (RFC 9110 section 11.6) and the token
//! endpoint they may point to (the Distribution project's "token" and "oauth" specifications).

use serde::Deserialize;

use super::url::{Url, UrlError};

/// Longest challenge field in bytes.
pub const CHALLENGE_BYTES_MAX: usize = 8 << 10;
/// Most challenges, and most parameters of one, that are looked at.
pub const CHALLENGE_ITEMS_MAX: usize = 32;
/// Largest answer of a token endpoint in bytes.
pub const TOKEN_REPLY_BYTES_MAX: u64 = 256 << 10;
/// Longest token in bytes: it goes into a header field.
pub const TOKEN_BYTES_MAX: usize = 64 << 10;

/// What the user knows.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    Anonymous,
    Basic {
        user: String,
        password: String,
    },
    /// An OAuth2 refresh token.
    IdentityToken(String),
}

/// One way in that a registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// Lower case.
    pub scheme: String,
    /// Names in lower case, values unquoted.
    pub parameters: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("WWW-Authenticate field is malformed at byte {0}")]
    Challenge(usize),
    #[error(
        "WWW-Authenticate field exceeds its limit of {CHALLENGE_BYTES_MAX} bytes or {CHALLENGE_ITEMS_MAX} items"
    )]
    ChallengeTooLong,
    #[error("WWW-Authenticate field offers {0:?}, neither Basic nor Bearer")]
    NoKnownScheme(String),
    #[error("WWW-Authenticate field names no realm")]
    NoRealm,
    #[error("realm of WWW-Authenticate: {0}")]
    Realm(#[from] UrlError),
    #[error("token endpoint's answer is not the JSON it should be: {0}")]
    TokenReply(String),
    #[error("token endpoint's answer has no usable token")]
    NoToken,
}

/// What to do about a 401.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    Basic,
    Bearer(TokenSource),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSource {
    pub realm: Url,
    pub service: Option<String>,
    pub scope: Option<String>,
}

impl Way {
    /// Bearer if it is offered, else Basic.
    pub fn choose(fields: &[&str]) -> Result<Self, AuthError> {
        let mut challenges = Vec::new();
        for field in fields {
            challenges.extend(parse_challenges(field)?);
        }
        if let Some(bearer) = challenges.iter().find(|challenge| challenge.scheme == "bearer") {
            let realm = bearer.get("realm").ok_or(AuthError::NoRealm)?;
            return Ok(Self::Bearer(TokenSource {
                realm: Url::parse(realm)?,
                service: bearer.get("service").map(str::to_owned),
                scope: bearer.get("scope").map(str::to_owned),
            }));
        }
        match challenges.iter().any(|challenge| challenge.scheme == "basic") {
            true => Ok(Self::Basic),
            false => {
                let offered: Vec<_> = challenges.into_iter().map(|challenge| challenge.scheme).collect();
                Err(AuthError::NoKnownScheme(crate::manifest::shorten(&offered.join(", "))))
            }
        }
    }
}

impl Challenge {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl TokenSource {
    /// The URL of the GET form: `realm?service=…&scope=…`.
    pub fn url(&self, default_scope: &str) -> Url {
        let mut target = self.realm.target.clone();
        for (name, value) in self.fields(default_scope) {
            target.push(if target.contains('?') { '&' } else { '?' });
            target.push_str(&format!("{name}={}", escape(&value)));
        }
        Url::new(self.realm.origin.clone(), target)
    }

    /// The body of the POST form, which trades an identity token for an access token.
    pub fn form(&self, default_scope: &str, refresh_token: &str) -> String {
        let fixed =
            [("grant_type", "refresh_token"), ("client_id", "nacre"), ("refresh_token", refresh_token)];
        let fixed = fixed.into_iter().map(|(name, value)| (name, value.to_owned()));
        let pairs = fixed.chain(self.fields(default_scope));
        pairs.map(|(name, value)| format!("{name}={}", escape(&value))).collect::<Vec<_>>().join("&")
    }

    fn fields(&self, default_scope: &str) -> impl Iterator<Item = (&'static str, String)> {
        let scope = self.scope.as_deref().filter(|scope| !scope.is_empty()).unwrap_or(default_scope);
        let service = self.service.clone().map(|service| ("service", service));
        service.into_iter().chain([("scope", scope.to_owned())])
    }
}

/// Reads the token out of an endpoint's answer.
pub fn parse_token(bytes: &[u8]) -> Result<String, AuthError> {
    #[derive(Deserialize)]
    struct Reply {
        token: Option<String>,
        access_token: Option<String>,
    }
    let reply: Reply =
        serde_json::from_slice(bytes).map_err(|error| AuthError::TokenReply(error.to_string()))?;
    let usable =
        |token: &String| !token.is_empty() && token.len() <= TOKEN_BYTES_MAX && is_field_value(token);
    [reply.token, reply.access_token].into_iter().flatten().find(usable).ok_or(AuthError::NoToken)
}

/// The value of an `Authorization` field.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

/// Splits a field into its challenges. Parameters and challenges are both separated by commas: what has a `=` behind
/// its first word is a parameter.
pub fn parse_challenges(field: &str) -> Result<Vec<Challenge>, AuthError> {
    if field.len() > CHALLENGE_BYTES_MAX {
        return Err(AuthError::ChallengeTooLong);
    }
    let mut cursor = Cursor { bytes: field.as_bytes(), at: 0 };
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut items = 0;
    loop {
        cursor.skip(|byte| matches!(byte, b' ' | b'\t' | b','));
        if cursor.peek().is_none() {
            return Ok(challenges);
        }
        items += 1;
        if items > CHALLENGE_ITEMS_MAX {
            return Err(AuthError::ChallengeTooLong);
        }
        let word = cursor.token()?.to_ascii_lowercase();
        let after_word = cursor.at;
        cursor.skip(|byte| matches!(byte, b' ' | b'\t'));
        match (cursor.peek(), challenges.last_mut()) {
            (Some(b'='), Some(challenge)) => {
                cursor.at += 1;
                challenge.parameters.push((word, cursor.value()?));
            }
            (Some(b'='), None) => return Err(AuthError::Challenge(cursor.at)),
            _ => {
                cursor.at = after_word;
                challenges.push(Challenge { scheme: word, parameters: Vec::new() });
                cursor.skip_token68();
            }
        }
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip(&mut self, wanted: impl Fn(u8) -> bool) -> &'a [u8] {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&byte| !wanted(byte)).unwrap_or(rest.len());
        self.at += length;
        rest.get(..length).unwrap_or_default()
    }

    fn token(&mut self) -> Result<String, AuthError> {
        match self.skip(is_token_byte) {
            b"" => Err(AuthError::Challenge(self.at)),
            word => Ok(String::from_utf8_lossy(word).into_owned()),
        }
    }

    /// What some schemes (`Negotiate`) have in place of parameters: one word to the next comma, of no use here.
    fn skip_token68(&mut self) {
        let start = self.at;
        self.skip(|byte| matches!(byte, b' ' | b'\t'));
        self.skip(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte));
        self.skip(|byte| byte == b'=');
        let padding_ends = matches!(self.peek(), None | Some(b','));
        if !padding_ends {
            self.at = start;
        }
    }

    fn value(&mut self) -> Result<String, AuthError> {
        self.skip(|byte| matches!(byte, b' ' | b'\t'));
        if self.peek() != Some(b'"') {
            return self.token();
        }
        self.at += 1;
        let mut value = Vec::new();
        loop {
            let byte = self.peek().ok_or(AuthError::Challenge(self.at))?;
            self.at += 1;
            match byte {
                b'"' => return String::from_utf8(value).map_err(|_| AuthError::Challenge(self.at)),
                b'\\' => {
                    value.push(self.peek().ok_or(AuthError::Challenge(self.at))?);
                    self.at += 1;
                }
                byte => value.push(byte),
            }
        }
    }
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether this may stand in a header field as it is.
pub fn is_field_value(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn escape(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut escaped, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
        escaped
    })
}

/// RFC 4648 section 4, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |i: usize| u32::from(chunk.get(i).copied().unwrap_or_default());
        let group = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let digit = (group >> (18 - 6 * i)) & 0x3f;
            let letter = ALPHABET.get(digit as usize).copied().unwrap_or(b'=');
            text.push(if i <= chunk.len() { letter.into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        let parameters = parameters.iter().map(|&(name, value)| (name.into(), value.into())).collect();
        Challenge { scheme: scheme.into(), parameters }
    }

    #[test]
    fn challenges_come_apart() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let hub_parameters = [
            ("realm", "https://auth.docker.io/token"),
            ("service", "registry.docker.io"),
            ("scope", "repository:a/b:pull,push"),
        ];
        for (field, expected) in [
            ("", vec![]),
            (" , ,", vec![]),
            ("Basic", vec![challenge("basic", &[])]),
            (
                r#"Basic realm="a \"quoted\" \\ one""#,
                vec![challenge("basic", &[("realm", r#"a "quoted" \ one"#)])],
            ),
            (hub, vec![challenge("bearer", &hub_parameters)]),
            ("BEARER Realm = x , SERVICE=y", vec![challenge("bearer", &[("realm", "x"), ("service", "y")])]),
            (
                r#"Negotiate, Basic realm="a", Bearer realm="b",error="invalid_token""#,
                vec![
                    challenge("negotiate", &[]),
                    challenge("basic", &[("realm", "a")]),
                    challenge("bearer", &[("realm", "b"), ("error", "invalid_token")]),
                ],
            ),
            (
                "Negotiate YWJj==, Basic realm=a",
                vec![challenge("negotiate", &[]), challenge("basic", &[("realm", "a")])],
            ),
        ] {
            assert_eq!(parse_challenges(field), Ok(expected), "{field}");
        }
    }

    #[test]
    fn malformed_challenges_are_refused() {
        let many = "a, ".repeat(CHALLENGE_ITEMS_MAX + 1);
        let long = " ".repeat(CHALLENGE_BYTES_MAX + 1);
        for field in ["=", "a=b", r#"Basic realm="x"#, r#"Basic realm="x\"#, "Basic \u{e9}", &many, &long] {
            assert!(parse_challenges(field).is_err(), "{field}");
        }
    }

    #[test]
    fn bearer_is_preferred_and_needs_a_realm() {
        let bearer =
            Way::choose(&["Basic realm=x", r#"Bearer realm="https://a/t?x=1",service="s p""#]).unwrap();
        let Way::Bearer(source) = bearer else { panic!("Basic was chosen") };
        assert_eq!(
            source.url("repository:r:pull").target,
            "/t?x=1&service=s%20p&scope=repository%3Ar%3Apull"
        );
        assert_eq!(
            source.form("r", "to+ken"),
            "grant_type=refresh_token&client_id=nacre&refresh_token=to%2Bken&service=s%20p&scope=r"
        );
        assert_eq!(Way::choose(&["Basic realm=x"]), Ok(Way::Basic));
        assert_eq!(Way::choose(&["Bearer service=x"]), Err(AuthError::NoRealm));
        assert_eq!(Way::choose(&["Digest x=y"]), Err(AuthError::NoKnownScheme("digest".into())));
        assert!(matches!(Way::choose(&["Bearer realm=\"file:///x\""]), Err(AuthError::Realm(_))));
    }

    #[test]
    fn tokens_that_would_break_a_header_are_refused() {
        for (json, token) in [
            (r#"{"token":"abc","expires_in":300}"#, Some("abc")),
            (r#"{"access_token":"abc"}"#, Some("abc")),
            (r#"{"token":"","access_token":"abc"}"#, Some("abc")),
            (r#"{"token":"a\r\nX: y"}"#, None),
            (r#"{}"#, None),
            (r#"[]"#, None),
        ] {
            assert_eq!(parse_token(json.as_bytes()).ok().as_deref(), token, "{json}");
        }
    }

    #[test]
    fn basic_is_base64_of_user_and_password() {
        for (user, password, expected) in [
            ("", "", "Basic Og=="),
            ("a", "", "Basic YTo="),
            ("a", "b", "Basic YTpi"),
            ("Aladdin", "open sesame", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        ] {
            assert_eq!(basic(user, password), expected);
        }
    }
}
