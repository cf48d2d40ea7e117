//! `nacre images`: what the stores of sandboxes hold. The guest is asked, as it alone reads its disk; a store that no
//! sandbox has gets one for the question.

use std::collections::BTreeSet;
use std::io::IsTerminal;

use nacre_protocols::host_agent::nacre::{Image, ImageList};

use super::args::{Images, Run};
use super::error::Failure;
use super::manage::{print, table};
use super::plan::Plan;
use super::progress::{Progress, Timings, megabytes};
use super::pull::{in_sandbox, place};
use super::run::bring_up;
use super::{exit, find};
use crate::client::{Client, ClientError, printable};
use crate::images::registries::full_name;
use crate::images::shown_name;

/// Longest reference that a terminal is shown, in characters.
const REFERENCE_MAX: usize = 96;
/// Of a digest.
const DIGEST_MAX: usize = 19;

pub async fn images(args: Images) -> Result<u8, Failure> {
    let mut question = Question { prune: args.prune, forget: args.rm.clone(), found: BTreeSet::new() };
    let mut lists = Vec::new();
    if args.store.is_some() || args.within.is_some() {
        let name = args.store.clone().or_else(|| args.within.clone()).unwrap_or_default();
        // Nothing is pulled: any reference does.
        let mut run = *Run::plain("none").map_err(|problem| Failure::new("arguments", problem))?;
        place(&mut run, args.store, args.within, args.machine)?;
        let plan = Plan::new(run)?;
        let mut progress = Progress::new(true);
        let asked = in_sandbox(&plan, &mut progress, async |sandbox, progress| {
            bring_up(&plan, sandbox, progress, &mut Timings::default()).await?;
            question.ask(&sandbox.client).await
        });
        lists.push((name, asked.await?));
    } else {
        let mut asked = Vec::new();
        for target in find::all()? {
            if target.sandbox.alive && !asked.contains(&target.sandbox.name) {
                asked.push(target.sandbox.name.clone());
                let client = target.client()?;
                let name = target.record.store.clone().unwrap_or_else(|| target.sandbox.name.clone());
                lists.push((name, question.ask(&client).await?));
            }
        }
    }
    let mut rows = vec![["REFERENCE", "DIGEST", "LAYERS", "SIZE", "KEPT", "STORE"].map(str::to_owned)];
    for (name, list) in &lists {
        rows.extend(
            list.images.iter().filter_map(|stored| Some(row(name, stored.image.as_ref()?, stored.keep))),
        );
    }
    print(table(&rows))?;
    if let Some(name) = question.forget.iter().find(|name| !question.found.contains(*name)) {
        return Err(Failure::new("images", format!("there is no image {name:?}")).with_code(exit::FAILED));
    }
    for (name, list) in lists {
        let quota = if list.quota > 0 { format!(", quota {}", megabytes(list.quota)) } else { String::new() };
        let (used, free) = (megabytes(list.used), megabytes(list.free));
        eprintln!("{name}: {} layers, {used} used{quota}, {free} free", list.layers);
    }
    Ok(0)
}

struct Question {
    prune: bool,
    /// As the user names them.
    forget: Vec<String>,
    /// Which of them there were.
    found: BTreeSet<String>,
}

impl Question {
    async fn ask(&mut self, client: &Client) -> Result<ImageList, Failure> {
        let failed = |error: ClientError| Failure::new("images", error).with_code(exit::FAILED);
        let mut list = client.list_images().await.map_err(failed)?;
        let references = self.references(&list);
        if self.prune || !references.is_empty() {
            let gone = client.collect_images(references, !self.prune).await.map_err(failed)?;
            eprintln!("removed {} images, {} layers, {}", gone.images, gone.layers, megabytes(gone.bytes));
            list = client.list_images().await.map_err(failed)?;
        }
        Ok(list)
    }

    /// What the sandbox calls the images that are to go.
    fn references(&mut self, list: &ImageList) -> Vec<String> {
        let mut references = Vec::new();
        for name in &self.forget {
            let images = list.images.iter().filter_map(|stored| stored.image.as_ref());
            let before = references.len();
            references
                .extend(images.filter(|image| is_named(image, name)).map(|image| image.reference.clone()));
            if references.len() > before {
                self.found.insert(name.clone());
            }
        }
        references
    }
}

/// A reference, as short as one may write it; what `images` shows; or the digest.
fn is_named(image: &Image, name: &str) -> bool {
    let full = full_name(name);
    let is_reference = |name: &str| image.reference == name || image.reference == format!("{name}:latest");
    is_reference(name)
        || is_reference(&full)
        || shown_name(&image.reference) == name
        || image.manifest == name
}

fn row(name: &str, image: &Image, keep: bool) -> [String; 6] {
    let size = image.layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.tar));
    // A program wants all of it.
    let up_to = |max| if std::io::stdout().is_terminal() { max } else { usize::MAX };
    [
        printable(&shown_name(&image.reference), up_to(REFERENCE_MAX)),
        printable(&image.manifest, up_to(DIGEST_MAX)),
        image.layers.len().to_string(),
        megabytes(size),
        if keep { "yes" } else { "no" }.to_owned(),
        name.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_as_it_was_asked_for_or_as_it_is_shown() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let image = |reference: &str| Image {
            reference: reference.into(),
            manifest: digest.clone(),
            ..Default::default()
        };
        let served = format!("images.nacre.internal/oci/srv/app:v1@{digest}");
        for (reference, name, expected) in [
            ("docker.io/library/debian:12", "debian:12", true),
            ("docker.io/library/debian:latest", "debian", true),
            ("docker.io/library/debian:12", "debian", false),
            ("localhost:5000/a:1", "localhost:5000/a:1", true),
            ("localhost:5000/a:1", digest.as_str(), true),
            ("localhost:5000/a:1", "sha256:abab", false),
            (served.as_str(), "oci:/srv/app:v1", true),
            (served.as_str(), "oci:/srv/app", false),
        ] {
            assert_eq!(is_named(&image(reference), name), expected, "{reference} as {name}");
        }
    }
}
