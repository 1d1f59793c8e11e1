//! Tokens of the shop's form, signed here: the shop's own code is not asked.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use uuid::Uuid;

use crate::error::ChaosError;

/// Longer than any run.
const HOLDS_SECONDS: u64 = 24 * 60 * 60;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Actor {
    /// The account.
    pub(crate) subject: Uuid,
    /// What it may do.
    pub(crate) role: &'static str,
}

impl Actor {
    /// Somebody who buys.
    pub(crate) fn customer(subject: Uuid) -> Self {
        Self { subject, role: "customer" }
    }

    /// Somebody who runs the shop.
    pub(crate) fn staff(subject: Uuid) -> Self {
        Self { subject, role: "staff" }
    }

    /// As events name it.
    pub(crate) fn label(&self) -> String {
        format!("{}:{}", self.role, self.subject)
    }
}

#[derive(Serialize)]
struct Claims {
    iss: &'static str,
    aud: &'static str,
    sub: Uuid,
    role: &'static str,
    iat: u64,
    exp: u64,
}

/// Signs tokens (JWT, HS256).
#[derive(Clone)]
pub(crate) struct Signer(EncodingKey);

impl Signer {
    /// With the cluster's secret.
    pub(crate) fn new(secret: &str) -> Self {
        Self(EncodingKey::from_secret(secret.as_bytes()))
    }

    /// What each of its tokens begins with.
    ///
    /// # Errors
    /// [`ChaosError::Wrong`] when nothing can be signed.
    pub(crate) fn beginning(&self) -> Result<String, ChaosError> {
        let bearer = self.bearer(Actor::staff(Uuid::nil()))?;
        let beginning = bearer.strip_prefix("Bearer ").and_then(|token| token.split('.').next());
        beginning.map(str::to_owned).ok_or_else(|| ChaosError::Wrong("a token has no header".to_owned()))
    }

    /// The header `Authorization` of an actor.
    ///
    /// # Errors
    /// [`ChaosError::Wrong`] when it cannot be signed.
    pub(crate) fn bearer(&self, actor: Actor) -> Result<String, ChaosError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let claims = Claims {
            iss: "tidemark",
            aud: "tidemark",
            sub: actor.subject,
            role: actor.role,
            iat: now,
            exp: now + HOLDS_SECONDS,
        };
        let header = Header { typ: Some("at+jwt".to_owned()), ..Header::new(Algorithm::HS256) };
        jsonwebtoken::encode(&header, &claims, &self.0)
            .map(|token| format!("Bearer {token}"))
            .map_err(|error| ChaosError::Wrong(format!("a token cannot be signed: {error}")))
    }
}
