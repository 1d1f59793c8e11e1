//! Forged, abused and spoilt tokens, on every route of the API's document that takes one: none is accepted, and all
//! get the same answer. They are made from a token of the shop's own, whatever stands in it.

use std::collections::BTreeSet;
use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
    RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RsaEncoding,
};
use aws_lc_rs::{hmac, rsa};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD as BASE64};
use futures_util::StreamExt;
use reqwest::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

use crate::api::{Operation, operations};
use crate::harness::{SECRET, Shop, issued, tidemark, tidemark_with_key};

/// How many requests are on their way at once.
const AT_ONCE: usize = 8;

/// Something that signs.
enum Key {
    Hmac(Vec<u8>),
    Ed25519(Box<Ed25519KeyPair>),
    Rsa(rsa::KeyPair),
    Ecdsa(EcdsaKeyPair),
}

impl Key {
    /// A signature of the kind that `algorithm` names, or that of the key, if that is no kind of its own.
    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Hmac(secret) => {
                let kind = match algorithm {
                    "HS384" => hmac::HMAC_SHA384,
                    "HS512" => hmac::HMAC_SHA512,
                    _ => hmac::HMAC_SHA256,
                };
                hmac::sign(&hmac::Key::new(kind, secret), message).as_ref().to_vec()
            }
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Rsa(pair) => {
                let kind: &'static dyn RsaEncoding = match algorithm {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(kind, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            }
            Self::Ecdsa(pair) => pair.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
        }
    }
}

/// A token of these texts, signed.
fn token_of(header: &str, claims: &[u8], key: &Key) -> String {
    let algorithm = serde_json::from_str::<Value>(header)
        .ok()
        .and_then(|header| Some(header["alg"].as_str()?.to_owned()));
    let message = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
    let signature = key.sign(&algorithm.unwrap_or_default(), message.as_bytes());
    format!("{message}.{}", BASE64.encode(signature))
}

/// A token that the shop has issued, and the key that it was signed with.
struct Genuine {
    token: String,
    header: Map<String, Value>,
    claims: Map<String, Value>,
    key: Key,
    /// What everybody may know of the key, if there is such a thing.
    public: Option<Vec<u8>>,
}

impl Genuine {
    fn of(token: String, key: Key, public: Option<Vec<u8>>) -> Self {
        let part = |n: usize| {
            let bytes = BASE64.decode(token.split('.').nth(n).unwrap()).unwrap();
            serde_json::from_slice(&bytes).unwrap()
        };
        Self { header: part(0), claims: part(1), token, key, public }
    }

    fn algorithm(&self) -> &str {
        self.header["alg"].as_str().unwrap()
    }

    fn claims_text(&self) -> String {
        Value::Object(self.claims.clone()).to_string()
    }

    fn header_with(&self, changes: &Value) -> String {
        changed(&self.header, changes)
    }

    /// With another header, by any key.
    fn with_header(&self, changes: &Value, key: &Key) -> String {
        token_of(&self.header_with(changes), self.claims_text().as_bytes(), key)
    }

    /// With other claims, by the shop's own key.
    fn with_claims(&self, changes: &Value) -> String {
        self.with_claims_text(changed(&self.claims, changes).as_bytes())
    }

    fn with_claims_text(&self, claims: &[u8]) -> String {
        token_of(&Value::Object(self.header.clone()).to_string(), claims, &self.key)
    }
}

/// A member that is `"-"` is left out.
fn changed(members: &Map<String, Value>, changes: &Value) -> String {
    let mut members = members.clone();
    for (name, value) in changes.as_object().unwrap() {
        if value == "-" {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    Value::Object(members).to_string()
}

/// What is sent in the place of a token.
struct Forgery {
    name: String,
    headers: HeaderMap,
    query: String,
}

#[derive(Default)]
struct Forgeries(Vec<Forgery>);

impl Forgeries {
    fn token(&mut self, name: impl Into<String>, token: impl AsRef<[u8]>) {
        self.authorization(name, &[b"Bearer ", token.as_ref()].concat());
    }

    fn authorization(&mut self, name: impl Into<String>, value: &[u8]) {
        self.sent(name, &[(AUTHORIZATION, value)], "");
    }

    fn sent(&mut self, name: impl Into<String>, headers: &[(HeaderName, &[u8])], query: &str) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.clone(), HeaderValue::from_bytes(value).unwrap());
        }
        self.0.push(Forgery { name: name.into(), headers: map, query: query.to_owned() });
    }
}

/// Signatures that are not the shop's.
fn signatures(genuine: &Genuine, other: &str, forged: &mut Forgeries) {
    let token = genuine.token.as_str();
    let (message, signature) = token.rsplit_once('.').unwrap();
    let bytes = BASE64.decode(signature).unwrap();
    for bit in [0, 7, bytes.len() * 4, bytes.len() * 8 - 1] {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        forged.token(
            format!("signature with bit {bit} flipped"),
            format!("{message}.{}", BASE64.encode(flipped)),
        );
    }
    let of = |bytes: &[u8]| format!("{message}.{}", BASE64.encode(bytes));
    forged.token("signature of zeros", of(&vec![0; bytes.len()]));
    forged.token("signature of ones", of(&vec![255; bytes.len()]));
    forged.token("signature cut short", of(&bytes[..bytes.len() - 1]));
    forged.token("half a signature", of(&bytes[..bytes.len() / 2]));
    forged.token("signature of one byte", of(&bytes[..1]));
    forged.token("signature twice", of(&[bytes.clone(), bytes.clone()].concat()));
    forged.token("signature reversed", of(&bytes.iter().rev().copied().collect::<Vec<_>>()));
    forged.token("no signature", format!("{message}."));
    forged.token("no third part", message);
    forged.token("another token's signature", format!("{message}.{}", other.rsplit_once('.').unwrap().1));
    forged.token("another token's claims", {
        let header = token.split_once('.').unwrap().0;
        format!("{header}.{}.{signature}", other.split('.').nth(1).unwrap())
    });
    forged.token("signature in hexadecimal", {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{message}.{hex}")
    });
    forged.token("signature with padding", format!("{token}="));
    // The bits behind the last whole byte must be zero: else one signature has many texts.
    let last = signature.chars().next_back().unwrap();
    let next = |c: char| {
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        alphabet.chars().cycle().skip_while(|other| *other != c).nth(1).unwrap()
    };
    forged.token("another text of the signature", format!("{}{}", &token[..token.len() - 1], next(last)));
    let with_dash = (0..64)
        .map(|n| genuine.with_claims(&json!({ "exp": genuine.claims["exp"].as_u64().unwrap() + n })))
        .find(|token| token.rsplit_once('.').unwrap().1.contains(['-', '_']))
        .unwrap();
    forged.token("signature in the other alphabet", with_dash.replace('-', "+").replace('_', "/"));
}

/// Algorithms and keys that are not the shop's.
fn keys(genuine: &Genuine, forged: &mut Forgeries) {
    let (message, signature) = genuine.token.rsplit_once('.').unwrap();
    let claims = message.split_once('.').unwrap().1;
    for none in ["none", "None", "NONE", "nOnE", "none "] {
        let header = BASE64.encode(genuine.header_with(&json!({ "alg": none })));
        forged.token(format!("alg {none:?}, no signature"), format!("{header}.{claims}."));
        forged.token(format!("alg {none:?}, old signature"), format!("{header}.{claims}.{signature}"));
    }
    // The right key, and an algorithm that is not its own.
    for alg in [
        json!("-"),
        json!(null),
        json!(""),
        json!(1),
        json!([genuine.algorithm()]),
        json!({ "alg": genuine.algorithm() }),
        json!(genuine.algorithm().to_lowercase()),
        json!(format!("{} ", genuine.algorithm())),
        json!("RS256"),
        json!("ES256"),
        json!("ES256K"),
        json!("PS512"),
        json!("dir"),
        json!("ROT13"),
    ] {
        let name = format!("alg {alg}, the right key");
        forged.token(name, genuine.with_header(&json!({ "alg": alg }), &genuine.key));
    }
    let attacker = Key::Ed25519(Box::new(Ed25519KeyPair::generate().unwrap()));
    let rsa = Key::Rsa(rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap());
    let ecdsa = Key::Ecdsa(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap());
    for (alg, key) in [
        ("EdDSA", &attacker),
        ("Ed25519", &attacker),
        ("RS256", &rsa),
        ("RS384", &rsa),
        ("RS512", &rsa),
        ("PS256", &rsa),
        ("ES256", &ecdsa),
        ("EdDSA", &ecdsa),
        ("HS256", &attacker),
    ] {
        let kind = match key {
            Key::Ed25519(_) => "Ed25519",
            Key::Rsa(_) => "RSA",
            _ => "P-256",
        };
        forged.token(
            format!("alg {alg}, a stranger's {kind} key"),
            genuine.with_header(&json!({ "alg": alg }), key),
        );
    }
    // Secrets that a stranger can guess or knows; the public key as a secret is taken by who lets tokens choose.
    let mut secrets: Vec<(String, Vec<u8>)> =
        ["", "secret", "password", "changeme", "tidemark", "your-256-bit-secret"]
            .map(|secret| (format!("{secret:?}"), secret.as_bytes().to_vec()))
            .into();
    secrets.push(("32 zeros".to_owned(), vec![0; 32]));
    if let Some(public) = &genuine.public {
        let spki = [b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00".as_slice(), public].concat();
        let pem =
            format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(&spki));
        let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": BASE64.encode(public) }).to_string();
        secrets.push(("the public key".to_owned(), public.clone()));
        secrets.push(("the public key in SPKI".to_owned(), spki));
        secrets.push(("the public key in PEM".to_owned(), pem.into_bytes()));
        secrets.push(("the public key as a JWK".to_owned(), jwk.into_bytes()));
        secrets.push(("the public key in base64".to_owned(), BASE64.encode(public).into_bytes()));
    }
    if let Key::Hmac(secret) = &genuine.key {
        secrets.push(("half the secret".to_owned(), secret[..secret.len() / 2].to_vec()));
        secrets.push(("the secret and a line's end".to_owned(), [secret.as_slice(), b"\n"].concat()));
        secrets.push(("the secret in capitals".to_owned(), secret.to_ascii_uppercase()));
        for alg in ["HS384", "HS512"] {
            forged.token(
                format!("alg {alg}, the secret"),
                genuine.with_header(&json!({ "alg": alg }), &genuine.key),
            );
        }
    }
    for (name, secret) in secrets {
        for alg in ["HS256", "HS512"] {
            forged.token(
                format!("alg {alg}, {name} as secret"),
                genuine.with_header(&json!({ "alg": alg }), &Key::Hmac(secret.clone())),
            );
        }
    }
    key_headers(genuine, &attacker, forged);
}

/// Headers that tell a verifier where to find the key.
fn key_headers(genuine: &Genuine, attacker: &Key, forged: &mut Forgeries) {
    let Key::Ed25519(pair) = attacker else { return };
    let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": BASE64.encode(pair.public_key().as_ref()), "kid": "mine" });
    for (name, changes) in [
        ("jwk", json!({ "alg": "EdDSA", "jwk": jwk })),
        ("jwk and kid", json!({ "alg": "EdDSA", "jwk": jwk, "kid": "mine" })),
        ("jwks", json!({ "alg": "EdDSA", "jwks": { "keys": [jwk] } })),
        ("jku", json!({ "alg": "EdDSA", "jku": "http://127.0.0.1:9/jwks.json" })),
        ("x5u", json!({ "alg": "EdDSA", "x5u": "http://127.0.0.1:9/chain.pem" })),
        ("x5c", json!({ "alg": "EdDSA", "x5c": ["MIIB"] })),
        ("iss elsewhere", json!({ "alg": "EdDSA", "iss": "http://127.0.0.1:9" })),
    ] {
        forged.token(format!("a stranger's key, named by {name}"), genuine.with_header(&changes, attacker));
    }
    let empty = Key::Hmac(Vec::new());
    for kid in [
        "",
        "mine",
        "/dev/null",
        "../../../../../../../dev/null",
        "file:///dev/null",
        "/etc/passwd",
        "http://127.0.0.1:9/key",
        "' OR '1'='1",
        "x' UNION SELECT 'secret' --",
        "$(id)",
        "a\u{0}b",
        "a\r\nb",
    ] {
        forged.token(
            format!("kid {kid:?}, an empty secret"),
            genuine.with_header(&json!({ "alg": "HS256", "kid": kid }), &empty),
        );
        forged.token(
            format!("kid {kid:?}, a stranger's key"),
            genuine.with_header(&json!({ "alg": "EdDSA", "kid": kid }), attacker),
        );
    }
}

/// Claims that do not hold, signed with the shop's own key.
fn claims(genuine: &Genuine, forged: &mut Forgeries) {
    let now = u64::try_from(chrono::Utc::now().timestamp()).unwrap();
    for (name, changes) in [
        ("expired", json!({ "exp": now - 1 })),
        ("expires now", json!({ "exp": now })),
        ("expired long ago", json!({ "exp": 1 })),
        ("expires at 0", json!({ "exp": 0 })),
        ("expired before 1970", json!({ "exp": -1 })),
        ("expires at a text", json!({ "exp": (now + 60).to_string() })),
        ("expires at a date", json!({ "exp": "2999-01-01T00:00:00Z" })),
        ("not valid yet", json!({ "nbf": now + 3_600 })),
        ("issued by somebody", json!({ "iss": "somebody" })),
        ("issued by nobody", json!({ "iss": "" })),
        ("issuer in capitals", json!({ "iss": "TIDEMARK" })),
        ("subject no UUID", json!({ "sub": "admin" })),
        ("subject empty", json!({ "sub": "" })),
        ("subject a number", json!({ "sub": 1 })),
        ("subject SQL", json!({ "sub": "' OR 1=1 --" })),
        ("role unknown", json!({ "role": "root" })),
        ("role in capitals", json!({ "role": "ADMIN" })),
        ("role empty", json!({ "role": "" })),
        ("role a list", json!({ "role": ["admin"] })),
        ("role a number", json!({ "role": 4 })),
    ] {
        forged.token(format!("{name}, the right key"), genuine.with_claims(&changes));
    }
    let needed = ["iss", "sub", "role", "iat", "exp"];
    for claim in genuine.claims.keys().filter(|claim| needed.contains(&claim.as_str()) || *claim == "aud") {
        forged.token(format!("without {claim}"), genuine.with_claims(&json!({ claim: "-" })));
        for value in [json!(null), json!([]), json!({}), json!(true), json!(1.5), json!("\u{0}")] {
            forged.token(format!("{claim} is {value}"), genuine.with_claims(&json!({ claim: value })));
        }
    }
    if genuine.claims.contains_key("aud") {
        for aud in [json!("somebody"), json!(["somebody"]), json!("")] {
            forged.token(format!("aud is {aud}"), genuine.with_claims(&json!({ "aud": aud })));
        }
    }
    let text = genuine.claims_text();
    let open = &text[..text.len() - 1];
    for (name, claims) in [
        ("role twice", format!("{open},\"role\":\"customer\"}}")),
        ("exp twice", format!("{open},\"exp\":99999999999}}")),
        ("sub twice", format!("{open},\"sub\":{}}}", genuine.claims["sub"])),
        ("exp beyond 64 bits", text.replace(&genuine.claims["exp"].to_string(), "99999999999999999999999")),
        ("exp beyond all", text.replace(&genuine.claims["exp"].to_string(), "1e400")),
        ("exp not a number", text.replace(&genuine.claims["exp"].to_string(), "NaN")),
        ("claims with a rest", format!("{text}{{}}")),
        ("claims cut off", open.to_owned()),
        ("claims with a comma too many", format!("{open},}}")),
        ("claims in single quotes", text.replace('"', "'")),
        ("claims with a byte order mark", format!("\u{feff}{text}")),
        ("claims with a comment", format!("{text}//")),
        ("claims a list", format!("[{text}]")),
        ("claims a text", Value::String(text.clone()).to_string()),
        ("claims null", "null".to_owned()),
        ("claims a number", "1".to_owned()),
        ("claims no object member", "{}".to_owned()),
        ("claims nothing", String::new()),
        ("claims nested deep", "[".repeat(1_000)),
    ] {
        forged.token(name, genuine.with_claims_text(claims.as_bytes()));
    }
    forged.token("claims not UTF-8", genuine.with_claims_text(b"{\"role\":\"\xff\"}"));
    let mut values: Vec<(&String, &Value)> = genuine.claims.iter().collect();
    forged.token("claims without names", genuine.with_claims_text(list(&values).as_bytes()));
    // In the order in which the shop writes them, and so may read them.
    let written =
        String::from_utf8(BASE64.decode(genuine.token.split('.').nth(1).unwrap()).unwrap()).unwrap();
    values.sort_by_key(|(name, _)| written.find(&format!("\"{name}\":")));
    forged.token("claims without names, in order", genuine.with_claims_text(list(&values).as_bytes()));
}

fn list(members: &[(&String, &Value)]) -> String {
    Value::Array(members.iter().map(|(_, value)| (*value).clone()).collect()).to_string()
}

/// Headers of a token that do not hold, signed with the shop's own key.
fn headers(genuine: &Genuine, forged: &mut Forgeries) {
    for (name, changes) in [
        ("an extension that must be known", json!({ "crit": ["exp"] })),
        (
            "an unknown extension that must be known",
            json!({ "crit": ["http://example.org/x"], "http://example.org/x": 1 }),
        ),
        ("a payload that is not encoded", json!({ "crit": ["b64"], "b64": false })),
        ("no extension that must be known", json!({ "crit": [] })),
    ] {
        forged.token(format!("{name}, the right key"), genuine.with_header(&changes, &genuine.key));
    }
    // Once tokens say what they are, others are not access tokens.
    if genuine.header.get("typ").is_some_and(|typ| typ == "at+jwt") {
        for typ in ["-", "JWT", "rt+jwt", "id+jwt", "refresh", "logout+jwt"] {
            forged.token(format!("typ {typ}"), genuine.with_header(&json!({ "typ": typ }), &genuine.key));
        }
    }
    if genuine.header.contains_key("kid") {
        for kid in [json!("unknown"), json!(""), json!(1), json!("../key")] {
            forged.token(
                format!("kid {kid}, the right key"),
                genuine.with_header(&json!({ "kid": kid }), &genuine.key),
            );
        }
    }
    let claims = genuine.claims_text();
    for (name, header) in [
        ("header nothing", String::new()),
        ("header null", "null".to_owned()),
        ("header empty object", "{}".to_owned()),
        ("header a list", format!("[\"{}\"]", genuine.algorithm())),
        ("header a text", format!("\"{}\"", genuine.algorithm())),
        ("header with alg twice", format!("{{\"alg\":\"none\",\"alg\":\"{}\"}}", genuine.algorithm())),
        ("header cut off", format!("{{\"alg\":\"{}\"", genuine.algorithm())),
        ("header of JWE", "{\"alg\":\"dir\",\"enc\":\"A256GCM\"}".to_owned()),
    ] {
        forged.token(name, token_of(&header, claims.as_bytes(), &genuine.key));
    }
}

/// Texts that are no token, and tokens that are sent in another way.
fn forms(genuine: &Genuine, forged: &mut Forgeries) {
    let token = genuine.token.as_str();
    let parts: Vec<&str> = token.split('.').collect();
    for (name, text) in [
        ("no dots", token.replace('.', "")),
        ("one dot", parts[..2].join(".")),
        ("dots alone", "..".to_owned()),
        ("a dot", ".".to_owned()),
        ("a dot before", format!(".{token}")),
        ("a dot behind", format!("{token}.")),
        ("four parts", format!("{token}.{}", parts[2])),
        ("five parts, like JWE", format!("{token}.{}.{}", parts[1], parts[2])),
        ("parts in another order", [parts[1], parts[0], parts[2]].join(".")),
        ("a token in a token", BASE64.encode(token)),
        ("percent signs", token.replace('.', "%2E")),
        ("a NUL behind, in percent", format!("{token}%00")),
        ("in quotes", format!("\"{token}\"")),
        ("a space inside", token.replacen('.', ". ", 1)),
        ("a tab inside", token.replacen('.', "\t.", 1)),
        ("twice", format!("{token} {token}")),
        ("twice with a comma", format!("{token},{token}")),
        ("something behind", format!("{token} x")),
        ("a letter before", format!("x{token}")),
        ("cut off", token[..token.len() / 2].to_owned()),
        ("reversed", token.chars().rev().collect()),
        (
            "other case",
            token
                .chars()
                .map(|c| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() })
                .collect(),
        ),
        ("in hexadecimal", token.bytes().map(|byte| format!("{byte:02x}")).collect()),
        ("null", "null".to_owned()),
        ("undefined", "undefined".to_owned()),
        ("a UUID", uuid::Uuid::now_v7().to_string()),
        ("a script", "<script>alert(1)</script>".to_owned()),
        ("SQL", "' OR '1'='1' --".to_owned()),
        ("4,097 letters", "a".repeat(4_097)),
        ("30,000 letters", "a".repeat(30_000)),
        ("30,000 dots", ".".repeat(30_000)),
        ("nothing", String::new()),
    ] {
        forged.token(format!("token: {name}"), text);
    }
    forged.token("token: letters beyond ASCII", [token.as_bytes(), "ü".as_bytes()].concat());
    forged.token("token: bytes that are no UTF-8", [token.as_bytes(), b"\xff\xfe"].concat());
    let large = genuine.with_claims(&json!({ "padding": "x".repeat(40_000) }));
    forged.token("token: genuine but for its 50 kB", large);

    let user = format!("Basic {}", STANDARD.encode(format!("admin:{token}")));
    for (name, value) in [
        ("no scheme", token.to_owned()),
        ("Basic", user),
        ("Basic with the token", format!("Basic {token}")),
        ("Token", format!("Token {token}")),
        ("JWT", format!("JWT {token}")),
        ("Digest", format!("Digest username=\"admin\", response=\"{token}\"")),
        ("Negotiate", format!("Negotiate {token}")),
        ("DPoP", format!("DPoP {token}")),
        ("Bearer twice", format!("Bearer Bearer {token}")),
        ("Bearer and no space", format!("Bearer{token}")),
        ("Bearer with a colon", format!("Bearer: {token}")),
        ("Bearer with an equals sign", format!("Bearer={token}")),
        ("Bearer alone", "Bearer".to_owned()),
        ("two schemes", format!("Basic YTpi, Bearer {token}")),
        ("empty", String::new()),
    ] {
        forged.authorization(format!("Authorization: {name}"), value.as_bytes());
    }
    let (bearer, wrong) = (format!("Bearer {token}"), "Bearer x".to_owned());
    forged.sent(
        "Authorization twice, a wrong one first",
        &[(AUTHORIZATION, wrong.as_bytes()), (AUTHORIZATION, bearer.as_bytes())],
        "",
    );
    for name in ["x-access-token", "x-auth-token", "x-authorization", "proxy-authorization", "authorisation"]
    {
        forged.sent(format!("in {name}"), &[(name.parse().unwrap(), bearer.as_bytes())], "");
    }
    for name in ["access_token", "token", "Authorization"] {
        forged.sent(format!("in a cookie {name}"), &[(COOKIE, format!("{name}={token}").as_bytes())], "");
        forged.sent(format!("in the query as {name}"), &[], &format!("?{name}={token}"));
    }
    forged.sent("nowhere", &[], "");
}

/// What was answered, as far as a forger could learn from it.
async fn ask(shop: &Shop, operation: &Operation, forgery: &Forgery) -> (u16, String, String, String) {
    let path = operation.path_with("0190b6a2-8c5e-7c11-b0de-1f0e9a7b0cff");
    let mut request = shop
        .client
        .request(operation.method(), format!("{}{path}{}", shop.base, forgery.query))
        .headers(forgery.headers.clone())
        .header("Idempotency-Key", "forged");
    if operation.method != "GET" {
        request = request.json(&json!({}));
    }
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap();
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    let header = |name: &str| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let told = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
    let detail = if headers.contains_key("content-type") { told("detail") } else { text.clone() };
    (status, told("type"), header("www-authenticate"), detail)
}

/// Every forgery on every protected route.
async fn none_is_accepted(shop: &Shop, genuine: &Genuine, other: &str) {
    let protected: Vec<Operation> =
        operations(shop).await.into_iter().filter(|operation| operation.is_protected).collect();
    let mut forged = Forgeries::default();
    signatures(genuine, other, &mut forged);
    keys(genuine, &mut forged);
    claims(genuine, &mut forged);
    headers(genuine, &mut forged);
    forms(genuine, &mut forged);
    let names: BTreeSet<&str> = forged.0.iter().map(|forgery| forgery.name.as_str()).collect();
    assert_eq!(names.len(), forged.0.len(), "each has its own name");
    assert!(names.len() >= 200 && protected.len() >= 16, "{} kinds, {} routes", names.len(), protected.len());

    // What the forgeries are made with makes good tokens: they are refused for what is wrong with them.
    let mut controls = Forgeries::default();
    controls.token("the shop's own", &genuine.token);
    let longer = json!({ "exp": genuine.claims["exp"].as_u64().unwrap() + 1 });
    controls.token("signed here", genuine.with_claims(&longer));
    let accepted = async |when: &str| {
        for operation in &protected {
            for control in &controls.0 {
                let (status, ..) = ask(shop, operation, control).await;
                assert_ne!(status, 401, "{} {when}: {}", control.name, operation.name());
            }
        }
    };
    accepted("before").await;
    let pairs =
        protected.iter().flat_map(|operation| forged.0.iter().map(move |forgery| (operation, forgery)));
    let answers = futures_util::stream::iter(pairs)
        .map(async |(operation, forgery)| (operation, forgery, ask(shop, operation, forgery).await));
    let mut answers = std::pin::pin!(answers.buffer_unordered(AT_ONCE));
    let (mut asked, mut told, mut wrong) = (0, BTreeSet::new(), Vec::new());
    while let Some((operation, forgery, (status, problem, authenticate, detail))) = answers.next().await {
        if (status, problem.as_str(), authenticate.as_str()) != (401, "/problems/unauthenticated", "Bearer") {
            wrong.push(format!("{}, {}: {status} {problem} {detail}", forgery.name, operation.name()));
        }
        if forgery.headers.contains_key(AUTHORIZATION) {
            told.insert(detail);
        }
        asked += 1;
    }
    assert_eq!(asked, names.len() * protected.len());
    assert!(wrong.is_empty(), "{} accepted or answered otherwise:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(told.len(), 1, "what is wrong with a token is nobody's business: {told:?}");
    accepted("after").await;
    assert_eq!(shop.get("/livez", None, &[]).await.status, 200);
}

/// The key pair under a data directory that has signed a token, whatever its file is called.
fn key_of(data: &Path, token: &str) -> Ed25519KeyPair {
    let (message, signature) = token.rsplit_once('.').unwrap();
    let signature = BASE64.decode(signature).unwrap();
    let files = std::fs::read_dir(data.join("keys")).unwrap();
    let pairs =
        files.filter_map(|file| Ed25519KeyPair::from_pkcs8(&std::fs::read(file.unwrap().path()).ok()?).ok());
    let mut signed = pairs.filter(|pair| pair.sign(message.as_bytes()).as_ref() == signature);
    signed.next().expect("the shop's key lies under its data directory")
}

#[tokio::test]
async fn no_forged_token_is_accepted_by_a_shop_with_a_key() {
    let shop = Shop::with_its_own_key().await;
    let token =
        async |role| issued(tidemark_with_key(), shop.data.path(), role, crate::harness::CUSTOMER).await;
    let (admin, other) = (token("admin").await, token("customer").await);
    let pair = key_of(shop.data.path(), &admin);
    let public = pair.public_key().as_ref().to_vec();
    let genuine = Genuine::of(admin, Key::Ed25519(Box::new(pair)), Some(public));
    assert_eq!(genuine.algorithm(), "EdDSA");
    none_is_accepted(&shop, &genuine, &other).await;
}

#[tokio::test]
async fn no_forged_token_is_accepted_by_a_shop_with_a_secret() {
    let shop = Shop::open().await;
    let token = async |role| issued(tidemark(), shop.data.path(), role, crate::harness::CUSTOMER).await;
    let (admin, other) = (token("admin").await, token("customer").await);
    let genuine = Genuine::of(admin, Key::Hmac(SECRET.as_bytes().to_vec()), None);
    assert_eq!(genuine.algorithm(), "HS256");
    none_is_accepted(&shop, &genuine, &other).await;
}
