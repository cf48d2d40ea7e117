//! Archives as `docker save` writes them: `manifest.json` beside configurations and layer tars. An OCI manifest is made up
//! for the chosen image; its layers are served out of the archive as they lie there.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nacre_protocols::names::Sha256;
use serde::Deserialize;
use serde_json::json;

use super::layout::names;
use super::source::{Extent, ImageFiles, SourceError, Tree, digest_of};

const MANIFEST: &str = "manifest.json";
/// Most layers of an image.
const LAYERS_MAX: usize = 128;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// The image of the archive; `tag` as in its `RepoTags`.
pub fn open_docker_archive(file: &Path, tag: Option<&str>) -> Result<ImageFiles, SourceError> {
    let tree = Tree::open_archive(file)?;
    let images: Vec<SavedImage> = match tree.document(MANIFEST) {
        Ok(bytes) => parse(MANIFEST, &bytes)?,
        Err(SourceError::Missing { .. }) => return Err(no_manifest(&tree)),
        Err(error) => return Err(error),
    };
    serve(&tree, choose(&images, tag)?)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "null_is_empty")]
    diff_ids: Vec<String>,
}

fn no_manifest(tree: &Tree) -> SourceError {
    let problem = if tree.open("index.json").is_ok() {
        "it is an OCI layout in a tar file: use oci-archive:"
    } else if tree.open("repositories").is_ok() {
        "it is in the format of docker before 1.10, without manifest.json: load and save it again"
    } else {
        "it has no manifest.json: it is no archive of docker save"
    };
    SourceError::Malformed { path: MANIFEST.into(), problem: problem.into() }
}

fn choose<'a>(images: &'a [SavedImage], tag: Option<&str>) -> Result<&'a SavedImage, SourceError> {
    let tags = || images.iter().flat_map(|image| image.repo_tags.iter().cloned()).collect();
    match (images, tag) {
        ([], _) => Err(SourceError::Empty),
        ([only], None) => Ok(only),
        (many, None) => Err(SourceError::Ambiguous { count: many.len(), tags: tags() }),
        (many, Some(tag)) => many
            .iter()
            .find(|image| image.repo_tags.iter().any(|one| names(one, tag)))
            .ok_or_else(|| SourceError::NoSuchTag { tag: tag.to_owned(), tags: tags() }),
    }
}

fn serve(tree: &Tree, image: &SavedImage) -> Result<ImageFiles, SourceError> {
    let config_extent = tree.open(&image.config)?;
    let config_bytes = config_extent.read_document(&image.config)?;
    let config: Config = parse(&image.config, &config_bytes)?;
    let malformed = |problem: String| SourceError::Malformed { path: image.config.clone(), problem };
    if image.layers.len() != config.rootfs.diff_ids.len() || image.layers.len() > LAYERS_MAX {
        return Err(malformed(format!(
            "{} layers in {MANIFEST}, {} in the configuration, the limit is {LAYERS_MAX}",
            image.layers.len(),
            config.rootfs.diff_ids.len(),
        )));
    }
    let config_digest = digest_of(&config_bytes);
    let mut named = HashMap::from([(config_digest, config_extent)]);
    let mut layers = Vec::new();
    for (path, diff_id) in image.layers.iter().zip(&config.rootfs.diff_ids) {
        let diff_id = Sha256::parse(diff_id)
            .ok_or_else(|| malformed(format!("diff_id {diff_id:?} is no sha256 digest")))?;
        let extent = tree.open(path)?;
        let (digest, suffix) = match compression(&extent, path)? {
            // The digest of a plain layer is its diff_id. Whether that is true is for the sandbox to find out.
            None => (diff_id, ""),
            Some(suffix) => (extent.digest(path)?, suffix),
        };
        layers.push(json!({
            "mediaType": format!("{LAYER_TYPE}{suffix}"),
            "digest": format!("sha256:{digest}"),
            "size": extent.length,
        }));
        named.insert(digest, extent);
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {
            "mediaType": CONFIG_TYPE,
            "digest": format!("sha256:{config_digest}"),
            "size": config_bytes.len(),
        },
        "layers": layers,
    });
    let manifest = manifest.to_string().into_bytes();
    let root = digest_of(&manifest);
    Ok(ImageFiles { root, documents: HashMap::from([(root, manifest.into())]), named, tree: None })
}

/// Suffix of the media type for a layer that some tool has compressed inside the archive.
fn compression(extent: &Extent, path: &str) -> Result<Option<&'static str>, SourceError> {
    let mut magic = [0; 4];
    let read = extent
        .file
        .read_at(&mut magic[..extent.length.min(4) as usize], extent.offset)
        .map_err(|source| SourceError::Read { path: path.to_owned(), source })?;
    Ok(match &magic[..read] {
        [0x1f, 0x8b, ..] => Some("+gzip"),
        [0x28, 0xb5, 0x2f, 0xfd] => Some("+zstd"),
        _ => None,
    })
}

fn parse<'a, T: Deserialize<'a>>(path: &str, bytes: &'a [u8]) -> Result<T, SourceError> {
    serde_json::from_slice(bytes).map_err(|source| SourceError::Json { path: path.to_owned(), source })
}

/// Go writes an empty list as null.
fn null_is_empty<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(from)?.unwrap_or_default())
}
