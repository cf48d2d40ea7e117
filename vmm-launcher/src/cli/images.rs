//! `nacre images`: what the stores of sandboxes hold. The guest is asked, as it alone reads its disk; a store that no
//! sandbox has gets one for the question.

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

/// Longest reference that is shown, in characters.
const REFERENCE_MAX: usize = 96;
/// Of a digest.
const DIGEST_MAX: usize = 19;

pub async fn images(args: Images) -> Result<u8, Failure> {
    let question = Question { prune: args.prune, forget: args.rm.clone() };
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
    for (name, list) in lists {
        let quota = if list.quota > 0 { format!(", quota {}", megabytes(list.quota)) } else { String::new() };
        let (used, free) = (megabytes(list.used), megabytes(list.free));
        eprintln!("{name}: {} layers, {used} used{quota}, {free} free", list.layers);
    }
    Ok(0)
}

struct Question {
    prune: bool,
    forget: Vec<String>,
}

impl Question {
    async fn ask(&self, client: &Client) -> Result<ImageList, Failure> {
        let failed = |error: ClientError| Failure::new("images", error).with_code(exit::FAILED);
        if self.prune || !self.forget.is_empty() {
            let gone = client.collect_images(self.forget.clone()).await.map_err(failed)?;
            eprintln!("removed {} images, {} layers, {}", gone.images, gone.layers, megabytes(gone.bytes));
        }
        client.list_images().await.map_err(failed)
    }
}

fn row(name: &str, image: &Image, keep: bool) -> [String; 6] {
    let size = image.layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.tar));
    [
        printable(&image.reference, REFERENCE_MAX),
        printable(&image.manifest, DIGEST_MAX),
        image.layers.len().to_string(),
        megabytes(size),
        if keep { "yes" } else { "no" }.to_owned(),
        name.to_owned(),
    ]
}
