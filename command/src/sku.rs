//! Claims on SKUs: a product is created with its claim in the same commit, so two products never share a SKU.

use serde::{Deserialize, Serialize};
use tidemark_events::fact::SkuEvent;
use uuid::Uuid;

/// Who owns a SKU now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The product, or nobody.
    pub owner: Option<Uuid>,
}

impl Claim {
    /// Folds an event in.
    pub fn evolve(&mut self, event: &SkuEvent) {
        self.owner = match event {
            SkuEvent::SkuClaimed(claimed) => Some(claimed.product_id),
            SkuEvent::SkuReleased(_) => None,
        };
    }
}
