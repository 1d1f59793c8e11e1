//! Ready bodies and changes in Redis: what projectors put there and query services read.
//!
//! A *generation* is everything in Redis that belongs together: `at`, the number of the newest change that all of its
//! bodies know ([`crate::feed`]), the bodies, and the stream of changes. A pointer names the current one and the life
//! of the server ([`crate::feed::End::incarnation`]) that numbered its changes. What another generation holds is never
//! looked at, and expires.
//!
//! Two rules make a body worth as much as a read of the views, whatever is lost in between:
//! * A body is put only if its own number is newer than that of the body in its place and not below `at`, and when `at`
//!   moves over a change of its key, a body that does not know the change goes. So a body that is there knows every
//!   change of its key up to the greater of its own number and `at`.
//! * Who moves `at` says from where. Whoever slept finds it moved and stops.
//!
//! Everything here can be lost at any time; then the projector begins another generation.

use std::sync::LazyLock;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue, Script};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::body::{Body, Kind};
use crate::feed::Change;

/// Names the current generation.
const POINTER: &str = "tidemark:generation";

/// Bodies that nothing has changed and nobody has put again go after this.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// The most entries of the stream of changes; who comes later asks the views.
const STREAM: usize = 256;

/// The most keys that an entry of the stream names; one with more says that everything may have changed.
const NAMED: usize = 5_000;

/// How long Redis may take for one answer, where nobody waits for more than what is there.
const WITHIN: Duration = Duration::from_millis(250);

/// How long the opening of a connection may take.
const OPEN_WITHIN: Duration = Duration::from_millis(500);

/// What can go wrong with Redis.
#[derive(Debug, thiserror::Error)]
pub enum TierError {
    /// It did not answer, or refused.
    #[error("Redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// Something there is not what was put.
    #[error("Redis holds something else than bodies and changes: {0}")]
    Content(String),
    /// The generation is no longer the current one, or stands elsewhere.
    #[error("the bodies in Redis begin anew")]
    Moved,
}

/// A Redis that holds the tier. Cheap to clone; opens nothing by itself.
#[derive(Debug, Clone)]
pub struct Tier(Client);

/// What belongs together in Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation(String);

/// Where the current generation stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The current generation.
    pub generation: Generation,
    /// The life of the server that its numbers belong to.
    pub incarnation: Uuid,
    /// All changes up to here are known to all bodies.
    pub at: i64,
}

/// A connection to the tier. Cheap to clone; all clones use one connection.
#[derive(Debug, Clone)]
pub struct Connection(MultiplexedConnection);

/// A body with the number of the newest change that its read could see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    /// The number.
    pub number: i64,
    /// The body.
    pub body: Body,
}

/// An entry of the stream of changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// The changes after one number and up to another. `None`: too many to be named.
    Changes {
        /// They begin behind this number.
        from: i64,
        /// The last one's.
        to: i64,
        /// All of them.
        changes: Option<Vec<Change>>,
    },
    /// This generation is over.
    End,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    from: i64,
    to: i64,
    changes: Option<Vec<Change>>,
}

impl Generation {
    fn at(&self) -> String {
        format!("tidemark:{}:at", self.0)
    }

    fn stream(&self) -> String {
        format!("tidemark:{}:changes", self.0)
    }

    /// The name of a body.
    #[must_use]
    pub fn key(&self, kind: Kind, id: Uuid) -> String {
        match kind {
            Kind::Product => format!("tidemark:{}:product:{id}", self.0),
            Kind::Order => format!("tidemark:{}:order:{id}", self.0),
        }
    }
}

/// `number owner tag parked json`, with spaces between: Redis itself reads the number.
fn encode(number: i64, body: &Body) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(96 + body.json.len());
    let owner = body.owner.map_or_else(|| "-".to_owned(), |owner| owner.to_string());
    bytes.extend_from_slice(format!("{number} {owner} {} {} ", body.tag, u8::from(body.parked)).as_bytes());
    bytes.extend_from_slice(&body.json);
    bytes
}

fn decode(id: Uuid, bytes: &[u8]) -> Option<Numbered> {
    let mut parts = bytes.splitn(5, |&byte| byte == b' ');
    let mut text = || std::str::from_utf8(parts.next()?).ok();
    let number = text()?.parse().ok()?;
    let owner = match text()? {
        "-" => None,
        owner => Some(owner.parse().ok()?),
    };
    let tag = text()?.to_owned();
    let parked = text()? == "1";
    Some(Numbered { number, body: Body { id, owner, tag, parked, json: parts.next()?.to_vec() } })
}

impl Tier {
    /// A tier at a URL, `redis://[user:password@]host[:port][/database]`.
    ///
    /// # Errors
    /// The URL is none.
    pub fn new(url: &str) -> Result<Self, TierError> {
        Ok(Self(Client::open(url)?))
    }

    /// Opens a connection whose answers come at once or not at all.
    ///
    /// # Errors
    /// [`TierError::Redis`].
    pub async fn connect(&self) -> Result<Connection, TierError> {
        self.open(WITHIN).await
    }

    /// Opens a connection for [`Connection::entries`], which waits up to `block`.
    ///
    /// # Errors
    /// [`TierError::Redis`].
    pub async fn connect_for_entries(&self, block: Duration) -> Result<Connection, TierError> {
        self.open(block + WITHIN).await
    }

    async fn open(&self, within: Duration) -> Result<Connection, TierError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(OPEN_WITHIN))
            .set_response_timeout(Some(within));
        Ok(Connection(self.0.get_multiplexed_async_connection_with_config(&config).await?))
    }
}

impl Connection {
    /// Where the current generation stands; `None` when there is none.
    ///
    /// # Errors
    /// [`TierError::Redis`].
    pub async fn standing(&mut self) -> Result<Option<Standing>, TierError> {
        static STANDING: LazyLock<Script> = LazyLock::new(|| {
            Script::new(
                "local pointer = redis.call('GET', KEYS[1]) \
                 if not pointer then return false end \
                 local at = redis.call('GET', 'tidemark:' .. string.match(pointer, '^%S+') .. ':at') \
                 if not at then return false end \
                 return pointer .. ' ' .. at",
            )
        });
        let text: Option<String> = STANDING.key(POINTER).invoke_async(&mut self.0).await?;
        Ok(text.and_then(|text| {
            let mut parts = text.split(' ');
            Some(Standing {
                generation: Generation(parts.next()?.to_owned()),
                incarnation: parts.next()?.parse().ok()?,
                at: parts.next()?.parse().ok()?,
            })
        }))
    }

    /// Begins another generation, without bodies, at a number of the server's life `incarnation`.
    ///
    /// # Errors
    /// [`TierError::Redis`].
    pub async fn begin(&mut self, incarnation: Uuid, at: i64) -> Result<Generation, TierError> {
        static BEGIN: LazyLock<Script> = LazyLock::new(|| {
            Script::new(
                "local pointer = redis.call('GET', KEYS[1]) \
                 if pointer then \
                   local old = 'tidemark:' .. string.match(pointer, '^%S+') \
                   redis.call('DEL', old .. ':at') \
                   redis.call('XADD', old .. ':changes', '*', 'end', '1') \
                   redis.call('EXPIRE', old .. ':changes', 60) \
                 end \
                 redis.call('SET', KEYS[2], ARGV[2]) \
                 redis.call('SET', KEYS[1], ARGV[1])",
            )
        });
        let generation = Generation(Uuid::now_v7().simple().to_string());
        let () = BEGIN
            .key(POINTER)
            .key(generation.at())
            .arg(format!("{} {incarnation}", generation.0))
            .arg(at)
            .invoke_async(&mut self.0)
            .await?;
        Ok(generation)
    }

    /// Which of these have a body there.
    ///
    /// # Errors
    /// [`TierError::Redis`].
    pub async fn present(
        &mut self,
        generation: &Generation,
        kind: Kind,
        ids: &[Uuid],
    ) -> Result<Vec<Uuid>, TierError> {
        static PRESENT: LazyLock<Script> = LazyLock::new(|| {
            Script::new(
                "local there = {} \
                 for i = 1, #KEYS do there[i] = redis.call('EXISTS', KEYS[i]) end \
                 return there",
            )
        });
        let mut call = PRESENT.prepare_invoke();
        for id in ids {
            call.key(generation.key(kind, *id));
        }
        let there: Vec<bool> = call.invoke_async(&mut self.0).await?;
        Ok(ids.iter().zip(there).filter(|(_, is_there)| *is_there).map(|(id, _)| *id).collect())
    }

    /// Puts bodies that were read when `number` was the newest change, where they are newer than what is there.
    /// Nothing is put below `at`. Returns how many were put.
    ///
    /// # Errors
    /// [`TierError::Redis`].
    pub async fn put(
        &mut self,
        generation: &Generation,
        kind: Kind,
        number: i64,
        bodies: &[Body],
    ) -> Result<usize, TierError> {
        static PUT: LazyLock<Script> = LazyLock::new(|| {
            Script::new(
                "local at = tonumber(redis.call('GET', KEYS[1])) \
                 local number = tonumber(ARGV[1]) \
                 if not at or number < at then return 0 end \
                 local put = 0 \
                 for i = 2, #KEYS do \
                   local there = tonumber(string.match(redis.call('GETRANGE', KEYS[i], 0, 20), '^%d+')) \
                   if not there or there < number then \
                     redis.call('SET', KEYS[i], ARGV[i + 1], 'EX', ARGV[2]) \
                     put = put + 1 \
                   end \
                 end \
                 return put",
            )
        });
        let mut call = PUT.key(generation.at());
        for body in bodies {
            call.key(generation.key(kind, body.id));
        }
        call.arg(number).arg(KEPT.as_secs());
        for body in bodies {
            call.arg(encode(number, body));
        }
        Ok(call.invoke_async(&mut self.0).await?)
    }

    /// Moves `at` over changes that touched these bodies, and tells who follows. What is there of them and does not
    /// know all of the changes goes, in the same moment: what was not [put](Self::put) anew, and what somebody who
    /// read before the changes has put meanwhile.
    ///
    /// # Errors
    /// [`TierError::Moved`] when it did not stand at `from`: somebody else has moved it, or Redis was emptied.
    pub async fn advance(
        &mut self,
        generation: &Generation,
        from: i64,
        changes: Vec<Change>,
        touched: impl Iterator<Item = (Kind, Uuid)>,
    ) -> Result<i64, TierError> {
        static ADVANCE: LazyLock<Script> = LazyLock::new(|| {
            Script::new(
                "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end \
                 local to = tonumber(ARGV[2]) \
                 for i = 3, #KEYS do \
                   local there = tonumber(string.match(redis.call('GETRANGE', KEYS[i], 0, 20), '^%d+')) \
                   if there and there < to then redis.call('DEL', KEYS[i]) end \
                 end \
                 redis.call('SET', KEYS[1], ARGV[2]) \
                 redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], ARGV[2] .. '-0', 'changes', ARGV[4]) \
                 return 1",
            )
        });
        let to = changes.last().map_or(from, |change| change.number);
        let keys: usize = changes.iter().map(|change| change.keys.len()).sum();
        let wire = Wire { from, to, changes: Some(changes).filter(|_| keys <= NAMED) };
        let text = serde_json::to_string(&wire).map_err(|error| TierError::Content(error.to_string()))?;
        let mut call = ADVANCE.key(generation.at());
        call.key(generation.stream());
        for (kind, id) in touched {
            call.key(generation.key(kind, id));
        }
        let moved: bool = call.arg(from).arg(to).arg(STREAM).arg(text).invoke_async(&mut self.0).await?;
        if moved { Ok(to) } else { Err(TierError::Moved) }
    }

    /// A body, if it is there.
    ///
    /// # Errors
    /// [`TierError`].
    pub async fn get(
        &mut self,
        generation: &Generation,
        kind: Kind,
        id: Uuid,
    ) -> Result<Option<Numbered>, TierError> {
        let bytes: Option<Vec<u8>> =
            redis::cmd("GET").arg(generation.key(kind, id)).query_async(&mut self.0).await?;
        bytes
            .map(|bytes| decode(id, &bytes).ok_or_else(|| TierError::Content(format!("the body of {id}"))))
            .transpose()
    }

    /// The entries of the stream behind a number, waiting up to `block` for the first.
    ///
    /// # Errors
    /// [`TierError`].
    pub async fn entries(
        &mut self,
        generation: &Generation,
        number: i64,
        block: Duration,
    ) -> Result<Vec<Entry>, TierError> {
        /// Of one stream: its name and, for each entry, the id and the fields.
        type Read = Vec<(String, Vec<(String, Vec<(String, String)>)>)>;
        let value: redis::Value = redis::cmd("XREAD")
            .arg("COUNT")
            .arg(64)
            .arg("BLOCK")
            .arg(u64::try_from(block.as_millis()).unwrap_or(u64::MAX))
            .arg("STREAMS")
            .arg(generation.stream())
            .arg(format!("{number}-0"))
            .query_async(&mut self.0)
            .await?;
        let streams = Option::<Read>::from_redis_value(value).map_err(redis::RedisError::from)?;
        let entries = streams.into_iter().flatten().flat_map(|(_, entries)| entries);
        entries
            .map(|(id, fields)| match fields.first().map(|(name, text)| (name.as_str(), text)) {
                Some(("end", _)) => Ok(Entry::End),
                Some(("changes", text)) => {
                    let Wire { from, to, changes } = serde_json::from_str(text)
                        .map_err(|error| TierError::Content(format!("entry {id}: {error}")))?;
                    Ok(Entry::Changes { from, to, changes })
                }
                _ => Err(TierError::Content(format!("entry {id}"))),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_read_again() {
        let id = Uuid::now_v7();
        for body in [
            Body { id, owner: None, tag: "3-4".into(), parked: false, json: b"{\"a b\":1}".to_vec() },
            Body { id, owner: Some(Uuid::now_v7()), tag: "7".into(), parked: true, json: b"{}".to_vec() },
        ] {
            assert_eq!(decode(id, &encode(12, &body)), Some(Numbered { number: 12, body }));
        }
        for bad in ["", "x - 1 0 {}", "1 nobody 1 0 {}", "1 - 1 0"] {
            assert_eq!(decode(id, bad.as_bytes()), None, "{bad}");
        }
    }
}
