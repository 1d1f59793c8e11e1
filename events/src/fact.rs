//! All contexts' events as one type, with one table that says how each is named, versioned and grouped.

use serde::Serialize;
use uuid::Uuid;

use crate::account::{
    AccountDeactivated, AccountErased, AccountRegistered, AccountReinstated, AddressAdded, AddressRemoved,
    AddressRevised, EmailClaimed, EmailReleased, EmailVerified, LoginFailed, PasswordChanged,
    PasswordResetRequested, ProfileUpdated, RegistrationRepeated, RoleGranted, SecondFactorDisabled,
    SecondFactorEnabled, SessionEnded, SessionStarted, VerificationRequested,
};
use crate::order::{OrderCancelled, OrderDelivered, OrderPlaced, OrderShipped};
use crate::personal::Personal;
use crate::product::{PriceChanged, ProductCreated, ProductPublished, ProductRetired, ProductRevised};
use crate::sku::{SkuClaimed, SkuReleased};
use crate::stock::{StockAdjusted, StockReceived, StockReleased, StockReserved, StockShipped};
use crate::{schema, stream};

/// Why a stored event could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// No code here knows the type: it was written by a newer version.
    #[error("event type {0} is unknown to this version")]
    UnknownType(String),
    /// The type is known, its schema version is newer than this code.
    #[error("{event_type} has schema version {found}, this version reads up to {known}")]
    NewerVersion {
        /// The event's type.
        event_type: String,
        /// The version it was written with.
        found: i16,
        /// The newest version this code reads.
        known: i16,
    },
    /// No chain of upcasters leads from the stored version to the current one.
    #[error("{event_type} has no upcaster from schema version {from}")]
    NoUpcaster {
        /// The event's type.
        event_type: String,
        /// The version at which the chain ends.
        from: i16,
    },
    /// The payload is not what its type and version say.
    #[error("{event_type} has a payload that does not fit: {source}")]
    Payload {
        /// The event's type.
        event_type: String,
        /// What did not fit.
        source: serde_json::Error,
    },
}

impl DecodeError {
    /// Whether a newer version of this program may be able to read the event.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::UnknownType(_) | Self::NewerVersion { .. })
    }
}

/// The descriptor of one event type.
#[derive(Debug, Clone, Copy)]
pub struct EventType {
    /// Its name, as stored.
    pub name: &'static str,
    /// The schema version that is written today.
    pub version: i16,
    /// The category of the streams it stands in.
    pub category: &'static str,
    /// Its JSON Schema (draft 2020-12).
    pub schema: fn() -> schemars::Schema,
}

macro_rules! facts {
    ($( $(#[$doc:meta])* $variant:ident($context:ident) in $category:path { $($event:ident @ $version:literal),+ $(,)? } )+) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Eq)]
            pub enum $context {
                $( #[doc = concat!("See [`", stringify!($event), "`].")] $event($event), )+
            }

            impl $context {
                /// The name it is stored under.
                #[must_use]
                pub fn event_type(&self) -> &'static str {
                    match self { $( Self::$event(_) => stringify!($event), )+ }
                }
            }

            impl From<$context> for Fact {
                fn from(event: $context) -> Self { Self::$variant(event) }
            }

            $(
                impl From<$event> for $context {
                    fn from(event: $event) -> Self { Self::$event(event) }
                }
                impl From<$event> for Fact {
                    fn from(event: $event) -> Self { Self::$variant($context::$event(event)) }
                }
            )+
        )+

        /// Anything that can happen.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Fact {
            $( #[doc = concat!("See [`", stringify!($context), "`].")] $variant($context), )+
        }

        /// Every event type that is written today.
        pub const EVENT_TYPES: &[EventType] = &[
            $($( EventType {
                name: stringify!($event),
                version: $version,
                category: $category,
                schema: || schemars::schema_for!($event),
            }, )+)+
        ];

        impl Fact {
            /// Its descriptor.
            #[must_use]
            pub fn event_type(&self) -> EventTypeRef {
                match self {
                    $( Self::$variant(event) => match event {
                        $( $context::$event(_) => EventTypeRef {
                            name: stringify!($event), version: $version, category: $category,
                        }, )+
                    }, )+
                }
            }

            /// Appends the payload as JSON.
            ///
            /// # Errors
            /// When a payload cannot be written as JSON; none of today's types can fail.
            pub fn write_payload(&self, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
                let mut serializer = serde_json::Serializer::new(out);
                match self {
                    $( Self::$variant(event) => match event {
                        $( $context::$event(payload) => payload.serialize(&mut serializer), )+
                    }, )+
                }
            }

            /// Reads a payload that was written with `schema_version` of `event_type`.
            ///
            /// # Errors
            /// See [`DecodeError`].
            pub fn decode(event_type: &str, schema_version: i16, payload: &str) -> Result<Self, DecodeError> {
                match event_type {
                    $($(
                        stringify!($event) => schema::decode_version::<$event>(
                            stringify!($event), $version, schema_version, payload,
                        ).map(Self::from),
                    )+)+
                    unknown => Err(DecodeError::UnknownType(unknown.to_owned())),
                }
            }
        }

        /// The same text as a `'static` one, if it is a name this code knows: reading the log then allocates none.
        pub fn known_name(name: &str) -> Option<&'static str> {
            match name {
                $($( stringify!($event) => Some(stringify!($event)), )+)+
                _ => None,
            }
        }

        /// The same for categories.
        pub fn known_category(name: &str) -> Option<&'static str> {
            $( if name == $category { return Some($category); } )+
            None
        }
    };
}

facts! {
    /// What can happen to a product.
    Product(ProductEvent) in stream::PRODUCT {
        ProductCreated @ 1, ProductRevised @ 1, PriceChanged @ 1, ProductPublished @ 1, ProductRetired @ 1,
    }
    /// What can happen to the stock of a product.
    Stock(StockEvent) in stream::STOCK_CATEGORY {
        StockReserved @ 1, StockReleased @ 1, StockShipped @ 1, StockReceived @ 1, StockAdjusted @ 1,
    }
    /// What can happen to an order.
    Order(OrderEvent) in stream::ORDER {
        OrderPlaced @ 1, OrderCancelled @ 1, OrderShipped @ 1, OrderDelivered @ 1,
    }
    /// What can happen to the claim on a SKU.
    Sku(SkuEvent) in stream::SKU_CATEGORY {
        SkuClaimed @ 1, SkuReleased @ 1,
    }
    /// What can happen to an account.
    Account(AccountEvent) in stream::ACCOUNT {
        AccountRegistered @ 1, VerificationRequested @ 1, RegistrationRepeated @ 1, EmailVerified @ 1,
        PasswordResetRequested @ 1, PasswordChanged @ 1, ProfileUpdated @ 1, AddressAdded @ 1, AddressRevised @ 1,
        AddressRemoved @ 1, RoleGranted @ 1, SecondFactorEnabled @ 1, SecondFactorDisabled @ 1, LoginFailed @ 1,
        AccountDeactivated @ 1, AccountReinstated @ 1, AccountErased @ 1,
    }
    /// What can happen to a session.
    Session(SessionEvent) in stream::SESSION {
        SessionStarted @ 1, SessionEnded @ 1,
    }
    /// What can happen to the claim on an e-mail address.
    Email(EmailEvent) in stream::EMAIL_CATEGORY {
        EmailClaimed @ 1, EmailReleased @ 1,
    }
}

/// Name, version and category of an event, without its schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventTypeRef {
    /// The stored name.
    pub name: &'static str,
    /// The schema version written today.
    pub version: i16,
    /// The category of its streams.
    pub category: &'static str,
}

impl Fact {
    /// Its personal data, each with the name of its field. It is sealed with the key of the account that is the event's
    /// partition key.
    pub fn personal(&mut self) -> Vec<(&'static str, &mut Personal)> {
        let fields: Vec<(&'static str, Option<&mut Personal>)> = match self {
            Self::Account(AccountEvent::AccountRegistered(event)) => {
                vec![("email", Some(&mut event.email)), ("name", event.name.as_mut())]
            }
            Self::Account(AccountEvent::ProfileUpdated(event)) => {
                vec![("name", event.name.as_mut()), ("phone", event.phone.as_mut())]
            }
            Self::Account(AccountEvent::AddressAdded(event)) => vec![("address", Some(&mut event.address))],
            Self::Account(AccountEvent::AddressRevised(event)) => vec![("address", Some(&mut event.address))],
            Self::Account(AccountEvent::LoginFailed(event)) => vec![("source", event.source.as_mut())],
            Self::Session(SessionEvent::SessionStarted(event)) => {
                vec![("source", event.source.as_mut()), ("client", event.client.as_mut())]
            }
            Self::Session(SessionEvent::SessionEnded(event)) => vec![("source", event.source.as_mut())],
            Self::Account(_)
            | Self::Email(_)
            | Self::Product(_)
            | Self::Stock(_)
            | Self::Order(_)
            | Self::Sku(_) => Vec::new(),
        };
        fields.into_iter().filter_map(|(name, field)| Some((name, field?))).collect()
    }
}

impl StockEvent {
    /// Whose stock it is about.
    #[must_use]
    pub fn product_id(&self) -> Uuid {
        match self {
            Self::StockReceived(event) => event.product_id,
            Self::StockAdjusted(event) => event.product_id,
            Self::StockReserved(event) => event.product_id,
            Self::StockReleased(event) => event.product_id,
            Self::StockShipped(event) => event.product_id,
        }
    }
}
