//! Stock: nothing is sold that is not there, at no moment of the log.

use crate::check::Check;
use crate::fold::Fold;

/// Available and reserved units never fall below zero, in any prefix of the log.
pub(crate) fn never_negative(fold: &Fold) -> Check {
    let mut check = Check::new("no stock is below zero in any prefix of the log");
    for (product, states) in &fold.stocks {
        for stock in states {
            let holds = stock.available() >= 0 && stock.reserved >= 0 && stock.shipped >= 0;
            check.expect(holds, || {
                let (available, reserved) = (stock.available(), stock.reserved);
                format!("product {product} at {}: {available} available, {reserved} reserved", stock.position)
            });
        }
    }
    check
}

/// Every event fits what was before it.
pub(crate) fn fits(fold: &Fold, events: usize) -> Check {
    let mut check = Check::new("every event fits what was before it");
    check.expect_none(events as u64, fold.wrong.iter().cloned());
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::event;
    use serde_json::json;
    use uuid::Uuid;

    #[test]
    fn a_moment_below_zero_is_seen() {
        let product = Uuid::from_u128(7);
        let units = |position, kind, quantity| {
            event(position, 70, position, kind, json!({ "product_id": product, "quantity": quantity }))
        };
        let (received, reserved) = (units(1, "StockReceived", 2), units(2, "StockReserved", 3));
        let later = units(3, "StockReceived", 5);
        assert!(never_negative(&Fold::of(std::slice::from_ref(&received))).holds());
        assert!(!never_negative(&Fold::of(&[received, reserved, later])).holds());
    }
}
