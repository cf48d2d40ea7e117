//! What the sandbox calls an image of this host's files: always the same for the same files, so that it is one image there
//! however often it is used. Where it is really asked for is another name, which no one else in the sandbox can guess.

use std::path::Path;

use nacre_protocols::names::Sha256;
use nacre_reference::{PATH_BYTES_MAX, Reference};

use super::ImageSource;

/// Whom the sandbox asks for them, and the first part of their names.
pub const IMAGE_HOST: &str = "images.nacre.internal";

/// `HOST/KIND/PATH[:TAG]@DIGEST`; `None` for an image of a registry. What a repository's name cannot have of the path becomes
/// a dash.
pub fn sandbox_name(source: &ImageSource, root: Sha256) -> Option<String> {
    let (kind, path, tag) = match source {
        ImageSource::Registry(_) => return None,
        ImageSource::OciLayout { directory, tag } => ("oci", directory, tag),
        ImageSource::OciArchive { file, tag } => ("oci-archive", file, tag),
        ImageSource::DockerArchive { file, tag } => ("docker-archive", file, tag),
    };
    let name = format!("{IMAGE_HOST}/{kind}{}", repository(path, PATH_BYTES_MAX - kind.len()));
    let tagged = tag.as_ref().map(|tag| format!("{name}:{tag}@sha256:{root}"));
    // A tag may be a whole reference, which has no place behind a name.
    let tagged = tagged.filter(|text| Reference::parse(text).is_ok());
    Some(tagged.unwrap_or_else(|| format!("{name}@sha256:{root}")))
}

/// As a person knows it: `oci:PATH[:TAG]` for such a name, any other as it is.
pub fn shown_name(reference: &str) -> String {
    let own = reference.strip_prefix(IMAGE_HOST).and_then(|rest| rest.strip_prefix('/'));
    let parts = own.and_then(|rest| rest.split('@').next()?.split_once('/'));
    match parts {
        Some((kind @ ("oci" | "oci-archive" | "docker-archive"), path)) => format!("{kind}:/{path}"),
        _ => reference.to_owned(),
    }
}

/// Each part of the path as a part of a repository's name, the last ones if there are too many; with a slash before each.
fn repository(path: &Path, bytes_max: usize) -> String {
    let parts = path.iter().map(|part| component(&part.to_string_lossy())).filter(|part| !part.is_empty());
    let mut name = String::new();
    for part in parts.collect::<Vec<_>>().into_iter().rev() {
        if name.len() + 1 + part.len() > bytes_max {
            break;
        }
        name.insert_str(0, &format!("/{part}"));
    }
    if name.is_empty() { "/image".to_owned() } else { name }
}

/// Runs of letters and digits; what stands between two of them stays if it may.
fn component(text: &str) -> String {
    let text = text.to_ascii_lowercase();
    let plain = |byte: char| byte.is_ascii_alphanumeric();
    let mut name = String::new();
    let mut rest = text.trim_matches(|byte| !plain(byte));
    while !rest.is_empty() {
        let word = rest.find(|byte| !plain(byte)).unwrap_or(rest.len());
        let between = rest[word..].find(plain).map_or(rest.len(), |length| word + length);
        let separator = &rest[word..between];
        name.push_str(&rest[..word]);
        let stays = matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-');
        name.push_str(if stays { separator } else { "-" });
        rest = &rest[between..];
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_this_host_have_one_name_in_every_sandbox() {
        let deep = format!("/{}/last", "d".repeat(300));
        for (source, name, shown) in [
            ("oci:/srv/app:v1", "oci/srv/app:v1", "oci:/srv/app:v1"),
            ("oci:/srv/app", "oci/srv/app", "oci:/srv/app"),
            ("oci-archive:/a/b__c.tar", "oci-archive/a/b__c.tar", "oci-archive:/a/b__c.tar"),
            (
                "docker-archive:/My Files/x..y_/é.tar",
                "docker-archive/my-files/x-y/tar",
                "docker-archive:/my-files/x-y/tar",
            ),
            ("oci:/:x", "oci/image:x", "oci:/image:x"),
            ("oci:/-/..", "oci/image", "oci:/image"),
            (&format!("oci:{deep}"), "oci/last", "oci:/last"),
        ] {
            let source = ImageSource::parse(source).unwrap();
            let root = Sha256([7; 32]);
            let found = sandbox_name(&source, root).unwrap();
            assert_eq!(found, format!("{IMAGE_HOST}/{name}@sha256:{root}"));
            assert!(Reference::parse(&found).is_ok(), "{found}");
            assert_eq!(shown_name(&found), shown);
        }
        let whole = ImageSource::OciLayout { directory: "/a".into(), tag: Some("docker.io/x:1".into()) };
        assert!(
            sandbox_name(&whole, Sha256([7; 32])).unwrap().starts_with("images.nacre.internal/oci/a@sha256:")
        );
        assert_eq!(sandbox_name(&ImageSource::Registry("debian".into()), Sha256([7; 32])), None);
        assert_eq!(shown_name("docker.io/library/debian:12"), "docker.io/library/debian:12");
    }
}
