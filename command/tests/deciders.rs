//! What may happen and what must not, context by context: given a history, when a command, then events or a refusal.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use tidemark_command::Command;
use tidemark_command::Rejection::{
    AlreadyExists, AmountOverflow, LinkVoid, MixedCurrencies, NotForSale, NotFound, OutOfStock,
    QuantityOverflow, SkuTaken, State, StockBelowZero, UnknownProduct,
};
use tidemark_command::account::AccountCommand;
use tidemark_command::command::NewId;
use tidemark_command::order::Requester;
use tidemark_command::product::{CreateProduct, PublishProduct, RetireProduct, SetPrice};
use tidemark_command::stock::{AdjustStock, ReceiveStock};
use tidemark_command::testing::{
    CUSTOMER, account, cancel, cancel_as, deliver, euros, given, order, place, product, ship, stock,
};
use tidemark_command::value::{Delta, Price, Quantity};
use tidemark_events::{Currency, Money};
use uuid::Uuid;

const LAMP: Uuid = Uuid::from_u128(0xA1);
const BULB: Uuid = Uuid::from_u128(0xA2);
const ORDER_A: Uuid = Uuid::from_u128(0xB1);
const ORDER_B: Uuid = Uuid::from_u128(0xB2);

fn create(id: Uuid, sku: &str, cents: i64) -> Command {
    Command::CreateProduct(CreateProduct {
        product_id: NewId::Derived(id),
        sku: sku.to_owned().try_into().unwrap(),
        name: sku.to_owned().try_into().unwrap(),
        description: None,
        department: None,
        price: Price::try_from(euros(cents)).unwrap(),
    })
}

mod catalog {
    use super::*;

    #[test]
    fn a_product_is_created_with_the_claim_on_its_sku() {
        given([]).when(create(LAMP, "LAMP-1", 1_999)).then([product(LAMP).created("LAMP-1", 1_999)]);
    }

    #[test]
    fn a_sku_belongs_to_one_product() {
        given([product(LAMP).created("LAMP-1", 1_999)])
            .when(create(BULB, "LAMP-1", 99))
            .then_refused(SkuTaken { sku: "LAMP-1".to_owned(), owner: LAMP });
    }

    #[test]
    fn a_retired_products_sku_is_free_again() {
        given([product(LAMP).created("LAMP-1", 1_999), product(LAMP).retired("LAMP-1")])
            .when(create(BULB, "LAMP-1", 99))
            .then([product(BULB).created("LAMP-1", 99)]);
    }

    #[test]
    fn an_id_is_used_once() {
        given([product(LAMP).created("LAMP-1", 1_999)])
            .when(create(LAMP, "LAMP-2", 1_999))
            .then_refused(AlreadyExists { id: LAMP });
    }

    #[test]
    fn what_is_so_already_needs_no_event() {
        given([product(LAMP).created("LAMP-1", 1_999), product(LAMP).published()])
            .when(Command::PublishProduct(PublishProduct { product_id: LAMP }))
            .then_nothing();
        given([product(LAMP).created("LAMP-1", 1_999)])
            .when(Command::SetPrice(SetPrice {
                product_id: LAMP,
                price: Price::try_from(euros(1_999)).unwrap(),
            }))
            .then_nothing();
    }

    #[test]
    fn a_retired_product_is_not_changed() {
        given([product(LAMP).created("LAMP-1", 1_999), product(LAMP).retired("LAMP-1")])
            .when(Command::PublishProduct(PublishProduct { product_id: LAMP }))
            .then_refused(State {
                kind: "product",
                status: "retired",
                reason: "a retired product is not changed any more",
            });
        given([product(LAMP).created("LAMP-1", 1_999), product(LAMP).retired("LAMP-1")])
            .when(Command::RetireProduct(RetireProduct { product_id: LAMP }))
            .then_nothing();
    }
}

mod inventory {
    use super::*;

    fn receive(quantity: i64) -> Command {
        Command::ReceiveStock(ReceiveStock {
            product_id: LAMP,
            quantity: Quantity::try_from(quantity).unwrap(),
        })
    }

    fn adjust(delta: i64) -> Command {
        Command::AdjustStock(AdjustStock {
            product_id: LAMP,
            delta: Delta::try_from(delta).unwrap(),
            reason: "counted".to_owned().try_into().unwrap(),
        })
    }

    #[test]
    fn units_come_in_for_a_product_that_exists() {
        given([product(LAMP).created("L", 1)]).when(receive(7)).then([stock(LAMP).received(7)]);
        given([]).when(receive(7)).then_refused(NotFound { kind: "product", id: LAMP });
    }

    #[test]
    fn a_correction_leaves_what_is_promised() {
        let history =
            [product(LAMP).created("L", 1), stock(LAMP).received(5), stock(LAMP).reserved(ORDER_A, 3)];
        given(history.clone()).when(adjust(-2)).then([stock(LAMP).adjusted(-2, "counted")]);
        given(history).when(adjust(-3)).then_refused(StockBelowZero { delta: -3, available: 2 });
    }
}

mod orders {
    use super::*;

    fn lamp_with(units: i64) -> [Vec<tidemark_command::decision::Happened>; 3] {
        [product(LAMP).created("LAMP-1", 1_999), product(LAMP).published(), stock(LAMP).received(units)]
    }

    #[test]
    fn placing_fixes_prices_and_reserves_every_line() {
        given(lamp_with(5))
            .when(place(ORDER_A, [(LAMP, 2)]))
            .then([order(ORDER_A).placed([(LAMP, 2, 1_999)]), stock(LAMP).reserved(ORDER_A, 2)]);
    }

    #[test]
    fn the_last_unit_is_sold_once() {
        let [created, published, received] = lamp_with(1);
        given([created, published, received, stock(LAMP).reserved(ORDER_A, 1)])
            .when(place(ORDER_B, [(LAMP, 1)]))
            .then_refused(OutOfStock { line: 0, product: LAMP, wanted: 1, available: 0 });
    }

    #[test]
    fn one_line_too_many_reserves_nothing() {
        let [created, published, received] = lamp_with(5);
        given([created, published, received, product(BULB).created("BULB", 99), product(BULB).published()])
            .when(place(ORDER_A, [(LAMP, 1), (BULB, 1)]))
            .then_refused(OutOfStock { line: 1, product: BULB, wanted: 1, available: 0 });
    }

    #[test]
    fn lines_of_one_product_are_one() {
        given(lamp_with(5))
            .when(place(ORDER_A, [(LAMP, 2), (LAMP, 3)]))
            .then([order(ORDER_A).placed([(LAMP, 5, 1_999)]), stock(LAMP).reserved(ORDER_A, 5)]);
        given(lamp_with(5)).when(place(ORDER_A, [(LAMP, 3), (LAMP, 3)])).then_refused(OutOfStock {
            line: 0,
            product: LAMP,
            wanted: 6,
            available: 5,
        });
        given(lamp_with(5))
            .when(place(ORDER_A, [(LAMP, 1_000_000), (LAMP, 1)]))
            .then_refused(QuantityOverflow { line: 1, product: LAMP, most: 1_000_000 });
    }

    #[test]
    fn only_what_is_for_sale_is_sold() {
        given([]).when(place(ORDER_A, [(LAMP, 1)])).then_refused(UnknownProduct { line: 0, product: LAMP });
        given([product(LAMP).created("L", 1)]).when(place(ORDER_A, [(LAMP, 1)])).then_refused(NotForSale {
            line: 0,
            product: LAMP,
            status: "draft",
        });
    }

    #[test]
    fn amounts_do_not_wrap_and_currencies_do_not_mix() {
        given([
            product(LAMP).created("L", Money::MAX_AMOUNT),
            product(LAMP).published(),
            stock(LAMP).received(9),
        ])
        .when(place(ORDER_A, [(LAMP, 2)]))
        .then_refused(AmountOverflow { line: 0 });
        let yen = Money { amount: 5, currency: Currency::parse("JPY").unwrap() };
        given([
            product(LAMP).created("L", 1),
            product(LAMP).published(),
            product(BULB).created("B", 1),
            product(BULB).repriced(yen),
            product(BULB).published(),
        ])
        .when(place(ORDER_A, [(LAMP, 1), (BULB, 1)]))
        .then_refused(MixedCurrencies { line: 1, product: BULB });
    }

    #[test]
    fn a_change_of_price_is_for_later_orders() {
        let [created, published, received] = lamp_with(5);
        given([created, published, received, product(LAMP).repriced(euros(2_499))])
            .when(place(ORDER_A, [(LAMP, 1)]))
            .then([order(ORDER_A).placed([(LAMP, 1, 2_499)]), stock(LAMP).reserved(ORDER_A, 1)]);
    }

    #[test]
    fn cancelling_releases_once() {
        let placed = order(ORDER_A).placed([(LAMP, 2, 1_999)]);
        given([placed.clone()])
            .when(cancel(ORDER_A))
            .then([order(ORDER_A).cancelled(), stock(LAMP).released(ORDER_A, 2)]);
        given([placed, order(ORDER_A).cancelled()]).when(cancel(ORDER_A)).then_nothing();
    }

    #[test]
    fn anothers_order_is_as_good_as_none() {
        given([order(ORDER_A).placed([(LAMP, 1, 1)])])
            .when(cancel_as(ORDER_A, Requester::Customer(LAMP)))
            .then_refused(NotFound { kind: "order", id: ORDER_A });
        given([order(ORDER_A).placed([(LAMP, 1, 1)])])
            .when(cancel_as(ORDER_A, Requester::Staff))
            .then([order(ORDER_A).cancelled(), stock(LAMP).released(ORDER_A, 1)]);
        assert_ne!(CUSTOMER, LAMP);
    }

    #[test]
    fn an_order_goes_one_way() {
        let placed = order(ORDER_A).placed([(LAMP, 1, 1)]);
        let shipped = order(ORDER_A).shipped();
        given([placed.clone()]).when(ship(ORDER_A)).then([shipped.clone(), stock(LAMP).shipped(ORDER_A, 1)]);
        given([placed.clone(), shipped.clone()]).when(ship(ORDER_A)).then_nothing();
        given([placed.clone(), shipped.clone()]).when(deliver(ORDER_A)).then([order(ORDER_A).delivered()]);
        let refused = |status, reason| State { kind: "order", status, reason };
        given([placed.clone(), shipped])
            .when(cancel(ORDER_A))
            .then_refused(refused("shipped", "an order is cancelled before it is shipped, or not at all"));
        given([placed.clone()])
            .when(deliver(ORDER_A))
            .then_refused(refused("placed", "only a shipped order is delivered"));
        given([placed, order(ORDER_A).cancelled()])
            .when(ship(ORDER_A))
            .then_refused(refused("cancelled", "only a placed order is shipped"));
    }
}

mod accounts {
    use super::*;

    const ADA: Uuid = Uuid::from_u128(0xD1);
    const MAIL: Uuid = Uuid::from_u128(0xE1);
    const RESET: Uuid = Uuid::from_u128(0xE2);
    const CREDENTIAL: Uuid = Uuid::from_u128(0xF1);

    fn verify() -> Command {
        Command::Account(AccountCommand::VerifyEmail { account_id: ADA, verification_id: MAIL })
    }

    fn reinstate() -> Command {
        Command::Account(AccountCommand::Reinstate { account_id: ADA })
    }

    fn reset() -> Command {
        let command = AccountCommand::Reset { account_id: ADA, reset_id: RESET, credential_id: CREDENTIAL };
        Command::Account(command)
    }

    #[test]
    fn a_mail_makes_a_pending_account_active_and_no_other() {
        let registered = account(ADA).registered(MAIL);
        given([registered.clone()]).when(verify()).answers("active").then([account(ADA).verified()]);
        given([registered.clone(), account(ADA).deactivated()]).when(verify()).then_refused(LinkVoid);
        given([registered, account(ADA).verified()]).when(verify()).then_refused(LinkVoid);
    }

    #[test]
    fn who_is_reinstated_is_pending_until_the_address_is_verified() {
        let (registered, verified) = (account(ADA).registered(MAIL), account(ADA).verified());
        let (deactivated, reinstated) = (account(ADA).deactivated(), account(ADA).reinstated());
        let never = [registered.clone(), deactivated.clone()];
        given(never).when(reinstate()).answers("pending").then([reinstated.clone()]);
        let back = [registered.clone(), deactivated.clone(), reinstated.clone()];
        given(back.clone()).when(reinstate()).answers("pending").then_nothing();
        given(back).when(verify()).answers("active").then([verified.clone()]);
        given([registered.clone(), verified.clone(), deactivated.clone()])
            .when(reinstate())
            .answers("active")
            .then([reinstated.clone()]);
        given([registered, verified, deactivated, reinstated])
            .when(reinstate())
            .answers("active")
            .then_nothing();
    }

    #[test]
    fn a_new_password_verifies_a_pending_account_and_reinstates_nobody() {
        let (registered, asked) = (account(ADA).registered(MAIL), account(ADA).reset_requested(RESET));
        let changed = account(ADA).password_reset(CREDENTIAL);
        given([registered.clone(), asked.clone()])
            .when(reset())
            .answers("active")
            .then([changed.clone(), account(ADA).verified()]);
        given([registered, asked, account(ADA).deactivated()])
            .when(reset())
            .answers("deactivated")
            .then([changed]);
    }
}
