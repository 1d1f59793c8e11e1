//! Clients that ask the same small thing all the time: what they wait is what a fault costs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::access::Actor;
use crate::drive::Stage;
use crate::drive::client::Client;
use crate::drive::shopper::Wish;
use crate::error::ChaosError;
use crate::history::{Ask, History, Target};

/// Between an answer and the next request.
const PAUSE: Duration = Duration::from_millis(25);

/// Takes one unit in, again and again. A companion reads it back each time, so that there is somebody who would see at
/// once when an old body is served.
pub(super) async fn write(
    mut client: Client,
    reads: mpsc::Sender<Wish>,
    stage: Arc<Stage>,
    product: Uuid,
    over: CancellationToken,
) -> Result<History, ChaosError> {
    let staff = Actor::staff(client.id());
    while !over.is_cancelled() {
        let ask = Ask::Receive { product, quantity: 1 };
        if let Some((sent, accepted)) = client.timed_command(staff, ask).await? {
            stage.note_write(sent);
            let told = (accepted.epoch, accepted.position);
            reads.try_send((None, Target::Product(product), Some(told))).ok();
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
