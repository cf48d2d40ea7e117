//! Manifests and indexes: OCI image specification 1.1 (manifest.md, image-index.md) and Docker's schema 2.
//!
//! What a document *is* follows from its structure, and every media type that is stated must agree with that, so
//! that no two readers can take the same bytes for two different images (CVE-2021-41190).

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use crate::digest::{Digest, DigestError};

/// Largest manifest or index in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Largest image config in bytes.
pub const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// Most layers of an image.
pub const LAYERS_MAX: usize = 128;
/// Most manifests of an index.
pub const INDEX_ENTRIES_MAX: usize = 1024;
/// Most annotations of a manifest that are kept, and most bytes of all of them together.
pub const ANNOTATIONS_MAX: usize = 256;
pub const ANNOTATIONS_BYTES_MAX: usize = 32 << 10;
/// Most addresses that a layer may name besides its registry.
pub const LAYER_URLS_MAX: usize = 8;
/// Largest compressed layer in bytes (1 TiB): nothing real is larger, and sums of sizes cannot overflow.
pub const LAYER_BYTES_MAX: u64 = 1 << 40;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What a request for a manifest says it accepts.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    Image(ImageManifest),
    Index(Index),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    pub config: Descriptor,
    /// Lowest first.
    pub layers: Vec<Layer>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    pub blob: Descriptor,
    pub compression: Compression,
    /// Where it may be had if its registry does not have it: for layers that may not be distributed.
    pub urls: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    pub entries: Vec<IndexEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    pub manifest: Descriptor,
    pub platform: Option<Platform>,
    /// It says of itself that it is no image.
    pub is_artifact: bool,
}

/// An operating system and a processor, in Go's words as images state them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    /// Empty if not stated.
    pub variant: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("is not the JSON it should be: {0}")]
    Json(String),
    #[error(
        "is of Docker schema 1, which is obsolete and cannot be verified; push the image again with a current tool"
    )]
    Schema1,
    #[error("has schemaVersion {0}, not 2")]
    SchemaVersion(u64),
    #[error("has both the fields of an index and of an image")]
    Ambiguous,
    #[error("has neither 'config' and 'layers' nor 'manifests'")]
    Neither,
    #[error("is served or marked as {0:?}, which its content is not")]
    MediaType(String),
    #[error("is an artifact ({0}), not a container image")]
    Artifact(String),
    #[error(
        "is attached to {0} (field subject), as signatures and attestations are, and no container image itself"
    )]
    Attached(String),
    #[error("field {field}: digest {error}")]
    Digest { field: String, error: DigestError },
    #[error("field {field}: size {size} is outside 0 to {limit} bytes")]
    Size { field: String, size: i64, limit: u64 },
    #[error("has {count} {what}, the limit is {limit}")]
    TooMany { what: &'static str, count: usize, limit: usize },
    #[error("field {field}: media type {media_type:?} is not a layer this can read{hint}")]
    LayerType { field: String, media_type: String, hint: &'static str },
}

impl Document {
    /// Reads a manifest or an index. `content_type` is what it was served as; types that say nothing of manifests
    /// (`application/json`, `text/plain`) are let pass, because registries use them.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        let raw: RawDocument =
            serde_json::from_slice(bytes).map_err(|error| ManifestError::Json(error.to_string()))?;
        match raw.schema_version {
            Some(2) | None => {}
            Some(1) => return Err(ManifestError::Schema1),
            Some(version) => return Err(ManifestError::SchemaVersion(version)),
        }
        if let Some(subject) = raw.subject {
            return Err(ManifestError::Attached(shorten(&subject.digest)));
        }
        match raw {
            RawDocument { fs_layers: Some(_), .. } => Err(ManifestError::Schema1),
            RawDocument { manifests: Some(_), layers: Some(_), .. }
            | RawDocument { manifests: Some(_), config: Some(_), .. } => Err(ManifestError::Ambiguous),
            RawDocument { manifests: Some(entries), media_type, artifact_type, .. } => {
                check_types(&media_type, content_type, &[OCI_INDEX, DOCKER_INDEX])?;
                refuse_artifact(artifact_type.as_deref())?;
                Ok(Self::Index(Index::from_raw(entries)?))
            }
            RawDocument { config: Some(config), layers, media_type, artifact_type, annotations, .. } => {
                check_types(&media_type, content_type, &[OCI_MANIFEST, DOCKER_MANIFEST])?;
                let layers = layers.unwrap_or_default();
                let annotations = annotations.unwrap_or_default();
                Ok(Self::Image(ImageManifest::from_raw(config, layers, artifact_type, annotations)?))
            }
            RawDocument { blobs: Some(_), artifact_type, .. } => {
                Err(ManifestError::Artifact(shorten(&artifact_type.unwrap_or_default())))
            }
            _ => Err(ManifestError::Neither),
        }
    }
}

impl ImageManifest {
    fn from_raw(
        config: RawDescriptor,
        layers: Vec<RawDescriptor>,
        artifact_type: Option<String>,
        annotations: BTreeMap<String, String>,
    ) -> Result<Self, ManifestError> {
        let config_type = config.media_type.as_deref().unwrap_or_default();
        if !matches!(config_type, OCI_CONFIG | DOCKER_CONFIG) {
            return Err(ManifestError::Artifact(shorten(artifact_type.as_deref().unwrap_or(config_type))));
        }
        refuse_artifact(artifact_type.as_deref())?;
        let bytes = annotations.iter().map(|(name, value)| name.len() + value.len()).sum();
        for (what, count, limit) in [
            ("layers", layers.len(), LAYERS_MAX),
            ("annotations", annotations.len(), ANNOTATIONS_MAX),
            ("bytes of annotations", bytes, ANNOTATIONS_BYTES_MAX),
        ] {
            if count > limit {
                return Err(ManifestError::TooMany { what, count, limit });
            }
        }
        let layers = layers.iter().enumerate().map(|(i, raw)| {
            let field = format!("layers[{i}]");
            let blob = raw.check(&field, LAYER_BYTES_MAX)?;
            let compression = layer_compression(&field, raw)?;
            Ok(Layer { blob, compression, urls: layer_urls(raw)? })
        });
        Ok(Self {
            config: config.check("config", CONFIG_BYTES_MAX)?,
            layers: layers.collect::<Result<_, _>>()?,
            annotations,
        })
    }
}

impl Index {
    fn from_raw(entries: Vec<RawDescriptor>) -> Result<Self, ManifestError> {
        if entries.len() > INDEX_ENTRIES_MAX {
            let count = entries.len();
            return Err(ManifestError::TooMany { what: "manifests", count, limit: INDEX_ENTRIES_MAX });
        }
        let entries = entries.into_iter().enumerate().map(|(i, raw)| {
            let manifest = raw.check(&format!("manifests[{i}]"), MANIFEST_BYTES_MAX)?;
            // Such as a signature, which may well state the platform of what it signs.
            let is_artifact = raw.artifact_type.is_some_and(|kind| !kind.is_empty());
            Ok(IndexEntry { manifest, platform: raw.platform.map(Platform::from), is_artifact })
        });
        Ok(Self { entries: entries.collect::<Result<_, _>>()? })
    }

    /// The entry for this platform: the best variant that fits, else the only entry if that one states no platform.
    pub fn choose(&self, wanted: &Platform) -> Option<&IndexEntry> {
        let images = || self.entries.iter().filter(|entry| !entry.is_artifact);
        let fitting = images().filter_map(|entry| {
            let fit = entry.platform.as_ref()?.fits(wanted)?;
            Some((fit, entry))
        });
        // The first of several equal ones: max_by_key would take the last.
        let best = fitting.reduce(|best, next| if next.0 > best.0 { next } else { best });
        let mut all = images();
        best.map(|(_, entry)| entry).or(match (all.next(), all.next()) {
            (Some(only), None) if only.platform.is_none() => Some(only),
            _ => None,
        })
    }

    /// What there is, for the message that it is not the wanted one.
    pub fn platforms(&self) -> String {
        const SHOWN_MAX: usize = 20;
        let stated: Vec<String> = self
            .entries
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            // What build tools attach (attestations) is marked so.
            .filter(|platform| platform.os != "unknown")
            .take(SHOWN_MAX)
            .map(|platform| shorten(&platform.to_string()))
            .collect();
        if stated.is_empty() { "no platform".into() } else { stated.join(", ") }
    }
}

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: String::new() }
    }

    /// How well an image of this platform serves the wanted one; `None` if it does not.
    fn fits(&self, wanted: &Platform) -> Option<u8> {
        if self.os != wanted.os || self.architecture != wanted.architecture {
            return None;
        }
        let baseline = |platform: &Platform| match (platform.architecture.as_str(), platform.variant.as_str())
        {
            ("amd64", "") => "v1".to_owned(),
            ("arm64", "") => "v8".to_owned(),
            ("arm", "") => "v7".to_owned(),
            (_, variant) => variant.to_owned(),
        };
        let (mine, theirs) = (baseline(self), baseline(wanted));
        match mine == theirs {
            true => Some(u8::MAX),
            // `v2` runs where `v3` was asked for, never the other way; nearer is better.
            false => (version(&mine)? < version(&theirs)?).then(|| version(&mine)).flatten(),
        }
    }

    /// Whether a config of this platform may run where `wanted` was asked for.
    pub fn serves(&self, wanted: &Platform) -> bool {
        self.fits(wanted).is_some()
    }
}

fn version(variant: &str) -> Option<u8> {
    variant.strip_prefix('v')?.parse().ok()
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

fn check_types(
    stated: &Option<String>,
    served: Option<&str>,
    expected: &[&str; 2],
) -> Result<(), ManifestError> {
    if let Some(stated) = stated.as_deref().filter(|stated| !stated.is_empty())
        && !expected.contains(&stated)
    {
        return Err(ManifestError::MediaType(shorten(stated)));
    }
    let served = served.map(|value| value.split(';').next().unwrap_or_default().trim());
    match served {
        Some(OCI_INDEX | OCI_MANIFEST | DOCKER_INDEX | DOCKER_MANIFEST)
            if !served.is_some_and(|served| expected.contains(&served)) =>
        {
            Err(ManifestError::MediaType(served.map(shorten).unwrap_or_default()))
        }
        _ => Ok(()),
    }
}

/// A manifest that says what kind of artifact it is is none of a container image, whatever its config.
fn refuse_artifact(artifact_type: Option<&str>) -> Result<(), ManifestError> {
    match artifact_type {
        None | Some("" | OCI_CONFIG | DOCKER_CONFIG) => Ok(()),
        Some(other) => Err(ManifestError::Artifact(shorten(other))),
    }
}

/// Other layers may name addresses too; those say nothing that their registry does not have.
fn layer_urls(raw: &RawDescriptor) -> Result<Vec<String>, ManifestError> {
    let media_type = raw.media_type.as_deref().unwrap_or_default();
    let elsewhere = media_type.contains("nondistributable") || media_type.contains(".foreign.");
    match &raw.urls {
        Some(urls) if elsewhere && urls.len() > LAYER_URLS_MAX => Err(ManifestError::TooMany {
            what: "addresses of a layer",
            count: urls.len(),
            limit: LAYER_URLS_MAX,
        }),
        Some(urls) if elsewhere => Ok(urls.clone()),
        _ => Ok(Vec::new()),
    }
}

fn layer_compression(field: &str, raw: &RawDescriptor) -> Result<Compression, ManifestError> {
    let media_type = raw.media_type.as_deref().unwrap_or_default();
    match media_type {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Compression::None),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(Compression::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Compression::Zstd),
        _ => {
            let hint = match media_type.ends_with("+encrypted") {
                true => ": encrypted layers are not supported",
                false => "",
            };
            Err(ManifestError::LayerType { field: field.to_owned(), media_type: shorten(media_type), hint })
        }
    }
}

/// Foreign text as it may stand in a message: printable, and short.
pub fn shorten(text: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 160;
    shorten_to(text, SHOWN_CHARS_MAX)
}

/// The same, with another limit in characters.
pub fn shorten_to(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    subject: Option<RawSubject>,
    annotations: Option<BTreeMap<String, String>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    blobs: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: Option<String>,
    digest: String,
    size: i64,
    platform: Option<RawPlatform>,
    urls: Option<Vec<String>>,
    artifact_type: Option<String>,
}

#[derive(Deserialize)]
struct RawSubject {
    #[serde(default)]
    digest: String,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl RawDescriptor {
    fn check(&self, field: &str, limit: u64) -> Result<Descriptor, ManifestError> {
        let digest = Digest::parse(&self.digest)
            .map_err(|error| ManifestError::Digest { field: field.to_owned(), error })?;
        match u64::try_from(self.size) {
            Ok(size) if size <= limit => Ok(Descriptor { digest, size }),
            _ => Err(ManifestError::Size { field: field.to_owned(), size: self.size, limit }),
        }
    }
}

impl From<RawPlatform> for Platform {
    fn from(raw: RawPlatform) -> Self {
        Self { os: raw.os, architecture: raw.architecture, variant: raw.variant.unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn image(layer_type: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}",
            "config":{{"mediaType":"{OCI_CONFIG}","digest":"{D}","size":7}},
            "layers":[{{"mediaType":"{layer_type}","digest":"{D}","size":9,"annotations":{{"a":"b"}}}}]}}"#
        )
    }

    fn index(platforms: &[&str]) -> Index {
        let entries: Vec<String> = platforms
            .iter()
            .map(|platform| {
                let platform = match platform.split('/').collect::<Vec<_>>()[..] {
                    [os, arch] => format!(r#","platform":{{"os":"{os}","architecture":"{arch}"}}"#),
                    [os, arch, v] => {
                        format!(r#","platform":{{"os":"{os}","architecture":"{arch}","variant":"{v}"}}"#)
                    }
                    _ => String::new(),
                };
                format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{D}","size":9{platform}}}"#)
            })
            .collect();
        let json = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        match Document::parse(json.as_bytes(), Some(OCI_INDEX)).unwrap() {
            Document::Index(index) => index,
            Document::Image(_) => panic!("an index was taken for an image"),
        }
    }

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform { os: next(), architecture: next(), variant: next() }
    }

    #[test]
    fn layer_types_say_the_compression() {
        for (media_type, compression) in [
            ("application/vnd.oci.image.layer.v1.tar", Compression::None),
            ("application/vnd.oci.image.layer.v1.tar+gzip", Compression::Gzip),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Compression::Zstd),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression::Gzip),
        ] {
            let document = Document::parse(image(media_type).as_bytes(), Some(OCI_MANIFEST)).unwrap();
            let blob = |size| Descriptor { digest: Digest::of(b""), size };
            let layers = vec![Layer { blob: blob(9), compression, urls: vec![] }];
            let annotations = BTreeMap::new();
            assert_eq!(document, Document::Image(ImageManifest { config: blob(7), layers, annotations }));
        }
    }

    #[test]
    fn what_is_no_image_is_refused_with_its_reason() {
        let good = image("application/vnd.oci.image.layer.v1.tar");
        let big = good.replace(r#""size":7"#, r#""size":8388609"#);
        let negative = good.replace(r#""size":9"#, r#""size":-1"#);
        let both = good.replace(r#""schemaVersion":2"#, r#""schemaVersion":2,"manifests":[]"#);
        let mislabelled = good.replace(OCI_MANIFEST, OCI_INDEX);
        let twice = good.replace(r#""schemaVersion":2"#, r#""schemaVersion":2,"schemaVersion":2"#);
        let encrypted = image("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
        let artifact = good.replace(OCI_CONFIG, "application/vnd.cncf.helm.config.v1+json");
        let with =
            |field: &str| good.replace(r#""schemaVersion":2"#, &format!(r#""schemaVersion":2,{field}"#));
        let attached =
            with(&format!(r#""subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{D}","size":7}}"#));
        let attestation = with(r#""artifactType":"application/vnd.in-toto+json""#);
        let signature_index = r#"{"schemaVersion":2,"manifests":[],"artifactType":"a/signature"}"#.to_owned();
        let pairs: Vec<_> = (0..=ANNOTATIONS_MAX).map(|at| format!(r#""{at}":"""#)).collect();
        let annotated = with(&format!(r#""annotations":{{{}}}"#, pairs.join(",")));
        let verbose = with(&format!(r#""annotations":{{"a":"{}"}}"#, "b".repeat(ANNOTATIONS_BYTES_MAX)));
        let scattered = image("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
            .replace(r#""size":9"#, &format!(r#""size":9,"urls":[{}]"#, [r#""u""#; 9].join(",")));
        let weak = good.replace(D, "md5:00");
        let many = format!(
            r#"{{"config":{{"mediaType":"{OCI_CONFIG}","digest":"{D}","size":7}},"layers":[{}]}}"#,
            vec![format!(r#"{{"digest":"{D}","size":1}}"#); 129].join(",")
        );
        for (json, reason) in [
            ("", "JSON"),
            ("[]", "JSON"),
            ("{}", "neither"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1"),
            (r#"{"schemaVersion":3}"#, "schemaVersion 3"),
            (r#"{"blobs":[],"artifactType":"a/b"}"#, "artifact (a/b)"),
            (&big, "config: size 8388609"),
            (&negative, "layers[0]: size -1"),
            (&both, "both"),
            (&mislabelled, "marked as"),
            (&twice, "duplicate field"),
            (&encrypted, "encrypted layers are not supported"),
            (&artifact, "helm"),
            (&attached, "attached to sha256:e3b0"),
            (&attestation, "artifact (application/vnd.in-toto+json)"),
            (&signature_index, "artifact (a/signature)"),
            (&annotated, "257 annotations, the limit is 256"),
            (&verbose, "bytes of annotations, the limit is 32768"),
            (&scattered, "9 addresses of a layer, the limit is 8"),
            (&weak, "digest uses the algorithm \"md5\""),
            (&many, "129 layers, the limit is 128"),
        ] {
            let error = Document::parse(json.as_bytes(), None).expect_err(json).to_string();
            assert!(error.contains(reason), "{json}: {error}");
        }
        let served_as_index =
            Document::parse(good.as_bytes(), Some("application/vnd.oci.image.index.v1+json; x"));
        assert!(matches!(served_as_index, Err(ManifestError::MediaType(_))));
        for lazy in [None, Some("application/json"), Some("text/plain; charset=utf-8")] {
            assert!(Document::parse(good.as_bytes(), lazy).is_ok(), "{lazy:?}");
        }
    }

    #[test]
    fn annotations_and_addresses_are_kept() {
        let foreign = image("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")
            .replace(r#""size":9"#, r#""size":9,"urls":["https://a/b"]"#)
            .replace(r#""schemaVersion":2"#, r#""schemaVersion":2,"annotations":{"b":"c","a":""}"#);
        let Ok(Document::Image(image)) = Document::parse(foreign.as_bytes(), None) else {
            panic!("no image")
        };
        assert_eq!(image.layers[0].urls, ["https://a/b"]);
        assert_eq!(
            image.annotations.into_iter().collect::<Vec<_>>(),
            [("a".into(), String::new()), ("b".into(), "c".into())]
        );
        let ordinary = foreign.replace("nondistributable.", "");
        let Ok(Document::Image(image)) = Document::parse(ordinary.as_bytes(), None) else {
            panic!("no image")
        };
        assert!(image.layers[0].urls.is_empty(), "its registry has it");
    }

    #[test]
    fn what_hangs_on_an_image_is_not_chosen_in_its_place() {
        let entry = |extra: &str| {
            format!(
                r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{D}","size":9,
                "platform":{{"os":"linux","architecture":"amd64"}}{extra}}}"#
            )
        };
        let signature = entry(r#","artifactType":"a/signature""#);
        let json = format!(r#"{{"schemaVersion":2,"manifests":[{signature},{}]}}"#, entry(""));
        let Ok(Document::Index(index)) = Document::parse(json.as_bytes(), None) else { panic!("no index") };
        let chosen = index.choose(&platform("linux/amd64"));
        assert!(chosen.is_some_and(|chosen| std::ptr::eq(chosen, &index.entries[1])));
    }

    #[test]
    fn the_nearest_platform_is_chosen() {
        for (there, wanted, chosen) in [
            (&["linux/arm64/v8", "linux/amd64", "windows/amd64"][..], "linux/amd64", Some(1)),
            (&["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"], "linux/amd64", Some(2)),
            (&["linux/amd64", "linux/amd64"], "linux/amd64", Some(0)),
            (&["linux/amd64/v4", "linux/amd64", "linux/amd64/v2"], "linux/amd64/v3", Some(2)),
            (&["linux/arm64"], "linux/arm64/v8", Some(0)),
            (&["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7", Some(1)),
            (&["linux/amd64/v3"], "linux/amd64", None),
            (&["linux/s390x", "unknown/unknown"], "linux/amd64", None),
            (&[""], "linux/amd64", Some(0)),
            (&["", ""], "linux/amd64", None),
            (&[], "linux/amd64", None),
        ] {
            let index = index(there);
            let got = index
                .choose(&platform(wanted))
                .map(|entry| index.entries.iter().position(|other| std::ptr::eq(other, entry)).unwrap());
            assert_eq!(got, chosen, "{there:?} for {wanted}");
        }
        assert_eq!(
            index(&["linux/s390x", "unknown/unknown", "linux/arm/v7"]).platforms(),
            "linux/s390x, linux/arm/v7"
        );
    }
}
