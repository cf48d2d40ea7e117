//! Containers.

use super::{Context, Outcome, method, reply};
use crate::error::RpcError;
use crate::state::digest;
use nacre_protocols::host_agent::kata::{
    Empty, RemoveContainerRequest, StartContainerRequest, agent_service,
};

/// The bytes of the request tell one that is sent again from another.
pub fn create(context: Context, payload: Vec<u8>) -> std::pin::Pin<Box<dyn Future<Output = Outcome>>> {
    Box::pin(async move {
        let hash = digest(&payload);
        let request = super::request::<agent_service::CreateContainer>(&payload)?;
        drop(payload);
        context.agent.create_container(request, hash).await?;
        reply::<agent_service::CreateContainer>(&Empty {})
    })
}

method!(start, agent_service::StartContainer, start_container);
method!(remove, agent_service::RemoveContainer, remove_container);

async fn start_container(context: Context, request: StartContainerRequest) -> Result<Empty, RpcError> {
    context.agent.start_container(&request.container_id).await?;
    Ok(Empty {})
}

/// The request's own timeout needs no clock here: init gives a removal up in ten seconds.
async fn remove_container(context: Context, request: RemoveContainerRequest) -> Result<Empty, RpcError> {
    context.agent.remove_container(&request.container_id).await?;
    Ok(Empty {})
}
