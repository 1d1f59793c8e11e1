//! Signed access tokens (JWT, RFC 7519): issuing, verifying, roles.
//!
//! The algorithm is the configured key's and no other; a token cannot choose it. A token that was verified once is
//! remembered until it expires, so that a signature check is no bottleneck.

use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use axum::extract::{FromRef, FromRequestParts, OptionalFromRequestParts};
use axum::http::header;
use axum::http::request::Parts;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::problem::{self, Problem};

/// Who issues the tokens that are accepted.
const ISSUER: &str = "tidemark";

/// How many verified tokens are remembered.
const REMEMBERED: usize = 20_000;

/// The longest token that is looked at.
const MAX_TOKEN: usize = 4_096;

/// The shortest HMAC secret: as long as the hash (RFC 7518, 3.2).
pub const MIN_SECRET: usize = 32;

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Buys; sees and cancels own orders.
    Customer,
    /// Runs the shop: catalog, stock, all orders.
    Staff,
    /// Reads the log.
    Analyst,
    /// Runs the machinery.
    Operator,
    /// May do everything.
    Admin,
}

impl Role {
    /// Its name in tokens.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Staff => "staff",
            Self::Analyst => "analyst",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Self::Customer, Self::Staff, Self::Analyst, Self::Operator, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == name)
            .ok_or_else(|| "a role is customer, staff, analyst, operator or admin".to_owned())
    }
}

/// Who asks. As an extractor it answers 401 to a missing or invalid token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Actor {
    /// The account.
    pub subject: Uuid,
    /// What it may do.
    pub role: Role,
}

impl Actor {
    /// Lets these roles pass, and admins.
    ///
    /// # Errors
    /// 403 for others.
    pub fn require(&self, allowed: &[Role]) -> Result<(), Problem> {
        if self.role == Role::Admin || allowed.contains(&self.role) {
            return Ok(());
        }
        Err(Problem::new(
            &problem::FORBIDDEN,
            format!("a token of role {} may not do this", self.role.as_str()),
        ))
    }

    /// As events name it: `role:uuid`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}:{}", self.role.as_str(), self.subject)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: Uuid,
    role: Role,
    iat: u64,
    exp: u64,
}

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Fewer bytes than the hash has.
    #[error("an HS256 secret needs at least {MIN_SECRET} bytes, this one has {0}")]
    ShortSecret(usize),
    /// Not an Ed25519 key in PKCS#8.
    #[error("not an Ed25519 private key in PKCS#8")]
    NotEd25519,
    /// The token could not be signed.
    #[error("the token could not be signed: {0}")]
    Sign(#[from] jsonwebtoken::errors::Error),
}

/// Makes an Ed25519 key pair, PKCS#8 (RFC 8410).
///
/// # Errors
/// [`KeyError::NotEd25519`] when the system has no randomness.
pub fn generate_ed25519() -> Result<Vec<u8>, KeyError> {
    let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::NotEd25519)?;
    let document = pair.to_pkcs8v1().map_err(|_| KeyError::NotEd25519)?;
    Ok(document.as_ref().to_vec())
}

/// Signs tokens.
#[derive(Clone)]
pub struct Issuer {
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Issuer {
    /// With an HMAC secret (HS256).
    ///
    /// # Errors
    /// [`KeyError::ShortSecret`].
    pub fn hs256(secret: &[u8]) -> Result<Self, KeyError> {
        check_secret(secret)?;
        Ok(Self { algorithm: Algorithm::HS256, key: EncodingKey::from_secret(secret) })
    }

    /// With an Ed25519 private key in PKCS#8 (EdDSA).
    ///
    /// # Errors
    /// [`KeyError::NotEd25519`].
    pub fn eddsa(pkcs8: &[u8]) -> Result<Self, KeyError> {
        Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| KeyError::NotEd25519)?;
        Ok(Self { algorithm: Algorithm::EdDSA, key: EncodingKey::from_ed_der(pkcs8) })
    }

    /// A token for an actor that expires after `ttl`.
    ///
    /// # Errors
    /// [`KeyError::Sign`].
    pub fn issue(&self, actor: &Actor, ttl: Duration) -> Result<String, KeyError> {
        let now = unix_seconds();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: actor.subject,
            role: actor.role,
            iat: now,
            exp: now.saturating_add(ttl.as_secs()),
        };
        Ok(jsonwebtoken::encode(&Header::new(self.algorithm), &claims, &self.key)?)
    }
}

/// Verifies tokens. Cheap to clone.
#[derive(Clone)]
pub struct Access(Arc<Verifier>);

struct Verifier {
    key: DecodingKey,
    validation: Validation,
    remembered: Cache<String, (Actor, u64)>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("algorithms", &self.0.validation.algorithms).finish_non_exhaustive()
    }
}

impl Access {
    /// Accepts tokens of an HMAC secret (HS256).
    ///
    /// # Errors
    /// [`KeyError::ShortSecret`].
    pub fn hs256(secret: &[u8]) -> Result<Self, KeyError> {
        check_secret(secret)?;
        Ok(Self::new(DecodingKey::from_secret(secret), Algorithm::HS256))
    }

    /// Accepts tokens of the Ed25519 key pair in `pkcs8` (EdDSA).
    ///
    /// # Errors
    /// [`KeyError::NotEd25519`].
    pub fn eddsa(pkcs8: &[u8]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| KeyError::NotEd25519)?;
        Ok(Self::new(DecodingKey::from_ed_der(pair.public_key().as_ref()), Algorithm::EdDSA))
    }

    fn new(key: DecodingKey, algorithm: Algorithm) -> Self {
        let mut validation = Validation::new(algorithm);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        validation.validate_nbf = true;
        validation.validate_aud = false;
        validation.leeway = 0;
        Self(Arc::new(Verifier { key, validation, remembered: Cache::new(REMEMBERED) }))
    }

    /// Who a token stands for, `None` if it is not to be trusted. It says no more: a reason would help a forger.
    #[must_use]
    pub fn verify(&self, token: &str) -> Option<Actor> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let now = unix_seconds();
        if let Some((actor, expires)) = self.0.remembered.get(token) {
            return (now < expires).then_some(actor);
        }
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.0.key, &self.0.validation).ok()?;
        // Extensions that must be understood are not: there are none (RFC 7515, 4.1.11).
        if decoded.header.crit.is_some() || decoded.claims.exp <= now {
            return None;
        }
        let claims = decoded.claims;
        let actor = Actor { subject: claims.sub, role: claims.role };
        self.0.remembered.insert(token.to_owned(), (actor, claims.exp));
        Some(actor)
    }

    fn actor(&self, parts: &Parts) -> Result<Option<Actor>, Problem> {
        let Some(value) = parts.headers.get(header::AUTHORIZATION) else { return Ok(None) };
        value
            .to_str()
            .ok()
            .and_then(|text| text.strip_prefix("Bearer ").or_else(|| text.strip_prefix("bearer ")))
            .and_then(|token| self.verify(token.trim()))
            .map(Some)
            .ok_or_else(|| Problem::new(&problem::UNAUTHENTICATED, "the access token is not valid"))
    }
}

impl<S> FromRequestParts<S> for Actor
where
    Access: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        Access::from_ref(state)
            .actor(parts)?
            .ok_or_else(|| Problem::new(&problem::UNAUTHENTICATED, "this needs an access token"))
    }
}

impl<S> OptionalFromRequestParts<S> for Actor
where
    Access: FromRef<S>,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>, Problem> {
        Access::from_ref(state).actor(parts)
    }
}

fn check_secret(secret: &[u8]) -> Result<(), KeyError> {
    if secret.len() < MIN_SECRET { Err(KeyError::ShortSecret(secret.len())) } else { Ok(()) }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;

    const SECRET: &[u8; 32] = b"0123456789abcdef0123456789abcdef";

    fn actor() -> Actor {
        Actor { subject: Uuid::from_u128(7), role: Role::Customer }
    }

    fn hour() -> Duration {
        Duration::from_secs(3600)
    }

    fn unsigned(header: &str, claims: &str) -> String {
        format!("{}.{}.", BASE64.encode(header), BASE64.encode(claims))
    }

    #[test]
    fn a_token_of_the_shop_is_trusted_and_remembered() {
        let pkcs8 = generate_ed25519().unwrap();
        for (issuer, access) in [
            (Issuer::eddsa(&pkcs8).unwrap(), Access::eddsa(&pkcs8).unwrap()),
            (Issuer::hs256(SECRET).unwrap(), Access::hs256(SECRET).unwrap()),
        ] {
            let token = issuer.issue(&actor(), hour()).unwrap();
            assert_eq!(access.verify(&token), Some(actor()));
            assert_eq!(access.verify(&token), Some(actor()), "the second time from memory");
        }
    }

    #[test]
    fn forged_expired_and_odd_tokens_are_not_trusted() {
        let pkcs8 = generate_ed25519().unwrap();
        let access = Access::eddsa(&pkcs8).unwrap();
        let issuer = Issuer::eddsa(&pkcs8).unwrap();
        let good = issuer.issue(&actor(), hour()).unwrap();
        let claims = r#"{"iss":"tidemark","sub":"00000000-0000-0000-0000-000000000007","role":"admin","iat":1,"exp":99999999999}"#;
        let mut bad = vec![
            issuer.issue(&actor(), Duration::ZERO).unwrap(),
            Issuer::eddsa(&generate_ed25519().unwrap()).unwrap().issue(&actor(), hour()).unwrap(),
            Issuer::hs256(SECRET).unwrap().issue(&actor(), hour()).unwrap(),
            good[..good.rfind('.').unwrap()].to_owned(),
            format!("{}.", &good[..good.rfind('.').unwrap()]),
            format!("{good}.x"),
            format!("{good}A"),
            good.replace('.', ""),
            String::new(),
            ".".to_owned(),
            "..".to_owned(),
            "a".repeat(65_536),
        ];
        for algorithm in ["none", "None", "NONE", "nOnE", "HS256", "RS256", "EdDSA"] {
            bad.push(unsigned(&format!(r#"{{"alg":"{algorithm}","typ":"JWT"}}"#), claims));
        }
        // The public key as an HMAC secret: works against verifiers that let the token choose the algorithm.
        let public = Ed25519KeyPair::from_pkcs8(&pkcs8).unwrap().public_key().as_ref().to_vec();
        bad.push(Issuer::hs256(&public).unwrap().issue(&actor(), hour()).unwrap());
        for token in &bad {
            assert_eq!(access.verify(token), None, "{token:.80}");
        }
        assert!(access.verify(&good).is_some());
    }

    #[test]
    fn every_claim_is_needed_and_must_fit() {
        let access = Access::hs256(SECRET).unwrap();
        let sign = |claims: serde_json::Value| {
            jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(SECRET))
                .unwrap()
        };
        let full = serde_json::json!({"iss":"tidemark","sub":Uuid::from_u128(7),"role":"staff","iat":1,"exp":99_999_999_999_u64});
        assert!(access.verify(&sign(full.clone())).is_some());
        for claim in ["iss", "sub", "role", "iat", "exp"] {
            let mut claims = full.clone();
            claims.as_object_mut().unwrap().remove(claim);
            assert!(access.verify(&sign(claims)).is_none(), "without {claim}");
        }
        for (claim, value) in [
            ("iss", serde_json::json!("somebody")),
            ("sub", serde_json::json!("7")),
            ("role", serde_json::json!("root")),
            ("role", serde_json::json!("Admin")),
            ("exp", serde_json::json!(1)),
            ("exp", serde_json::json!("soon")),
            ("nbf", serde_json::json!(99_999_999_998_u64)),
        ] {
            let mut claims = full.clone();
            claims[claim] = value;
            assert!(access.verify(&sign(claims.clone())).is_none(), "{claims}");
        }
    }

    #[test]
    fn short_secrets_are_refused() {
        assert!(Access::hs256(b"short").is_err());
        assert!(Issuer::hs256(b"short").is_err());
    }
}
