//! `tidemark token`: an access token for development, signed with the shop's key.

use tidemark_http::Actor;
use uuid::Uuid;

use crate::config::TokenOptions;
use crate::{Failure, database, keys};

pub(crate) fn run(options: &TokenOptions) -> Result<(), Failure> {
    let data_dir = database::data_dir(options.data_dir.as_deref())?;
    let issuer = keys::issuer(&data_dir, &options.key)?;
    let actor =
        Actor { subject: options.subject.unwrap_or_else(Uuid::now_v7), role: options.role, session: None };
    let token =
        issuer.issue(&actor, options.ttl).map_err(|error| Failure::Configuration(error.to_string()))?;
    print(&token);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the token is what was asked for")]
fn print(token: &str) {
    println!("{token}");
}
