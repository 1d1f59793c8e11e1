//! One commit after the other.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use tidemark_events::log::append::Mark;
use tidemark_events::log::partitions::Partitions;
use tidemark_events::log::{
    Batch, Head, Locked, Log, LogError, MAX_EVENTS_PER_DECISION, NewAnswer, NewEvent, Outcome, Snapshot,
    StoredAnswer, Swift, WriterConnection, partitions,
};
use tidemark_events::silence::{in_time, silent};
use tidemark_events::{Epoch, planted};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::states::{StateCache, usable};
use super::{Accepted, Answer, CommandError, Job, Rendered, WriterConfig};
use crate::command::Command;
use crate::decision::{Decision, Rejection};
use crate::shop::{Entry, Shop, States, Unmet};

/// How long a connection may take to be made.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);

/// How long the database may say nothing: longer than the server lets any statement of a writer run, so then it is the
/// server, or what is between, that is gone without a word.
const ANSWERS_WITHIN: Duration = Duration::from_secs(8);

/// How often a group is begun anew before it is split or given up.
const ATTEMPTS: usize = 4;

/// How many rounds of loading one group may need before its lock: a command's streams grow as it is understood
/// (an order leads to its stocks), which takes two.
const LOAD_ROUNDS: usize = 50;

/// How soon an unknown outcome is asked for again, the first time; each time later.
const SETTLE_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// For so many commits the lock is taken first after somebody else was seen to append: two round trips more, but no
/// decision in vain.
const CONTENDED: u32 = 64;

/// A commit waits for more commands while fewer than this are there, if more than [`GATHER_FROM`] were around at the
/// last one; as long as half of that one took, and never longer than [`GATHER_WITHIN`].
const GATHER_UP_TO: usize = 16;
const GATHER_FROM: usize = 4;
const GATHER_WITHIN: Duration = Duration::from_millis(2);

/// Snapshots that may wait to be stored; beyond that they are left out.
const SNAPSHOT_QUEUE: usize = 1_024;

/// How often answers whose time is over are deleted, and how many at once.
const FORGET_EVERY: Duration = Duration::from_secs(30);
const FORGET_AT_ONCE: i64 = 50_000;

/// What came of one job, to be said after the commit.
type Reply = Result<Answer, CommandError>;

/// Why a group was not committed.
enum Trouble {
    /// The connection is gone, or never came; nothing was written.
    Away(LogError),
    /// The database refused the group, or states were wrong; nothing was written.
    Refused(LogError),
    /// The writer's states are not the log's any more; nothing was written.
    Stale,
    /// Something had to be prepared; nothing was written.
    Again,
    /// The connection ended during the commit.
    Unknown { mark: Option<Mark>, error: LogError, head: Head, replies: Vec<Option<Reply>> },
}

struct Loop {
    log: Log,
    direct: PgConnectOptions,
    config: Arc<WriterConfig>,
    connection: Option<WriterConnection>,
    states: StateCache,
    /// Every state stands here.
    head: Head,
    /// Streams whose states hold events that are not committed yet.
    touched: Vec<Uuid>,
    /// Whether a decision asked for a stream that is not here.
    unmet: bool,
    /// The log's partitions, as far as known: nothing is written beyond them.
    partitions: Partitions,
    /// Where what need not be waited for is done.
    shared: Handle,
    /// Makes the next ones.
    preparing: Option<JoinHandle<Result<Partitions, LogError>>>,
    snapshots: mpsc::Sender<(Epoch, Snapshot)>,
    /// Keys that were used lately through this writer.
    keys: RecentKeys,
    /// For so many commits more the lock is taken first: somebody else appends, too.
    contended: u32,
}

/// The keys of the last requests: one that comes again is looked up before anything is decided. One that was used
/// through another writer, or longer ago, is noticed by the append, which then writes nothing.
#[derive(Default)]
struct RecentKeys {
    set: HashSet<Uuid>,
    order: VecDeque<Uuid>,
}

impl RecentKeys {
    const MOST: usize = 100_000;

    fn contains(&self, key: Uuid) -> bool {
        self.set.contains(&key)
    }

    fn remember(&mut self, key: Uuid) {
        if self.set.insert(key) {
            self.order.push_back(key);
        }
        if self.order.len() > Self::MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }
}

/// Runs until `stop` is cancelled and the queue is empty.
pub(super) async fn run(
    log: Log,
    direct: PgConnectOptions,
    config: Arc<WriterConfig>,
    mut jobs: mpsc::Receiver<Job>,
    stop: CancellationToken,
    shared: Handle,
) {
    let (snapshots, to_store) = mpsc::channel(SNAPSHOT_QUEUE);
    let keeper = shared.spawn(store_snapshots(log.clone(), to_store));
    let forgetter = shared.spawn(forget_answers(log.clone(), stop.clone()));
    let mut writer = Loop {
        states: StateCache::new(config.state_bytes),
        log,
        direct,
        connection: None,
        head: Head { epoch: 0, position: 0 },
        touched: Vec::new(),
        unmet: false,
        partitions: Partitions::default(),
        preparing: None,
        shared,
        keys: RecentKeys::default(),
        contended: 0,
        snapshots,
        config,
    };
    let mut waiting = Vec::new();
    let (mut around, mut within) = (0, Duration::ZERO);
    loop {
        if waiting.is_empty() {
            let most = writer.config.batch_commands;
            let taken = tokio::select! {
                biased;
                () = stop.cancelled(), if !jobs.is_closed() => {
                    jobs.close();
                    continue;
                }
                taken = jobs.recv_many(&mut waiting, most) => taken,
            };
            if taken == 0 {
                break;
            }
        } else if let Some(space) = writer.config.batch_commands.checked_sub(waiting.len())
            && space > 0
            && !jobs.is_empty()
        {
            jobs.recv_many(&mut waiting, space).await;
        }
        if around > GATHER_FROM {
            gather(&mut jobs, &mut waiting, around.min(GATHER_UP_TO), within).await;
        }
        let (begun, taken) = (Instant::now(), waiting.len());
        waiting = writer.process(std::mem::take(&mut waiting)).await;
        around = taken + jobs.len();
        within = (begun.elapsed() / 2).min(GATHER_WITHIN);
    }
    drop(writer);
    for task in [keeper, forgetter] {
        if let Err(error) = task.await {
            tracing::error!(%error, "a task of the writer ended badly");
        }
    }
}

/// Waits a little until `enough` commands are there. A commit of a few costs nearly as much as one of many, so at a
/// moderate load the database would otherwise be kept busy with commits that are hardly filled.
async fn gather(jobs: &mut mpsc::Receiver<Job>, waiting: &mut Vec<Job>, enough: usize, within: Duration) {
    let until = tokio::time::Instant::now() + within;
    while let Some(space) = enough.checked_sub(waiting.len())
        && space > 0
    {
        match tokio::time::timeout_at(until, jobs.recv_many(waiting, space)).await {
            Ok(taken) if taken > 0 => {}
            _ => return,
        }
    }
}

impl Loop {
    /// Sees all jobs to their answers but those that must wait for the next commit, which come back.
    async fn process(&mut self, jobs: Vec<Job>) -> Vec<Job> {
        self.prepared().await;
        let mut deferred = Vec::new();
        let mut groups = vec![jobs];
        while let Some(group) = groups.pop() {
            if let Some((mut group, error)) = self.commit_group(group, &mut deferred).await {
                if group.len() > 1 {
                    // Somebody in it is to blame: halve it until that one stands alone.
                    let rest = group.split_off(group.len() / 2);
                    groups.push(rest);
                    groups.push(group);
                } else {
                    for job in group {
                        tracing::error!(
                            %error, correlation_id = %job.request.metadata.correlation_id,
                            "the log refused a command"
                        );
                        answer(job, Err(CommandError::Refused));
                    }
                }
            }
        }
        self.states.shrink();
        metrics::gauge!("tidemark_writer_states").set(count(self.states.len()));
        metrics::gauge!("tidemark_writer_state_bytes").set(count(self.states.bytes()));
        deferred
    }

    /// Commits one group and answers it. A group that the database refuses comes back to be halved.
    async fn commit_group(
        &mut self,
        mut group: Vec<Job>,
        deferred: &mut Vec<Job>,
    ) -> Option<(Vec<Job>, LogError)> {
        for attempt in 1.. {
            group = begin_in_time(group);
            if group.is_empty() {
                return None;
            }
            let started = Instant::now();
            let trouble = match self.try_group(&group).await {
                Ok((head, replies)) => {
                    metrics::histogram!("tidemark_commit_seconds").record(started.elapsed().as_secs_f64());
                    metrics::histogram!("tidemark_commit_commands").record(count(group.len()));
                    self.finish(head, group, replies, deferred);
                    return None;
                }
                Err(trouble) => trouble,
            };
            match trouble {
                Trouble::Unknown { mark, error, head, replies } => {
                    tracing::warn!(%error, "the outcome of a commit is unknown, asking for it");
                    match self.settle(mark).await {
                        Some(true) => {
                            // The answers to refusals have not been looked for; settling leaves a connection.
                            let replies = match &mut self.connection {
                                Some(connection) => first_answers(connection, &group, replies).await,
                                None => replies,
                            };
                            self.finish(head, group, replies, deferred);
                            return None;
                        }
                        Some(false) => self.forget_touched(),
                        None => {
                            self.forget_touched();
                            refuse(group, &CommandError::OutcomeUnknown);
                            return None;
                        }
                    }
                }
                Trouble::Again => self.forget_touched(),
                Trouble::Stale => {
                    self.touched.clear();
                    self.states.clear();
                    self.head.position = 0;
                }
                Trouble::Away(error) => {
                    self.forget_touched();
                    if attempt >= 2 {
                        tracing::warn!(%error, commands = group.len(), "the log's database is away, commands are refused");
                        refuse(group, &CommandError::Unavailable);
                        return None;
                    }
                }
                Trouble::Refused(error) if error.is_shortage() => {
                    self.forget_touched();
                    tracing::warn!(%error, commands = group.len(), "the log's database has no room, commands are refused");
                    refuse(group, &CommandError::Unavailable);
                    return None;
                }
                Trouble::Refused(error) => {
                    self.forget_touched();
                    if matches!(error, LogError::Versions) {
                        self.states.clear();
                        self.head.position = 0;
                    }
                    if group.len() > 1 || attempt >= 2 {
                        return Some((group, error));
                    }
                }
            }
            if attempt >= ATTEMPTS {
                refuse(group, &CommandError::Unavailable);
                return None;
            }
        }
        None
    }

    /// States, answers and snapshots count from here: the group is committed.
    fn finish(&mut self, head: Head, group: Vec<Job>, replies: Vec<Option<Reply>>, deferred: &mut Vec<Job>) {
        self.head = head;
        self.log.committed(head);
        if head.position + self.config.partition_size > self.partitions.end() && self.preparing.is_none() {
            let (pool, size) = (self.log.pool().clone(), self.config.partition_size);
            self.preparing = Some(self.shared.spawn(async move { partitions::ensure(&pool, size).await }));
        }
        for (job, reply) in group.into_iter().zip(replies) {
            if let Some(scope) = job.request.key {
                self.keys.remember(scope.key);
            }
            match reply {
                Some(reply) => answer(job, reply),
                None => deferred.push(job),
            }
        }
        let interval = self.config.snapshot_interval;
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        for events in touched.chunk_by(|a, b| a == b) {
            let stream_id = events[0];
            let appended = i64::try_from(events.len()).unwrap_or(i64::MAX);
            if let Some(Entry { version, position, state: Some(state) }) = self.states.peek(stream_id)
                && (version - appended) / interval != version / interval
                && let Ok(folded) = serde_json::to_value(state)
            {
                let snapshot = Snapshot {
                    stream_id,
                    version: *version,
                    position: *position,
                    fold_version: state.fold_version(),
                    state: folded,
                };
                // A full queue leaves it out: the next one will do.
                self.snapshots.try_send((head.epoch, snapshot)).ok();
            }
        }
    }

    fn forget_touched(&mut self) {
        for stream_id in std::mem::take(&mut self.touched) {
            self.states.forget(stream_id);
        }
    }

    /// One try at a group: the short way if nobody else appends and no key has been seen before, else the long one.
    async fn try_group(&mut self, group: &[Job]) -> Result<(Head, Vec<Option<Reply>>), Trouble> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await.map_err(Trouble::Away)?,
        };
        let repeated =
            group.iter().filter_map(|job| job.request.key).any(|scope| self.keys.contains(scope.key));
        if self.contended == 0 && !repeated && self.head.position > 0 {
            if let Some(done) = self.try_swiftly(&mut connection, group).await? {
                self.connection = Some(connection);
                return Ok(done);
            }
        } else {
            self.contended = self.contended.saturating_sub(1);
        }
        self.load(&mut connection, group).await?;
        let mut locked = in_time(ANSWERS_WITHIN, connection.lock()).await.map_err(Trouble::Away)?;
        match in_time(ANSWERS_WITHIN, self.follow(&mut locked)).await {
            Ok(true) => {}
            Ok(false) => {
                if in_time(ANSWERS_WITHIN, locked.release()).await.is_ok() {
                    self.connection = Some(connection);
                }
                return Err(Trouble::Stale);
            }
            Err(error) => return Err(Trouble::Away(error)),
        }
        if group.iter().any(is_over) {
            // Rare: it took long to come here, because this process was stopped, for one.
            if in_time(ANSWERS_WITHIN, locked.release()).await.is_ok() {
                self.connection = Some(connection);
            }
            return Err(Trouble::Again);
        }
        let stored =
            in_time(ANSWERS_WITHIN, stored_answers(&mut locked, group)).await.map_err(Trouble::Away)?;
        let mut batch = Batch::at(self.head);
        let replies = match self.decide_all(group, stored, &mut batch) {
            Ok(replies) => replies,
            Err(error) => {
                if in_time(ANSWERS_WITHIN, locked.release()).await.is_ok() {
                    self.connection = Some(connection);
                }
                return Err(Trouble::Refused(error));
            }
        };
        if batch.is_empty() {
            if in_time(ANSWERS_WITHIN, locked.release()).await.is_ok() {
                self.connection = Some(connection);
            }
            return Ok((self.head, replies));
        }
        if batch.position() > self.partitions.end() {
            // Rare: another writer was fast, or this is the first commit. Made apart from the lock, then again.
            in_time(ANSWERS_WITHIN, locked.release()).await.map_err(Trouble::Away)?;
            self.connection = Some(connection);
            self.make_partitions().await.map_err(Trouble::Away)?;
            return Err(Trouble::Again);
        }
        if let Err(error) = in_time(ANSWERS_WITHIN, locked.append(&batch)).await {
            return Err(match in_time(ANSWERS_WITHIN, locked.release()).await {
                Ok(()) => {
                    self.connection = Some(connection);
                    Trouble::Refused(error)
                }
                Err(_) => Trouble::Away(error),
            });
        }
        if planted::is("answer-before-commit") {
            tokio::time::sleep(SETTLE_AGAIN_AFTER).await;
        }
        let commit = tokio::time::timeout(ANSWERS_WITHIN, locked.commit()).await;
        match commit.unwrap_or_else(|_elapsed| Outcome::Unknown(silent().into())) {
            Outcome::Committed(head) => {
                metrics::counter!("tidemark_commits_total", "way" => "locked").increment(1);
                self.connection = Some(connection);
                Ok((head, replies))
            }
            Outcome::Refused(error) => Err(Trouble::Refused(error)),
            Outcome::Unknown(_) if planted::is("answer-before-commit") => Ok((batch.head(), replies)),
            Outcome::Unknown(error) => {
                Err(Trouble::Unknown { mark: batch.mark(), error, head: batch.head(), replies })
            }
        }
    }

    /// Decides on the states as they are and appends if the log still stands where they do: one round trip. `None`:
    /// it does not, or cannot be so; nothing was written, and the long way finds out.
    async fn try_swiftly(
        &mut self,
        connection: &mut WriterConnection,
        group: &[Job],
    ) -> Result<Option<(Head, Vec<Option<Reply>>)>, Trouble> {
        let (mut batch, mut replies) = self.decide_swiftly(group);
        if self.unmet {
            // Loaded only now, since most commits need nothing: to look for it first would be to decide twice.
            self.forget_touched();
            self.load(connection, group).await?;
            (batch, replies) = self.decide_swiftly(group);
        }
        // Refusals must rest on the log as it is, which only the lock or an append can tell.
        let fits = !batch.is_empty() && batch.position() <= self.partitions.end();
        let Some(replies) = replies.filter(|_| fits && !group.iter().any(is_over)) else {
            self.forget_touched();
            return Ok(None);
        };
        let append = tokio::time::timeout(ANSWERS_WITHIN, connection.append_at(&batch)).await;
        match append.unwrap_or_else(|_elapsed| Swift::Unknown(silent().into())) {
            Swift::Committed(head, recorded_at) => {
                metrics::counter!("tidemark_commits_total", "way" => "short").increment(1);
                if let Some(appended) = batch.into_appended(recorded_at) {
                    self.log.remember(appended);
                }
                Ok(Some((head, first_answers(connection, group, replies).await)))
            }
            Swift::Moved => {
                tracing::debug!(head = ?self.head, "somebody else has appended");
                self.contended = CONTENDED;
                self.forget_touched();
                Ok(None)
            }
            Swift::Refused(error) => {
                tracing::debug!(%error, "the short way was refused");
                self.forget_touched();
                Ok(None)
            }
            Swift::Unknown(error) => {
                Err(Trouble::Unknown { mark: batch.mark(), error, head: batch.head(), replies })
            }
        }
    }

    /// A batch on the states as they are, with its replies; `None` when the log could not store it.
    fn decide_swiftly(&mut self, group: &[Job]) -> (Batch, Option<Vec<Option<Reply>>>) {
        let mut batch = Batch::at(self.head);
        if self.log.is_followed() {
            batch = batch.keeping_events();
        }
        self.unmet = false;
        let replies = self.decide_all(group, HashMap::new(), &mut batch).ok();
        (batch, replies)
    }

    async fn connect(&self) -> Result<WriterConnection, LogError> {
        match tokio::time::timeout(CONNECT_WITHIN, WriterConnection::open(&self.direct)).await {
            Ok(connection) => connection,
            Err(_elapsed) => Err(sqlx::Error::PoolTimedOut.into()),
        }
    }

    /// Loads what the group asks for, all at the writer's position, before the lock is taken.
    async fn load(&mut self, connection: &mut WriterConnection, group: &[Job]) -> Result<(), Trouble> {
        for _ in 0..LOAD_ROUNDS {
            let missing = self.missing(group);
            if missing.is_empty() && self.head.position > 0 {
                return Ok(());
            }
            // A writer that starts has no states that could be behind: it begins at the head.
            let known = (self.states.len() > 0).then_some(self.head);
            let loaded = in_time(ANSWERS_WITHIN, connection.load(known, &missing, usable))
                .await
                .map_err(Trouble::Away)?;
            if !loaded.continues {
                self.states.clear();
                self.touched.clear();
            }
            for event in &loaded.tail {
                self.states.follow(event);
                self.head.position = event.position;
            }
            if let Some(head) = loaded.head {
                self.head = head;
                self.states.take(&missing, &loaded);
                if missing.is_empty() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The streams that the group's commands ask for and that are not here.
    fn missing(&self, group: &[Job]) -> Vec<Uuid> {
        let mut missing = HashSet::new();
        for job in group {
            for command in &job.request.commands {
                let shop = Shop::new(&self.states);
                // What it would decide does not count here, only what it asks for.
                drop(command.decide(&shop, job.request.now));
                missing.extend(shop.into_unmet().missing);
            }
            if job.request.if_match.is_some()
                && let Some(command) = job.request.commands.first()
                && self.states.entry(command.stream()).is_none()
            {
                missing.insert(command.stream());
            }
        }
        missing.into_iter().collect()
    }

    /// Folds what others appended since; `false` if the log is not the one that the states are of, or is too far
    /// ahead to be read under the lock.
    async fn follow(&mut self, locked: &mut Locked<'_>) -> Result<bool, LogError> {
        let head = locked.head();
        if !locked.continues(self.head).await? {
            return Ok(false);
        }
        self.head.epoch = head.epoch;
        if head.position > self.head.position {
            match locked.tail(self.head.position).await {
                Ok(tail) => {
                    for event in &tail {
                        self.states.follow(event);
                    }
                    self.head = head;
                }
                Err(LogError::TooFarBehind { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Decides every job in order. `None` stands for one that must wait for the next commit.
    fn decide_all(
        &mut self,
        group: &[Job],
        mut stored: HashMap<Uuid, StoredAnswer>,
        batch: &mut Batch,
    ) -> Result<Vec<Option<Reply>>, LogError> {
        let mut keys = HashSet::new();
        let mut replies = Vec::with_capacity(group.len());
        for job in group {
            let reply = match job.request.key {
                Some(scope) if !keys.insert(scope.key) => None,
                Some(scope) => match stored.remove(&scope.key) {
                    Some(found) => Some(repeated(scope.fingerprint, found)),
                    None => self.decide(job, batch)?,
                },
                None => self.decide(job, batch)?,
            };
            replies.push(reply);
        }
        Ok(replies)
    }

    /// Decides one job's commands on the states as they are with all before it.
    fn decide(&mut self, job: &Job, batch: &mut Batch) -> Result<Option<Reply>, LogError> {
        let request = &job.request;
        if let (Some(expected), Some(command)) = (request.if_match, request.commands.first()) {
            match self.states.entry(command.stream()) {
                None => {
                    self.unmet = true;
                    return Ok(None);
                }
                Some(entry) if entry.version > 0 && entry.version != expected => {
                    return Ok(Some(Err(CommandError::VersionMismatch { expected, current: entry.version })));
                }
                Some(_) => {}
            }
        }
        if request.commands.len() > 1 {
            // Nothing may be written before it is sure that all can be decided in this commit.
            for command in &request.commands {
                if let Err(waits) = self.decision(command, request) {
                    return Ok(waits);
                }
            }
        }
        let mut outcomes = Vec::with_capacity(request.commands.len());
        let mut version = 0;
        for command in &request.commands {
            let decision = match self.decision(command, request) {
                Ok(decision) => decision,
                Err(Some(reply)) => return Ok(Some(reply)),
                Err(None) if outcomes.is_empty() => return Ok(None),
                // A later command of a request leads to a stream that an earlier one made known only now.
                Err(None) => Err(Rejection::NotFound { kind: "stream", id: command.stream() }),
            };
            let outcome = match decision {
                Ok(decision) => Ok(self.write(decision, request, batch)?),
                Err(rejection) => Err(rejection),
            };
            if let (Ok(accepted), true) = (&outcome, outcomes.is_empty()) {
                version = accepted.version;
            }
            let refused = outcome.is_err();
            outcomes.push(outcome);
            if refused && request.stop_at_rejection {
                break;
            }
        }
        let rendered = (request.render)(&outcomes);
        let reply = match rendered {
            None => Err(outcomes
                .into_iter()
                .find_map(Result::err)
                .map_or(CommandError::Refused, CommandError::Rejected)),
            Some(rendered) => {
                if let Some(scope) = request.key {
                    batch.store(&NewAnswer {
                        key: scope.key,
                        fingerprint: scope.fingerprint,
                        status: i16::try_from(rendered.status).unwrap_or(i16::MAX),
                        version,
                        location: rendered.location.clone(),
                        body: rendered.body.clone(),
                        position: batch.position(),
                    });
                }
                let head = Head { epoch: self.head.epoch, position: batch.position() };
                Ok(Answer { rendered, version, head, replayed: false, outcomes })
            }
        };
        Ok(Some(reply))
    }

    /// A decision that counts; else what to do with its job: answer it so, or (`None`) let it wait.
    fn decision(
        &mut self,
        command: &Command,
        request: &super::Request,
    ) -> Result<Result<Decision, Rejection>, Option<Reply>> {
        let shop = Shop::new(&self.states);
        let decision = command.decide(&shop, request.now);
        let Unmet { missing, unreadable } = shop.into_unmet();
        if let Some(stream_id) = unreadable {
            return Err(Some(Err(CommandError::Unreadable(stream_id))));
        }
        if missing.is_empty() {
            return Ok(decision);
        }
        self.unmet = true;
        Err(None)
    }

    /// Writes a decision's events into the batch and folds them into the states.
    fn write(
        &mut self,
        decision: Decision,
        request: &super::Request,
        batch: &mut Batch,
    ) -> Result<Accepted, LogError> {
        if decision.events.len() > MAX_EVENTS_PER_DECISION {
            return Err(LogError::Unstorable {
                event_type: "decision",
                reason: format!("{} events, the limit is {MAX_EVENTS_PER_DECISION}", decision.events.len()),
            });
        }
        let again = decision.events.iter().filter(|_| planted::sometimes("effect-doubled"));
        for happened in decision.events.iter().chain(again) {
            let stream_id = happened.stream_id;
            if self.states.peek(stream_id).is_none() {
                // Only what was made at random just now is written without having been asked for.
                self.states.insert(stream_id, Entry::default());
            }
            self.touched.push(stream_id);
            let before = self.states.peek(stream_id).map_or(0, |entry| entry.position);
            let version = self.states.apply(stream_id, &happened.fact, batch.position() + 1).unwrap_or(1);
            batch.push(&NewEvent {
                stream_id,
                version,
                event_id: Uuid::now_v7(),
                fact: &happened.fact,
                metadata: &request.metadata,
                partition_key: happened.partition_key,
                begins: self.partitions.begun(before, batch.position() + 1),
            })?;
        }
        Ok(Accepted {
            id: decision.subject,
            status: decision.status,
            total: decision.total,
            version: self.states.peek(decision.stream_id).map_or(0, |entry| entry.version),
            position: batch.position(),
        })
    }

    /// Finds out whether a batch was committed; `None` if that could not be found out in time.
    async fn settle(&mut self, mark: Option<Mark>) -> Option<bool> {
        // Without events nothing took effect, and whether its answers were stored shows when it is done again.
        let Some(mark) = mark else { return Some(false) };
        let until = Instant::now() + self.config.settle_within;
        let mut pause = SETTLE_AGAIN_AFTER;
        loop {
            let error = match in_time(ANSWERS_WITHIN, self.try_settle(mark)).await {
                Ok(committed) => {
                    tracing::info!(committed, "found out about the commit");
                    return Some(committed);
                }
                Err(error) => error,
            };
            if Instant::now() + pause >= until {
                tracing::warn!(%error, "cannot find out in time: its clients are told that the outcome is unknown");
                return None;
            }
            tracing::debug!(%error, "cannot find out yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn try_settle(&mut self, mark: Mark) -> Result<bool, LogError> {
        let mut connection = self.connect().await?;
        let mut locked = connection.lock().await?;
        let committed = locked.settle(mark).await?;
        match locked.commit().await {
            Outcome::Committed(_) => {
                self.connection = Some(connection);
                Ok(committed)
            }
            Outcome::Refused(error) | Outcome::Unknown(error) => Err(error),
        }
    }

    async fn make_partitions(&mut self) -> Result<(), LogError> {
        let (pool, size) = (self.log.pool().clone(), self.config.partition_size);
        let making = self.shared.spawn(async move { partitions::ensure(&pool, size).await });
        self.partitions = making.await.map_err(|error| sqlx::Error::Protocol(error.to_string()))??;
        Ok(())
    }

    /// Takes in partitions that have been made ahead of need meanwhile. Should that have failed, the next commit tries
    /// again, and the one that needs them makes them itself.
    async fn prepared(&mut self) {
        let Some(preparing) = self.preparing.take_if(|preparing| preparing.is_finished()) else { return };
        match preparing.await {
            Ok(Ok(partitions)) => self.partitions = partitions,
            Ok(Err(error)) => tracing::warn!(%error, "cannot make a partition ahead of need"),
            Err(error) => tracing::error!(%error, "making partitions ended badly"),
        }
    }
}

/// Whether its client has gone away, or was told to ask again. It may have done so, elsewhere, and been refused there: what
/// is appended for it from now on would come as a surprise.
fn is_over(job: &Job) -> bool {
    job.reply.is_closed() || job.begin_before < Instant::now()
}

/// Leaves out whoever has waited too long or gone away; nothing was done for them.
fn begin_in_time(group: Vec<Job>) -> Vec<Job> {
    let now = Instant::now();
    let mut begun = Vec::with_capacity(group.len());
    for job in group {
        if job.begin_before < now {
            answer(job, Err(CommandError::Overloaded));
        } else if !job.reply.is_closed() {
            begun.push(job);
        }
    }
    begun
}

async fn stored_answers(
    locked: &mut Locked<'_>,
    group: &[Job],
) -> Result<HashMap<Uuid, StoredAnswer>, LogError> {
    let keys: Vec<Uuid> = group.iter().filter_map(|job| job.request.key).map(|scope| scope.key).collect();
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    locked.answers(&keys).await.map(by_key)
}

/// A command that is refused may be the repetition of one that was done through another writer, or before this one was
/// started: then it is the first one's answer that counts. Nothing was written for it, so its key is looked up only now.
async fn first_answers(
    connection: &mut WriterConnection,
    group: &[Job],
    mut replies: Vec<Option<Reply>>,
) -> Vec<Option<Reply>> {
    let refused = |reply: &Option<Reply>| {
        matches!(reply, Some(Err(CommandError::Rejected(_) | CommandError::VersionMismatch { .. })))
    };
    let keyed = |(job, reply): (&Job, &Option<Reply>)| job.request.key.filter(|_| refused(reply));
    let keys: Vec<Uuid> = group.iter().zip(&replies).filter_map(keyed).map(|scope| scope.key).collect();
    if keys.is_empty() {
        return replies;
    }
    let stored = in_time(ANSWERS_WITHIN, connection.answers(&keys)).await;
    let stored = stored.map(by_key).inspect_err(|error| {
        tracing::warn!(%error, "cannot look up whether refused commands were done before");
    });
    for (job, reply) in group.iter().zip(&mut replies) {
        let Some(scope) = job.request.key.filter(|_| refused(reply)) else { continue };
        match &stored {
            Ok(stored) => {
                if let Some(found) = stored.get(&scope.key) {
                    *reply = Some(repeated(scope.fingerprint, found.clone()));
                }
            }
            Err(_) => *reply = Some(Err(CommandError::Unavailable)),
        }
    }
    replies
}

fn by_key(stored: Vec<StoredAnswer>) -> HashMap<Uuid, StoredAnswer> {
    stored.into_iter().map(|stored| (stored.answer.key, stored)).collect()
}

/// What is said to a key that was used before.
fn repeated(fingerprint: Uuid, found: StoredAnswer) -> Reply {
    if found.answer.fingerprint == fingerprint { Ok(replay(found)) } else { Err(CommandError::KeyReused) }
}

fn replay(stored: StoredAnswer) -> Answer {
    let StoredAnswer { answer, epoch } = stored;
    Answer {
        rendered: Rendered {
            status: u16::try_from(answer.status).unwrap_or(200),
            location: answer.location,
            body: answer.body,
        },
        version: answer.version,
        head: Head { epoch, position: answer.position },
        replayed: true,
        outcomes: Vec::new(),
    }
}

fn refuse(group: Vec<Job>, error: &CommandError) {
    for job in group {
        answer(job, Err(error.clone()));
    }
}

fn answer(job: Job, mut reply: Reply) {
    if reply.is_ok() && planted::sometimes("refused-but-done") {
        reply = Err(CommandError::VersionMismatch { expected: 0, current: 0 });
    }
    let outcome = match &reply {
        Ok(answer) if answer.replayed => "replayed",
        Ok(_) => "accepted",
        Err(CommandError::Rejected(_) | CommandError::VersionMismatch { .. } | CommandError::KeyReused) => {
            "rejected"
        }
        Err(CommandError::Overloaded) => "overloaded",
        Err(CommandError::OutcomeUnknown) => "unknown",
        Err(CommandError::Unavailable | CommandError::Unreadable(_) | CommandError::Refused) => "failed",
    };
    metrics::counter!("tidemark_commands_total", "outcome" => outcome).increment(1);
    let Job { request, reply: client, space, .. } = job;
    // Whoever is answered may send the next: there is to be room for it.
    drop((request, space));
    // A client that has gone away takes no answer; what was done is done.
    client.send(reply).ok();
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

/// Stores snapshots apart from the commits, the newest of each stream.
async fn store_snapshots(log: Log, mut queue: mpsc::Receiver<(Epoch, Snapshot)>) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, SNAPSHOT_QUEUE).await > 0 {
        waiting.sort_unstable_by_key(|(epoch, snapshot): &(Epoch, Snapshot)| {
            (snapshot.stream_id, std::cmp::Reverse((*epoch, snapshot.version)))
        });
        waiting.dedup_by_key(|(_, snapshot)| snapshot.stream_id);
        if let Err(error) = log.store_snapshots(&waiting).await {
            tracing::warn!(%error, snapshots = waiting.len(), "cannot store snapshots, going on without them");
        }
        waiting.clear();
    }
}

async fn forget_answers(log: Log, stop: CancellationToken) {
    while tokio::time::timeout(FORGET_EVERY, stop.cancelled()).await.is_err() {
        match log.forget_expired_answers(FORGET_AT_ONCE).await {
            Ok(0) => {}
            Ok(forgotten) => tracing::info!(forgotten, "deleted answers whose time is over"),
            Err(error) => tracing::warn!(%error, "cannot delete answers whose time is over"),
        }
    }
}
