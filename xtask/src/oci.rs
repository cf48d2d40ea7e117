//! Making an OCI image layout (image-spec 1.1) without any tool: for the demo and for whoever needs a small image.
//!
//! The same input gives the same bytes: no times, no owners of this machine.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cache::hex;

/// A layer in the making: a tar archive of what is added, owned by root, dated 1970.
pub struct Layer {
    tar: tar::Builder<Vec<u8>>,
}

impl Layer {
    pub fn new() -> Self {
        Self { tar: tar::Builder::new(Vec::new()) }
    }

    pub fn directory(&mut self, path: &str, mode: u32) -> anyhow::Result<()> {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        self.tar
            .append_data(&mut header, path, std::io::empty())
            .with_context(|| format!("cannot add {path}"))
    }

    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> anyhow::Result<()> {
        let mut header = header(tar::EntryType::Regular, mode, content.len() as u64);
        self.tar.append_data(&mut header, path, content).with_context(|| format!("cannot add {path}"))
    }

    pub fn hard_link(&mut self, path: &str, target: &str) -> anyhow::Result<()> {
        let mut header = header(tar::EntryType::Link, 0o755, 0);
        self.tar.append_link(&mut header, path, target).with_context(|| format!("cannot add {path}"))
    }

    pub fn finish(self) -> anyhow::Result<Vec<u8>> {
        self.tar.into_inner().context("cannot end the layer")
    }
}

/// What a container of the image does when it is told nothing else.
pub struct Defaults<'a> {
    pub command: &'a [&'a str],
    pub environment: &'a [&'a str],
}

/// Writes an image of gzip-compressed layers into `folder` under `tag`; returns the digest of its manifest.
pub fn write(folder: &Path, tag: &str, layers: &[Vec<u8>], defaults: &Defaults) -> anyhow::Result<String> {
    let blobs = Blobs::at(folder)?;
    let mut packed = Vec::new();
    for layer in layers {
        let bytes = gzip(layer).context("cannot compress a layer")?;
        let descriptor = blobs.put("application/vnd.oci.image.layer.v1.tar+gzip", &bytes)?;
        packed.push(PackedLayer { descriptor, diff_id: digest(layer) });
    }
    blobs.write_image(folder, tag, &packed, defaults)
}

/// A layer whose blob is in the layout already.
pub struct PackedLayer {
    pub descriptor: Value,
    pub diff_id: String,
}

/// The blobs of a layout.
pub struct Blobs {
    folder: PathBuf,
}

impl Blobs {
    /// The blobs of the layout at `folder`, which is made if it is not there.
    pub fn at(folder: &Path) -> anyhow::Result<Self> {
        let blobs = Self { folder: folder.join("blobs/sha256") };
        fs::create_dir_all(&blobs.folder)
            .with_context(|| format!("cannot make {}", blobs.folder.display()))?;
        Ok(blobs)
    }

    /// Moves a file in; `digest` are the 64 digits of its SHA-256.
    pub fn take(&self, media_type: &str, file: &Path, digest: &str) -> anyhow::Result<Value> {
        let size = fs::metadata(file).with_context(|| format!("cannot look at {}", file.display()))?.len();
        fs::rename(file, self.folder.join(digest))
            .with_context(|| format!("cannot move {}", file.display()))?;
        Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size }))
    }

    /// Writes what leads to these layers, and names it by `tag`; returns the digest of the manifest.
    pub fn write_image(
        &self,
        folder: &Path,
        tag: &str,
        layers: &[PackedLayer],
        defaults: &Defaults,
    ) -> anyhow::Result<String> {
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let descriptors: Vec<&Value> = layers.iter().map(|layer| &layer.descriptor).collect();
        let config = self.put_json(
            "application/vnd.oci.image.config.v1+json",
            &json!({
                "architecture": "amd64",
                "os": "linux",
                "config": { "Cmd": defaults.command, "Env": defaults.environment },
                "rootfs": { "type": "layers", "diff_ids": diff_ids },
            }),
        )?;
        const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
        let mut manifest = self.put_json(
            MANIFEST,
            &json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": descriptors }),
        )?;
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [manifest],
        });
        write_file(&folder.join("index.json"), index.to_string().as_bytes())?;
        write_file(&folder.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(digest)
    }

    /// Stores a blob under its digest and describes it.
    fn put(&self, media_type: &str, bytes: &[u8]) -> anyhow::Result<Value> {
        write_file(&self.folder.join(hex(&Sha256::digest(bytes))), bytes)?;
        Ok(json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() }))
    }

    fn put_json(&self, media_type: &str, value: &Value) -> anyhow::Result<Value> {
        self.put(media_type, value.to_string().as_bytes())
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn write_file(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn read_json(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    /// The blob that a descriptor names, after its size and digest were checked.
    fn blob(folder: &Path, descriptor: &Value) -> Vec<u8> {
        let name = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let bytes = fs::read(folder.join("blobs/sha256").join(name)).unwrap();
        assert_eq!(hex(&Sha256::digest(&bytes)), name);
        assert_eq!(descriptor["size"], bytes.len());
        bytes
    }

    #[test]
    fn every_digest_on_the_way_from_the_tag_to_the_files_is_right() {
        let folder = tempfile::tempdir().unwrap();
        let mut layer = Layer::new();
        layer.directory("bin/", 0o755).unwrap();
        layer.file("bin/program", 0o755, b"text").unwrap();
        layer.hard_link("bin/other", "bin/program").unwrap();
        let defaults = Defaults { command: &["/bin/program"], environment: &["A=b"] };
        let digest = write(folder.path(), "latest", &[layer.finish().unwrap()], &defaults).unwrap();

        assert_eq!(read_json(&folder.path().join("oci-layout"))["imageLayoutVersion"], "1.0.0");
        let descriptor = read_json(&folder.path().join("index.json"))["manifests"][0].clone();
        assert_eq!(descriptor["digest"], digest);
        assert_eq!(descriptor["annotations"]["org.opencontainers.image.ref.name"], "latest");
        let manifest: Value = serde_json::from_slice(&blob(folder.path(), &descriptor)).unwrap();
        let config: Value = serde_json::from_slice(&blob(folder.path(), &manifest["config"])).unwrap();
        let mut tar = Vec::new();
        let compressed = blob(folder.path(), &manifest["layers"][0]);
        flate2::read::GzDecoder::new(&compressed[..]).read_to_end(&mut tar).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], super::digest(&tar));
        assert_eq!(config["config"]["Cmd"][0], "/bin/program");
        let names: Vec<String> = tar::Archive::new(&tar[..])
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["bin/", "bin/program", "bin/other"]);
    }
}
