//! OCI image layouts (image-spec, "OCI Image Layout Specification"), in a directory or in a tar file.

use std::collections::HashMap;
use std::path::Path;

use nacre_protocols::names::Sha256;
use serde::Deserialize;

use super::source::{ImageFiles, SourceError, Tree, digest_of};

const INDEX: &str = "index.json";
/// `org.opencontainers.image.ref.name`: the tag, or with some tools the whole reference.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The image of a layout directory; `tag` as in its annotations, or a digest of its index.
pub fn open_oci_layout(directory: &Path, tag: Option<&str>) -> Result<ImageFiles, SourceError> {
    open(Tree::open_directory(directory)?, tag)
}

/// The same out of a tar file.
pub fn open_oci_archive(file: &Path, tag: Option<&str>) -> Result<ImageFiles, SourceError> {
    open(Tree::open_archive(file)?, tag)
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
    platform: Option<serde::de::IgnoredAny>,
}

fn open(tree: Tree, tag: Option<&str>) -> Result<ImageFiles, SourceError> {
    let bytes = tree.document(INDEX)?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|source| SourceError::Json { path: INDEX.into(), source })?;
    let mut documents = HashMap::new();
    let root = match choose(&index.manifests, tag)? {
        Choice::One(descriptor) => {
            Sha256::parse(&descriptor.digest).ok_or_else(|| SourceError::Malformed {
                path: INDEX.into(),
                problem: format!("{:?} is no sha256 digest", descriptor.digest),
            })?
        }
        Choice::WholeIndex => {
            let digest = digest_of(&bytes);
            documents.insert(digest, bytes.into());
            digest
        }
    };
    Ok(ImageFiles { root, documents, named: HashMap::new(), tree: Some(tree) })
}

enum Choice<'a> {
    One(&'a Descriptor),
    /// The index lists one image for several platforms: the sandbox chooses.
    WholeIndex,
}

fn choose<'a>(manifests: &'a [Descriptor], tag: Option<&str>) -> Result<Choice<'a>, SourceError> {
    let name = |descriptor: &'a Descriptor| descriptor.annotations.get(REF_NAME).map(String::as_str);
    let tags = || manifests.iter().filter_map(name).map(str::to_owned).collect();
    match (manifests, tag) {
        ([], _) => Err(SourceError::Empty),
        ([only], None) => Ok(Choice::One(only)),
        (many, None) if many.iter().all(|one| one.platform.is_some() && name(one).is_none()) => {
            Ok(Choice::WholeIndex)
        }
        (many, None) => Err(SourceError::Ambiguous { count: many.len(), tags: tags() }),
        (many, Some(tag)) => many
            .iter()
            .find(|one| name(one).is_some_and(|name| names(name, tag)) || one.digest == tag)
            .map(Choice::One)
            .ok_or_else(|| SourceError::NoSuchTag { tag: tag.to_owned(), tags: tags() }),
    }
}

/// True if `reference` is `tag`, or a whole reference that ends in it.
pub(super) fn names(reference: &str, tag: &str) -> bool {
    reference == tag || reference.strip_suffix(tag).is_some_and(|front| front.ends_with([':', '/']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(index: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(INDEX), index).unwrap();
        directory
    }

    fn descriptor(byte: u8, extra: &str) -> String {
        format!(r#"{{"mediaType":"x","digest":"sha256:{}","size":1{extra}}}"#, Sha256([byte; 32]))
    }

    fn tagged(byte: u8, tag: &str) -> String {
        descriptor(byte, &format!(r#","annotations":{{"{REF_NAME}":"{tag}"}}"#))
    }

    #[test]
    fn the_image_of_a_layout_is_chosen_by_its_tag() {
        let one = format!(r#"{{"manifests":[{}]}}"#, descriptor(1, ""));
        let two = format!(r#"{{"manifests":[{},{}]}}"#, tagged(1, "v1"), tagged(2, "docker.io/library/x:v2"));
        for (index, tag, expected) in [
            (&one, None, Ok(1)),
            (&one, Some("v1"), Err("no image")),
            (&two, None, Err("choose one by adding :TAG (v1, docker.io/library/x:v2)")),
            (&two, Some("v1"), Ok(1)),
            (&two, Some("v2"), Ok(2)),
            (&two, Some("2"), Err("no image")),
            (&r#"{"manifests":[]}"#.to_owned(), None, Err("no image")),
            (&r#"{"manifests":[{"digest":"md5:00"}]}"#.to_owned(), None, Err("no sha256 digest")),
            (&"[".to_owned(), None, Err("JSON")),
        ] {
            let directory = layout(index);
            match (open_oci_layout(directory.path(), tag), expected) {
                (Ok(image), Ok(byte)) => assert_eq!(image.root(), Sha256([byte; 32])),
                (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
                (found, expected) => panic!("{index} {tag:?}: {found:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn an_index_of_platforms_alone_is_served_whole() {
        let platform = r#","platform":{"os":"linux","architecture":"amd64"}"#;
        let index = format!(r#"{{"manifests":[{},{}]}}"#, descriptor(1, platform), descriptor(2, platform));
        let directory = layout(&index);
        let image = open_oci_layout(directory.path(), None).unwrap();
        assert_eq!(image.root(), digest_of(index.as_bytes()));
        assert!(image.blob(&image.root()).is_ok());
    }
}
