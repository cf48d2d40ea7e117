//! Disks that are no storage of a container: memory on them, and volumes that have become larger.

use super::{Context, method};
use crate::disk_address;
use crate::error::RpcError;
use nacre_protocols::host_agent::kata::{
    AddSwapPathRequest, AddSwapRequest, Empty, ResizeVolumeRequest, agent_service,
};
use nacre_protocols::init_launcher::{DiskAddress, StorageStep};

method!(add_swap, agent_service::AddSwap, add_swap_at);
method!(add_swap_by_name, agent_service::AddSwapPath, add_swap_named);
method!(grow, agent_service::ResizeVolume, grow_volume);

async fn add_swap_at(context: Context, request: AddSwapRequest) -> Result<Empty, RpcError> {
    swap(&context, disk_address::slots(&request.pci_path)?).await
}

async fn add_swap_named(context: Context, request: AddSwapPathRequest) -> Result<Empty, RpcError> {
    swap(&context, disk_address::virtio(&request.path)?).await
}

/// Whether there may be any is for init and the launcher to say.
async fn swap(context: &Context, address: DiskAddress) -> Result<Empty, RpcError> {
    context.agent.apply(vec![StorageStep::Swap { address }]).await?;
    Ok(Empty {})
}

/// It grows to all of its disk, of which the host asks that it has at least so many bytes.
async fn grow_volume(context: Context, request: ResizeVolumeRequest) -> Result<Empty, RpcError> {
    let path = request.volume_guest_path.trim_end_matches('/').to_owned();
    let _turn = context.agent.mounting.lock().await;
    let is_it = |mount_point: &String| mount_point.trim_end_matches('/') == path;
    if !context.agent.kept(|kept| kept.mounts.keys().any(is_it)) {
        return Err(RpcError::invalid(format!("volume_guest_path {path:?} is no volume of this sandbox")));
    }
    context.agent.apply(vec![StorageStep::Grow { path, bytes: request.size }]).await?;
    Ok(Empty {})
}
