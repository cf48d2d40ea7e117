//! The layer store as the host sees it: what it holds, and letting go of what nobody needs.

use crate::agent::Agent;
use crate::error::RpcError;
use crate::pulls::code;
use nacre_protocols::agent_puller::{
    COLLECT_MAX, PullFailure, PulledImage, Reply, Request, StoreCollected, StoreContents,
};
use nacre_protocols::host_agent::ttrpc::Code;
use nacre_protocols::init_launcher::StorageStep;
use nacre_protocols::names::Sha256;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Most images that one answer lists.
const IMAGES_MAX: usize = 512;

/// What the store holds.
#[derive(Debug, Default)]
pub struct Store {
    /// Each with whether it is kept; by reference.
    pub images: Vec<(PulledImage, bool)>,
    pub contents: StoreContents,
}

impl Agent {
    pub async fn list_store(self: &Rc<Self>) -> Result<Store, RpcError> {
        let mut store = Store::default();
        let take = |reply| match reply {
            Reply::Stored { image, keep, .. } => {
                if store.images.len() < IMAGES_MAX {
                    store.images.push((*image, keep));
                }
                false
            }
            Reply::Contents { contents, .. } => {
                store.contents = contents;
                true
            }
            _ => false,
        };
        self.ask_puller(|id| Request::List { id }, take).await.map_err(error)?;
        Ok(store)
    }

    /// Removes what no container uses, nobody kept, and no pull needs. What is in `forget` is not kept any more; with `only`,
    /// all other images stay.
    pub async fn collect(
        self: &Rc<Self>,
        forget: Vec<String>,
        only: bool,
    ) -> Result<StoreCollected, RpcError> {
        // No container takes a layer meanwhile.
        let _turn = self.mounting.lock().await;
        let (images, layers) = self.kept(|kept| {
            let containers = kept.containers.values();
            let images: BTreeSet<Sha256> =
                containers.clone().filter_map(|container| container.image).collect();
            let layers: BTreeSet<Sha256> =
                containers.flat_map(|container| container.layers.clone()).collect();
            (images, layers)
        });
        if layers.len() > COLLECT_MAX {
            let message =
                format!("the containers use more than {COLLECT_MAX} layers, the most of a collection");
            return Err(RpcError::new(Code::ResourceExhausted, message));
        }
        let keep: Vec<Sha256> = layers.into_iter().collect();
        self.apply(vec![StorageStep::ReleaseLayers { keep: keep.clone() }]).await?;
        let used: Vec<Sha256> = images.iter().copied().collect();
        let mut collected = StoreCollected::default();
        let request = |id| Request::Collect { id, used, layers: keep, forget, only };
        let take = |reply| match reply {
            Reply::Collected { collected: found, .. } => {
                collected = found;
                true
            }
            _ => false,
        };
        self.ask_puller(request, take).await.map_err(error)?;
        // Whatever is gone is pulled again when it is asked for; what is there costs its manifest.
        self.change(|kept| kept.images.retain(|(_, image)| images.contains(&image.described().manifest)))?;
        Ok(collected)
    }
}

fn error(failure: PullFailure) -> RpcError {
    RpcError::new(code(failure.kind), failure.message)
}
