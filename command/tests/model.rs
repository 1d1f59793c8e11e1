//! Random commands against a model that is too simple to be wrong: what is accepted, what is refused, and how many
//! units there are after each step.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::collections::HashMap;

use proptest::prelude::*;
use tidemark_command::Command;
use tidemark_command::order::OrderStatus;
use tidemark_command::stock::{AdjustStock, ReceiveStock};
use tidemark_command::testing::{World, cancel, deliver, place, product, ship};
use tidemark_command::value::{Delta, Quantity};
use uuid::Uuid;

const PRODUCTS: u128 = 3;
const ORDERS: u128 = 6;

fn product_id(n: u128) -> Uuid {
    Uuid::from_u128(0x100 + n)
}

fn order_id(n: u128) -> Uuid {
    Uuid::from_u128(0x200 + n)
}

#[derive(Debug, Clone)]
enum Step {
    Receive(u128, i64),
    Adjust(u128, i64),
    Place(u128, (u128, i64), (u128, i64)),
    Cancel(u128),
    Ship(u128),
    Deliver(u128),
}

fn step() -> impl Strategy<Value = Step> {
    let line = || (0..PRODUCTS, 1..6_i64);
    prop_oneof![
        (0..PRODUCTS, 1..8_i64).prop_map(|(product, units)| Step::Receive(product, units)),
        (0..PRODUCTS, prop_oneof![-4..0_i64, 1..4_i64])
            .prop_map(|(product, units)| Step::Adjust(product, units)),
        (0..ORDERS, line(), line()).prop_map(|(order, one, two)| Step::Place(order, one, two)),
        (0..ORDERS).prop_map(Step::Cancel),
        (0..ORDERS).prop_map(Step::Ship),
        (0..ORDERS).prop_map(Step::Deliver),
    ]
}

/// Units that can be promised, and orders with their lines.
#[derive(Default)]
struct Model {
    available: HashMap<u128, i64>,
    orders: HashMap<u128, (OrderStatus, HashMap<u128, i64>)>,
}

impl Model {
    fn accepts(&mut self, step: &Step) -> bool {
        match step {
            Step::Receive(product, units) => {
                *self.available.entry(*product).or_default() += units;
                true
            }
            Step::Adjust(product, units) => {
                let available = self.available.entry(*product).or_default();
                let possible = *available + units >= 0;
                if possible {
                    *available += units;
                }
                possible
            }
            Step::Place(order, one, two) => {
                let mut lines: HashMap<u128, i64> = HashMap::new();
                for (product, units) in [one, two] {
                    *lines.entry(*product).or_default() += units;
                }
                let enough =
                    lines.iter().all(|(product, units)| self.available.get(product).unwrap_or(&0) >= units);
                if !enough || self.orders.contains_key(order) {
                    return false;
                }
                for (product, units) in &lines {
                    *self.available.entry(*product).or_default() -= units;
                }
                self.orders.insert(*order, (OrderStatus::Placed, lines));
                true
            }
            Step::Cancel(order) => match self.orders.get_mut(order) {
                Some((status @ OrderStatus::Placed, lines)) => {
                    for (product, units) in lines {
                        *self.available.entry(*product).or_default() += *units;
                    }
                    *status = OrderStatus::Cancelled;
                    true
                }
                Some((OrderStatus::Cancelled, _)) => true,
                _ => false,
            },
            Step::Ship(order) => match self.orders.get_mut(order) {
                Some((status @ OrderStatus::Placed, _)) => {
                    *status = OrderStatus::Shipped;
                    true
                }
                Some((OrderStatus::Shipped, _)) => true,
                _ => false,
            },
            Step::Deliver(order) => match self.orders.get_mut(order) {
                Some((status @ OrderStatus::Shipped, _)) => {
                    *status = OrderStatus::Delivered;
                    true
                }
                Some((OrderStatus::Delivered, _)) => true,
                _ => false,
            },
        }
    }
}

fn command(step: &Step) -> Command {
    match *step {
        Step::Receive(product, units) => Command::ReceiveStock(ReceiveStock {
            product_id: product_id(product),
            quantity: Quantity::try_from(units).unwrap(),
        }),
        Step::Adjust(product, units) => Command::AdjustStock(AdjustStock {
            product_id: product_id(product),
            delta: Delta::try_from(units).unwrap(),
            reason: "counted".to_owned().try_into().unwrap(),
        }),
        Step::Place(order, one, two) => {
            place(order_id(order), [(product_id(one.0), one.1), (product_id(two.0), two.1)])
        }
        Step::Cancel(order) => cancel(order_id(order)),
        Step::Ship(order) => ship(order_id(order)),
        Step::Deliver(order) => deliver(order_id(order)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn deciders_do_what_the_model_does(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::default();
        for n in 0..PRODUCTS {
            let history = [product(product_id(n)).created(&format!("P-{n}"), 100), product(product_id(n)).published()];
            for happened in history.iter().flatten() {
                world.evolve(happened);
            }
        }
        let mut model = Model::default();
        for step in &steps {
            let decided = world.decide(&command(step));
            prop_assert_eq!(decided.is_ok(), model.accepts(step), "{:?}: {:?}", step, decided);
            for happened in decided.iter().flat_map(|decision| &decision.events) {
                world.evolve(happened);
            }
            for n in 0..PRODUCTS {
                let available = world.stock(product_id(n)).available();
                prop_assert!(available >= 0);
                prop_assert_eq!(available, *model.available.get(&n).unwrap_or(&0));
            }
            for n in 0..ORDERS {
                prop_assert_eq!(world.order(order_id(n)), model.orders.get(&n).map(|(status, _)| *status));
            }
        }
    }
}
