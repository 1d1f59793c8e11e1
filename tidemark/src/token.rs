//! `tidemark token`: an access token for development, signed with the shop's key.

use tidemark_http::Actor;
use uuid::Uuid;

use crate::config::TokenOptions;
use crate::{Failure, database, keys, tell};

pub(crate) fn run(options: &TokenOptions) -> Result<(), Failure> {
    let issuer = keys::issuer(|| database::data_dir(options.data_dir.as_deref()), &options.key)?;
    let actor =
        Actor { subject: options.subject.unwrap_or_else(Uuid::now_v7), role: options.role, session: None };
    let token =
        issuer.issue(&actor, options.ttl).map_err(|error| Failure::Configuration(error.to_string()))?;
    tell(&token)
}
