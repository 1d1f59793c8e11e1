//! Signed access tokens (JWT, RFC 7519): issuing, verifying, roles.
//!
//! They follow RFC 9068 (`at+jwt`) and RFC 8725: the algorithm is the configured keys' and no other, a token cannot
//! choose it; it names one of the configured keys by its id and brings none of its own. A token that was verified once
//! is remembered until it expires, so that a signature check is no bottleneck. A token of a session is refused once
//! the session has ended ([`crate::revocations`]).

use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use axum::extract::{FromRef, FromRequestParts, OptionalFromRequestParts};
use axum::http::header;
use axum::http::request::Parts;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::client::Client;
use crate::limits::Class;
use crate::problem::{self, Problem};
use crate::revocations::Revocations;

/// Who issues the tokens that are accepted, and for whom.
const ISSUER: &str = "tidemark";
const AUDIENCE: &str = "tidemark";

/// What an access token says it is (RFC 9068).
const TYPE: &str = "at+jwt";

/// How many verified tokens are remembered.
const REMEMBERED: usize = 20_000;

/// The longest token that is looked at.
const MAX_TOKEN: usize = 4_096;

/// How far the clock of whoever issued a token may be ahead, in seconds.
const CLOCK_SKEW: u64 = 60;

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
    const ALL: [Self; 5] = [Self::Customer, Self::Staff, Self::Analyst, Self::Operator, Self::Admin];

    /// The names of all roles.
    #[must_use]
    pub fn names() -> [&'static str; Self::ALL.len()] {
        Self::ALL.map(Self::as_str)
    }

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
        Self::ALL
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
    /// The session that the token is of; none for tokens that operators make.
    pub session: Option<Uuid>,
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

    /// Lets an account's owner pass, these roles, and admins. To everybody else the account does not exist.
    ///
    /// # Errors
    /// 404 for others.
    pub fn require_account(&self, id: Uuid, allowed: &[Role]) -> Result<(), Problem> {
        if self.require(allowed).is_ok() { Ok(()) } else { self.require_self(id) }
    }

    /// Lets an account's owner pass, and nobody else.
    ///
    /// # Errors
    /// 404 for others, admins among them.
    pub fn require_self(&self, id: Uuid) -> Result<(), Problem> {
        if self.subject == id { Ok(()) } else { Err(problem::no_account(id)) }
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
    aud: String,
    sub: Uuid,
    role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sid: Option<Uuid>,
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

/// Signs tokens. Cheap to clone.
#[derive(Clone)]
pub struct Issuer {
    header: Arc<Header>,
    key: Arc<EncodingKey>,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("kid", &self.header.kid).finish_non_exhaustive()
    }
}

impl Issuer {
    /// With an HMAC secret (HS256).
    ///
    /// # Errors
    /// [`KeyError::ShortSecret`].
    pub fn hs256(secret: &[u8]) -> Result<Self, KeyError> {
        check_secret(secret)?;
        Ok(Self::new(Algorithm::HS256, None, EncodingKey::from_secret(secret)))
    }

    /// With an Ed25519 private key in PKCS#8 (EdDSA).
    ///
    /// # Errors
    /// [`KeyError::NotEd25519`].
    pub fn eddsa(pkcs8: &[u8]) -> Result<Self, KeyError> {
        let public = PublicKey::of(pkcs8)?;
        Ok(Self::new(Algorithm::EdDSA, Some(public.id()), EncodingKey::from_ed_der(pkcs8)))
    }

    fn new(algorithm: Algorithm, kid: Option<String>, key: EncodingKey) -> Self {
        let header = Header { typ: Some(TYPE.to_owned()), kid, ..Header::new(algorithm) };
        Self { header: Arc::new(header), key: Arc::new(key) }
    }

    /// A token for an actor that expires after `ttl`.
    ///
    /// # Errors
    /// [`KeyError::Sign`].
    pub fn issue(&self, actor: &Actor, ttl: Duration) -> Result<String, KeyError> {
        let now = unix_seconds();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: actor.subject,
            role: actor.role,
            sid: actor.session,
            iat: now,
            exp: now.saturating_add(ttl.as_secs()),
        };
        Ok(jsonwebtoken::encode(&self.header, &claims, &self.key)?)
    }
}

/// The public half of an Ed25519 key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

impl PublicKey {
    /// Of a private key in PKCS#8.
    ///
    /// # Errors
    /// [`KeyError::NotEd25519`].
    pub fn of(pkcs8: &[u8]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| KeyError::NotEd25519)?;
        Ok(Self(pair.public_key().as_ref().to_vec()))
    }

    fn x(&self) -> String {
        URL_SAFE_NO_PAD.encode(&self.0)
    }

    /// Its thumbprint (RFC 7638), which tokens name it by.
    #[must_use]
    pub fn id(&self) -> String {
        let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, self.x());
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, canonical.as_bytes());
        URL_SAFE_NO_PAD.encode(hash.as_ref())
    }

    /// As a JSON Web Key (RFC 8037).
    #[must_use]
    pub fn jwk(&self) -> serde_json::Value {
        serde_json::json!({
            "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": self.id(), "x": self.x(),
        })
    }
}

/// Verifies tokens. Cheap to clone.
#[derive(Clone)]
pub struct Access(Arc<Verifier>);

struct Verifier {
    keys: RwLock<Arc<Keys>>,
    validation: Validation,
    remembered: Cache<String, (Actor, u64)>,
    revocations: Revocations,
}

/// What tokens may be signed with.
struct Keys {
    /// Each with its id; a secret has none.
    keys: Vec<(Option<String>, DecodingKey)>,
    /// The JSON Web Key Set (RFC 7517).
    published: serde_json::Value,
}

impl Keys {
    fn of_public(keys: &[PublicKey]) -> Self {
        Self {
            keys: keys.iter().map(|key| (Some(key.id()), DecodingKey::from_ed_der(&key.0))).collect(),
            published: serde_json::json!({ "keys": keys.iter().map(PublicKey::jwk).collect::<Vec<_>>() }),
        }
    }
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
        let keys = Keys {
            keys: vec![(None, DecodingKey::from_secret(secret))],
            published: serde_json::json!({ "keys": [] }),
        };
        Ok(Self::new(keys, Algorithm::HS256))
    }

    /// Accepts tokens of any of these Ed25519 keys (EdDSA).
    #[must_use]
    pub fn eddsa(keys: &[PublicKey]) -> Self {
        Self::new(Keys::of_public(keys), Algorithm::EdDSA)
    }

    fn new(keys: Keys, algorithm: Algorithm) -> Self {
        let mut validation = Validation::new(algorithm);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "sub", "aud"]);
        validation.validate_nbf = true;
        validation.leeway = 0;
        Self(Arc::new(Verifier {
            keys: RwLock::new(Arc::new(keys)),
            validation,
            remembered: Cache::new(REMEMBERED),
            revocations: Revocations::default(),
        }))
    }

    /// Accepts tokens of these keys from now on, and of no others.
    pub fn use_keys(&self, keys: &[PublicKey]) {
        *self.0.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Keys::of_public(keys));
        self.0.remembered.clear();
    }

    /// The public keys, as a JSON Web Key Set (RFC 7517). A secret is not among them.
    #[must_use]
    pub fn published(&self) -> serde_json::Value {
        self.keys().published.clone()
    }

    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.0.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sessions whose tokens are refused.
    #[must_use]
    pub fn revocations(&self) -> &Revocations {
        &self.0.revocations
    }

    /// Who a token stands for, `None` if it is not to be trusted. It says no more: a reason would help a forger.
    #[must_use]
    pub fn verify(&self, token: &str) -> Option<Actor> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let now = unix_seconds();
        let (actor, expires) = match self.0.remembered.get(token) {
            Some(known) => known,
            None => {
                let known = self.examine(token)?;
                self.0.remembered.insert(token.to_owned(), known);
                known
            }
        };
        let revoked = actor.session.is_some_and(|session| self.0.revocations.contains(session));
        (now < expires && !revoked).then_some(actor)
    }

    fn examine(&self, token: &str) -> Option<(Actor, u64)> {
        let header = jsonwebtoken::decode_header(token).ok()?;
        // Nothing that brings a key of its own, or asks for what is not understood here.
        let plain = header.jku.is_none()
            && header.jwk.is_none()
            && header.x5u.is_none()
            && header.x5c.is_none()
            && header.crit.is_none()
            && header.enc.is_none()
            && header.zip.is_none();
        if !plain || header.typ.as_deref() != Some(TYPE) {
            return None;
        }
        let keys = self.keys();
        let (_, key) = keys.keys.iter().find(|(id, _)| *id == header.kid)?;
        let claims = jsonwebtoken::decode::<Claims>(token, key, &self.0.validation).ok()?.claims;
        // Clocks differ a little; a token of tomorrow is none.
        if claims.iat > unix_seconds() + CLOCK_SKEW {
            return None;
        }
        Some((Actor { subject: claims.sub, role: claims.role, session: claims.sid }, claims.exp))
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
        let actor = Access::from_ref(state)
            .actor(parts)?
            .ok_or_else(|| Problem::new(&problem::UNAUTHENTICATED, "this needs an access token"))?;
        // Commands of one account, from however many addresses.
        if !parts.method.is_safe()
            && let Some(client) = parts.extensions.get::<Client>()
        {
            client.check_id(Class::Account, actor.subject).await?;
        }
        Ok(actor)
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

    const SECRET: &[u8; 32] = b"0123456789abcdef0123456789abcdef";

    fn actor() -> Actor {
        Actor { subject: Uuid::from_u128(7), role: Role::Customer, session: None }
    }

    fn hour() -> Duration {
        Duration::from_secs(3600)
    }

    fn unsigned(header: &str, claims: &str) -> String {
        format!("{}.{}.", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn a_token_of_the_shop_is_trusted_and_remembered() {
        let pkcs8 = generate_ed25519().unwrap();
        for (issuer, access) in [
            (Issuer::eddsa(&pkcs8).unwrap(), Access::eddsa(&[PublicKey::of(&pkcs8).unwrap()])),
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
        let access = Access::eddsa(&[PublicKey::of(&pkcs8).unwrap()]);
        let issuer = Issuer::eddsa(&pkcs8).unwrap();
        let good = issuer.issue(&actor(), hour()).unwrap();
        let claims = r#"{"iss":"tidemark","aud":"tidemark","sub":"00000000-0000-0000-0000-000000000007","role":"admin","iat":1,"exp":99999999999}"#;
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
            bad.push(unsigned(&format!(r#"{{"alg":"{algorithm}","typ":"at+jwt"}}"#), claims));
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
            let header = Header { typ: Some(TYPE.to_owned()), ..Header::new(Algorithm::HS256) };
            jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(SECRET)).unwrap()
        };
        let full = serde_json::json!({"iss":"tidemark","aud":"tidemark","sub":Uuid::from_u128(7),"role":"staff","iat":1,"exp":99_999_999_999_u64});
        assert!(access.verify(&sign(full.clone())).is_some());
        for claim in ["iss", "aud", "sub", "role", "iat", "exp"] {
            let mut claims = full.clone();
            claims.as_object_mut().unwrap().remove(claim);
            assert!(access.verify(&sign(claims)).is_none(), "without {claim}");
        }
        for (claim, value) in [
            ("iss", serde_json::json!("somebody")),
            ("aud", serde_json::json!("another shop")),
            ("sid", serde_json::json!("no id")),
            ("sub", serde_json::json!("7")),
            ("role", serde_json::json!("root")),
            ("role", serde_json::json!("Admin")),
            ("exp", serde_json::json!(1)),
            ("exp", serde_json::json!("soon")),
            ("iat", serde_json::json!(unix_seconds() + 3_600)),
            ("nbf", serde_json::json!(99_999_999_998_u64)),
        ] {
            let mut claims = full.clone();
            claims[claim] = value;
            assert!(access.verify(&sign(claims.clone())).is_none(), "{claims}");
        }
    }

    #[test]
    fn a_token_brings_no_key_and_names_one_that_is_configured() {
        let pkcs8 = generate_ed25519().unwrap();
        let access = Access::eddsa(&[PublicKey::of(&pkcs8).unwrap()]);
        let claims = serde_json::json!({"iss":"tidemark","aud":"tidemark","sub":Uuid::from_u128(7),"role":"admin","iat":1,"exp":99_999_999_999_u64});
        let sign = |change: fn(&mut Header)| {
            let mut header = Header {
                typ: Some(TYPE.to_owned()),
                kid: Some(PublicKey::of(&pkcs8).unwrap().id()),
                ..Header::new(Algorithm::EdDSA)
            };
            change(&mut header);
            jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(&pkcs8)).unwrap()
        };
        assert!(access.verify(&sign(|_| {})).is_some());
        for change in [
            (|header| header.kid = None) as fn(&mut Header),
            |header| header.kid = Some(String::new()),
            |header| header.kid = Some("../../dev/null".to_owned()),
            |header| header.typ = None,
            |header| header.typ = Some("JWT".to_owned()),
            |header| header.jku = Some("https://example.org/keys".to_owned()),
            |header| header.x5u = Some("https://example.org/keys".to_owned()),
            |header| header.crit = Some(vec!["exp".to_owned()]),
        ] {
            let token = sign(change);
            assert!(access.verify(&token).is_none(), "{:?}", jsonwebtoken::decode_header(&token));
        }
    }

    #[test]
    fn keys_are_rotated_without_refusing_tokens_of_the_former() {
        let (old, new) = (generate_ed25519().unwrap(), generate_ed25519().unwrap());
        let public = |key: &[u8]| PublicKey::of(key).unwrap();
        let access = Access::eddsa(&[public(&old)]);
        let token = Issuer::eddsa(&old).unwrap().issue(&actor(), hour()).unwrap();
        let newer = Issuer::eddsa(&new).unwrap().issue(&actor(), hour()).unwrap();
        assert!(access.verify(&token).is_some() && access.verify(&newer).is_none());
        access.use_keys(&[public(&new), public(&old)]);
        assert!(access.verify(&token).is_some() && access.verify(&newer).is_some());
        assert_eq!(access.published()["keys"].as_array().unwrap().len(), 2);
        access.use_keys(&[public(&new)]);
        assert!(access.verify(&token).is_none() && access.verify(&newer).is_some());
    }

    #[test]
    fn tokens_of_a_session_that_has_ended_are_refused_at_once() {
        let access = Access::hs256(SECRET).unwrap();
        let mut of_session = actor();
        of_session.session = Some(Uuid::from_u128(9));
        let token = Issuer::hs256(SECRET).unwrap().issue(&of_session, hour()).unwrap();
        let other = Issuer::hs256(SECRET).unwrap().issue(&actor(), hour()).unwrap();
        assert_eq!(access.verify(&token), Some(of_session));
        access.revocations().add([(Uuid::from_u128(9), SystemTime::now() + hour())]);
        assert_eq!(access.verify(&token), None, "also from memory");
        assert_eq!(access.verify(&other), Some(actor()));
    }

    proptest::proptest! {
        /// Whatever it is, it does no harm and is not trusted.
        #[test]
        fn no_text_is_taken_for_a_token(text in ".{0,300}", at in 0_usize..300, byte in 0_u8..128) {
            let issuer = Issuer::hs256(SECRET).unwrap();
            let access = Access::hs256(SECRET).unwrap();
            proptest::prop_assert_eq!(access.verify(&text), None);
            let good = issuer.issue(&actor(), hour()).unwrap();
            let mut bytes = good.clone().into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            let changed = String::from_utf8(bytes).unwrap();
            proptest::prop_assume!(changed != good);
            proptest::prop_assert_eq!(access.verify(&changed), None, "{}", changed);
        }
    }

    #[test]
    fn short_secrets_are_refused() {
        assert!(Access::hs256(b"short").is_err());
        assert!(Issuer::hs256(b"short").is_err());
    }
}
