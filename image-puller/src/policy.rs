//! What may be pulled: a policy in the form of containers-policy.json(5).
//!
//! The scope that fits a reference best decides, and all its rules must hold. Everything fails closed: a reference that no
//! scope fits, a rule of an unknown type, a field or a name that stands twice. Rules that ask for signatures are
//! understood as far as that they cannot be fulfilled here. One type is our own: `allowDigests` lists the digests, of an
//! index or of a manifest, beyond which nothing is taken.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use crate::digest::Digest;
use crate::manifest::shorten;
use crate::reference::Reference;

/// Most scopes of a transport, rules of a scope, and digests of a rule.
pub const SCOPES_MAX: usize = 1024;
pub const RULES_MAX: usize = 16;
pub const DIGESTS_MAX: usize = 1024;
/// The transport that registries are.
const REGISTRIES: &str = "docker";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    default: Option<Vec<Rule>>,
    /// By scope.
    registries: BTreeMap<String, Vec<Rule>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    AcceptAnything,
    Reject,
    AllowDigests(Vec<Digest>),
    /// A type that is known, and cannot be fulfilled.
    Signed(String),
}

/// The rules that a reference is held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement<'a> {
    pub scope: &'a str,
    rules: &'a [Rule],
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("policy: is not the JSON it should be: {0}")]
    Json(String),
    #[error("policy: scope {scope:?} has {count} rules, not 1 to {RULES_MAX}")]
    RuleCount { scope: String, count: usize },
    #[error("policy: {count} scopes, the limit is {SCOPES_MAX}")]
    TooManyScopes { count: usize },
    #[error("policy: scope {scope:?} has a rule of the unknown type {kind:?}")]
    UnknownRule { scope: String, kind: String },
    #[error("policy: scope {scope:?} has a rule with the unknown field {field:?}")]
    UnknownField { scope: String, field: String },
    #[error("policy: scope {scope:?} has a list of {count} digests, not 1 to {DIGESTS_MAX}")]
    DigestCount { scope: String, count: usize },
    #[error("policy: scope {scope:?} lists the digest {digest:?}, which {reason}")]
    Digest { scope: String, digest: String, reason: String },
    #[error("policy: no rule is there for {0}, so it is not pulled")]
    NoRule(String),
    #[error("policy: {reference} is rejected by the rule of {scope:?}")]
    Rejected { reference: String, scope: String },
    #[error(
        "policy: {reference} needs a signature ({kind}, by the rule of {scope:?}), which cannot be checked yet"
    )]
    Signature { reference: String, scope: String, kind: String },
    #[error("policy: {reference} is {root} (manifest {manifest}), which the list of {scope:?} does not have")]
    NotListed { reference: String, scope: String, root: Digest, manifest: Digest },
}

impl Policy {
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let raw: RawPolicy =
            serde_json::from_str(text).map_err(|error| PolicyError::Json(error.to_string()))?;
        let default = raw.default.map(|rules| read_rules("default", rules)).transpose()?;
        let mut registries = BTreeMap::new();
        for (transport, Unique(scopes)) in raw.transports.unwrap_or_default().0 {
            let count = scopes.len();
            if count > SCOPES_MAX {
                return Err(PolicyError::TooManyScopes { count });
            }
            let read =
                scopes.into_iter().map(|(scope, rules)| Ok((scope.clone(), read_rules(&scope, rules)?)));
            let read: BTreeMap<_, _> = read.collect::<Result<_, PolicyError>>()?;
            // The others hold nothing that is pulled; they are read for their mistakes.
            if transport == REGISTRIES {
                registries = read;
            }
        }
        Ok(Self { default, registries })
    }

    /// Finds the rules for a reference, and refuses what no digest can make good.
    pub fn requirement(&self, reference: &Reference) -> Result<Requirement<'_>, PolicyError> {
        let found = scopes(reference).into_iter().find_map(|scope| self.registries.get_key_value(&scope));
        let requirement = match (found, &self.default) {
            (Some((scope, rules)), _) => Requirement { scope, rules },
            (None, Some(rules)) => Requirement { scope: "default", rules },
            (None, None) => return Err(PolicyError::NoRule(reference.to_string())),
        };
        let (reference, scope) = (reference.to_string(), requirement.scope.to_owned());
        for rule in requirement.rules {
            match rule {
                Rule::AcceptAnything | Rule::AllowDigests(_) => {}
                Rule::Reject => return Err(PolicyError::Rejected { reference, scope }),
                Rule::Signed(kind) => {
                    return Err(PolicyError::Signature { reference, scope, kind: kind.clone() });
                }
            }
        }
        Ok(requirement)
    }
}

impl Requirement<'_> {
    /// Judges what the reference turned out to be; gives the digest that a list had to have.
    pub fn judge(
        &self,
        reference: &Reference,
        root: Digest,
        manifest: Digest,
    ) -> Result<Option<Digest>, PolicyError> {
        let mut listed = None;
        for rule in self.rules {
            if let Rule::AllowDigests(digests) = rule {
                let found = [root, manifest].into_iter().find(|digest| digests.contains(digest));
                listed = Some(found.ok_or_else(|| PolicyError::NotListed {
                    reference: reference.to_string(),
                    scope: self.scope.to_owned(),
                    root,
                    manifest,
                })?);
            }
        }
        Ok(listed)
    }
}

/// The scopes that fit a reference, best first: itself, its repository, the namespaces above, the registry, the domains
/// above that, and the transport. With a digest its tag is only a name, and no scope.
fn scopes(reference: &Reference) -> Vec<String> {
    // Case makes no other host of it.
    let name = format!("{}/{}", reference.domain.to_ascii_lowercase(), reference.path);
    let own = match (&reference.digest, &reference.tag) {
        (Some(digest), _) => format!("{name}@{digest}"),
        (None, tag) => format!("{name}:{}", tag.as_deref().unwrap_or_default()),
    };
    let mut scopes = vec![own, name.clone()];
    let mut rest = name.as_str();
    while let Some((above, _)) = rest.rsplit_once('/') {
        scopes.push(above.to_owned());
        rest = above;
    }
    let mut domain = reference.location().host_and_port().0.to_ascii_lowercase();
    while let Some((_, above)) = domain.split_once('.') {
        scopes.push(format!("*.{above}"));
        domain = above.to_owned();
    }
    scopes.push(String::new());
    scopes
}

fn read_rules(scope: &str, rules: Vec<RawRule>) -> Result<Vec<Rule>, PolicyError> {
    if rules.is_empty() || rules.len() > RULES_MAX {
        return Err(PolicyError::RuleCount { scope: scope.to_owned(), count: rules.len() });
    }
    rules.into_iter().map(|rule| read_rule(scope, rule)).collect()
}

fn read_rule(scope: &str, rule: RawRule) -> Result<Rule, PolicyError> {
    let scope = || shorten(scope);
    let kind = match rule.kind.as_str() {
        "insecureAcceptAnything" => Rule::AcceptAnything,
        "reject" => Rule::Reject,
        "allowDigests" => Rule::AllowDigests(read_digests(&scope(), rule.digests.unwrap_or_default())?),
        // Their fields are for who can check them.
        "signedBy" | "signedBaseLayer" | "sigstoreSigned" => return Ok(Rule::Signed(rule.kind)),
        kind => return Err(PolicyError::UnknownRule { scope: scope(), kind: shorten(kind) }),
    };
    match rule.others.keys().next() {
        Some(field) => Err(PolicyError::UnknownField { scope: scope(), field: shorten(field) }),
        None => Ok(kind),
    }
}

fn read_digests(scope: &str, digests: Vec<String>) -> Result<Vec<Digest>, PolicyError> {
    if digests.is_empty() || digests.len() > DIGESTS_MAX {
        return Err(PolicyError::DigestCount { scope: scope.to_owned(), count: digests.len() });
    }
    let read = |text: &String| {
        Digest::parse(text).map_err(|error| PolicyError::Digest {
            scope: scope.to_owned(),
            digest: shorten(text),
            reason: error.to_string(),
        })
    };
    digests.iter().map(read).collect()
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    default: Option<Vec<RawRule>>,
    transports: Option<Unique<Unique<Vec<RawRule>>>>,
}

#[derive(serde::Deserialize)]
struct RawRule {
    #[serde(rename = "type")]
    kind: String,
    digests: Option<Vec<String>>,
    #[serde(flatten)]
    others: BTreeMap<String, IgnoredAny>,
}

/// An object in which no name stands twice: two readers could take different ones.
struct Unique<T>(BTreeMap<String, T>);

impl<T> Default for Unique<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, T>()? {
                    if entries.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("{:?} stands twice", shorten(&name))));
                    }
                    entries.insert(name, value);
                }
                Ok(Unique(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn judge(policy: &str, reference: &str) -> Result<Option<Digest>, PolicyError> {
        let reference = Reference::parse(reference).unwrap();
        let (root, manifest) = (Digest::parse(A).unwrap(), Digest::of(b"manifest"));
        let policy = Policy::parse(policy)?;
        policy.requirement(&reference)?.judge(&reference, root, manifest)
    }

    #[test]
    fn the_best_fitting_scope_decides() {
        let accept = r#"[{"type":"insecureAcceptAnything"}]"#;
        let reject = r#"[{"type":"reject"}]"#;
        let by_digest = format!("r.example/ns/repo@{A}");
        for (scopes, default, reference, taken) in [
            ("", accept, "busybox", true),
            ("", reject, "busybox", false),
            ("docker.io/library/busybox", reject, "busybox", true),
            ("docker.io/library/busybox:latest", reject, "busybox", true),
            ("docker.io/library/busybox:1", reject, "busybox", false),
            ("docker.io/library", reject, "busybox", true),
            ("docker.io", reject, "busybox", true),
            ("docker.i", reject, "busybox", false),
            ("docker.io/lib", reject, "busybox", false),
            ("busybox", reject, "busybox", false),
            ("*.io", reject, "busybox", true),
            ("*.example", reject, "a.r.example/x", true),
            ("*.r.example", reject, "a.r.example/x", true),
            ("*.r.example", reject, "r.example/x", false),
            ("r.example:5000", reject, "r.example:5000/x", true),
            ("r.example", reject, "r.example:5000/x", false),
            ("*.example", reject, "r.example:5000/x", true),
            (by_digest.as_str(), reject, by_digest.as_str(), true),
            ("r.example/ns/repo:1", reject, &format!("r.example/ns/repo:1@{A}"), false),
            ("[::1]:5000/x", reject, "[::1]:5000/x", true),
            ("r.example/x", reject, "R.Example/x", true),
        ] {
            let listed = match scopes {
                "" => String::new(),
                scope => {
                    format!(r#","transports":{{"docker":{{"{scope}":{accept}}},"oci":{{"":{reject}}}}}"#)
                }
            };
            let policy = format!(r#"{{"default":{default}{listed}}}"#);
            assert_eq!(judge(&policy, reference).is_ok(), taken, "{scopes} for {reference}");
        }
        let narrow = format!(r#"{{"transports":{{"docker":{{"":{accept},"r.example/ns":{reject}}}}}}}"#);
        assert!(judge(&narrow, "r.example/x").is_ok());
        assert!(matches!(judge(&narrow, "r.example/ns/x"), Err(PolicyError::Rejected { .. })));
    }

    #[test]
    fn without_a_rule_there_is_no_pull() {
        for policy in [
            "{}",
            r#"{"transports":{}}"#,
            r#"{"transports":{"docker":{}}}"#,
            r#"{"transports":{"docker":{"r.example":[{"type":"insecureAcceptAnything"}]}}}"#,
            r#"{"transports":{"oci":{"":[{"type":"insecureAcceptAnything"}]}}}"#,
        ] {
            assert!(matches!(judge(policy, "busybox"), Err(PolicyError::NoRule(_))), "{policy}");
        }
    }

    #[test]
    fn lists_of_digests_take_the_index_or_the_manifest() {
        let manifest = Digest::of(b"manifest").to_string();
        let rule = |digests: &str| format!(r#"{{"type":"allowDigests","digests":[{digests}]}}"#);
        for (rules, listed) in [
            (rule(&format!("\"{A}\"")), Some(A)),
            (rule(&format!("\"{B}\",\"{manifest}\"")), Some(manifest.as_str())),
            (rule(&format!("\"{B}\"")), None),
            (format!("{},{}", rule(&format!("\"{A}\"")), rule(&format!("\"{B}\""))), None),
            (format!(r#"{{"type":"insecureAcceptAnything"}},{}"#, rule(&format!("\"{B}\""))), None),
        ] {
            let verdict = judge(&format!(r#"{{"default":[{rules}]}}"#), "busybox");
            match listed {
                Some(digest) => assert_eq!(verdict, Ok(Some(Digest::parse(digest).unwrap())), "{rules}"),
                None => assert!(matches!(verdict, Err(PolicyError::NotListed { .. })), "{rules}"),
            }
        }
    }

    #[test]
    fn what_is_not_understood_refuses_everything() {
        let many = format!(r#"{{"default":[{}]}}"#, vec![r#"{"type":"reject"}"#; RULES_MAX + 1].join(","));
        for (policy, words) in [
            ("", "JSON"),
            ("[]", "JSON"),
            (r#"{"defaults":[]}"#, "defaults"),
            (r#"{"default":[]}"#, "0 rules"),
            (many.as_str(), "17 rules"),
            (r#"{"default":[{"type":"accept"}]}"#, "unknown type \"accept\""),
            (r#"{"default":[{}]}"#, "type"),
            (r#"{"default":[{"type":"reject","why":1}]}"#, "unknown field \"why\""),
            (r#"{"default":[{"type":"reject"}],"default":[{"type":"reject"}]}"#, "duplicate field"),
            (
                r#"{"default":[{"type":"insecureAcceptAnything"}],"transports":{"oci":{"/x":[{"type":"new"}]}}}"#,
                "\"/x\" has a rule of the unknown type \"new\"",
            ),
            (
                r#"{"transports":{"docker":{"a":[{"type":"reject"}],"a":[{"type":"insecureAcceptAnything"}]}}}"#,
                "\"a\" stands twice",
            ),
            (r#"{"transports":{"docker":{},"docker":{}}}"#, "\"docker\" stands twice"),
            (r#"{"default":[{"type":"allowDigests"}]}"#, "0 digests"),
            (r#"{"default":[{"type":"allowDigests","digests":["sha1:00"]}]}"#, "sha1"),
            (
                r#"{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}]}"#,
                "signature (signedBy",
            ),
            (r#"{"default":[{"type":"sigstoreSigned"}]}"#, "cannot be checked"),
        ] {
            let error = judge(policy, "busybox").expect_err(policy).to_string();
            assert!(error.contains(words), "{policy}: {error}");
            assert!(error.starts_with("policy: "), "{error}");
        }
        // A rule for somebody else's signature does not stand in the way.
        let elsewhere = r#"{"default":[{"type":"insecureAcceptAnything"}],
            "transports":{"docker":{"signed.example":[{"type":"signedBy","keyType":"GPGKeys"}]}}}"#;
        assert_eq!(judge(elsewhere, "busybox"), Ok(None));
        assert!(judge(elsewhere, "signed.example/x").is_err());
    }
}
