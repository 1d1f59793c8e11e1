//! Clients that ask the same small thing all the time: what they wait is what a fault costs.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::access::Actor;
use crate::drive::Stage;
use crate::drive::client::Client;
use crate::error::ChaosError;
use crate::history::{Ask, History, Target};

/// Between an answer and the next request.
const PAUSE: Duration = Duration::from_millis(25);

/// Takes one unit in, again and again.
pub(super) async fn write(
    mut client: Client,
    stage: Arc<Stage>,
    product: Uuid,
    over: CancellationToken,
) -> Result<History, ChaosError> {
    let staff = Actor::staff(client.id());
    while !over.is_cancelled() {
        if let Some(sent) = client.timed_command(staff, Ask::Receive { product, quantity: 1 }).await? {
            stage.note_write(sent);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(client.history)
}

/// Reads a product, again and again.
pub(super) async fn read(
    mut client: Client,
    product: Uuid,
    over: CancellationToken,
) -> Result<History, ChaosError> {
    while !over.is_cancelled() {
        client.timed_read(Target::Product(product)).await?;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(client.history)
}
