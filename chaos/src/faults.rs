//! What is broken, when, and for how long: all of it follows from the seed.
//!
//! Three lanes strike at the same time, each one member after the other: what writes go through, what feeds and serves
//! the views, and what these stand on. In between, everything at once, and Kafka and Redis away for long, alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::RwLock;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::disk::Disk;
use crate::drive::Stage;
use crate::history::Wait;
use crate::log;
use crate::proxy::{Link, Weather};

/// How long a member may take to come back before the next fault strikes all the same.
const BACK_WITHIN: Duration = Duration::from_secs(45);

/// How many times as long as asked for a run may take to come to its commands.
const LONGER: u32 = 4;

/// How long somebody to strike is looked for: nobody publishes while a lease is being taken over, and who has just been
/// killed is being launched.
const SOMEBODY_WITHIN: Duration = Duration::from_secs(10);

/// Between two looks whether a member is back.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long one question whether a member is ready may take.
const ASK_WITHIN: Duration = Duration::from_secs(1);

/// The member whose disk can be filled.
const LOG: &str = "postgres-log";

/// How long a disk has no room.
const FULL_FOR: Duration = Duration::from_secs(6);

/// The fault that needs a disk of its own, which no run has that does not ask for it.
pub(crate) const DISK_FULL: &str = "disk of postgres-log full";

/// The fault that kills all processes at once.
pub(crate) const EVERYTHING: &str = "kill -9 everything";

/// Whom the lanes strike, one after the other: everybody but nginx. The publisher is one of the command services.
pub(crate) const LANES: [&[&str]; 3] = [
    &["command", "publisher", "postgres-log"],
    &["projector", "query"],
    &["postgres-views", "postgres-replica", "redis", "kafka", "pgbouncer"],
];

/// The longest a member is paused, and a link is disturbed.
const LONGEST_PAUSE: Duration = Duration::from_millis(2_500);

/// The links that can be disturbed.
#[derive(Debug)]
pub(crate) struct Links {
    /// Between the services and the log's database.
    pub(crate) log: Link,
    /// Between the services and the views' database.
    pub(crate) views: Link,
}

/// One way to break something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// kill -9, launched again at once.
    Kill(String),
    /// SIGSTOP, later SIGCONT.
    Pause(String, Duration),
    /// kill -9 of one session's process of a PostgreSQL.
    KillSession(String, usize),
    /// kill -9 of the command service that publishes.
    KillLeader,
    /// SIGSTOP of the command service that publishes.
    PauseLeader(Duration),
    /// A link to a database in bad weather.
    Disturb(Way, Weather, Duration),
    /// kill -9, and kept away.
    Gone(Vec<String>, Duration),
    /// kill -9 of all processes at once.
    Everything,
    /// The disk of the log's PostgreSQL has no room left.
    DiskFull(Duration),
}

/// Which link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the log's database.
    Log,
    /// To the views' database.
    Views,
}

impl Fault {
    /// What it is called in the report: members of a kind are one.
    pub(crate) fn name(&self) -> String {
        let kind =
            |member: &str| member.trim_end_matches(|c: char| c == '-' || c.is_ascii_digit()).to_owned();
        match self {
            Self::Kill(member) => format!("kill -9 {}", kind(member)),
            Self::Pause(member, _) => format!("pause {}", kind(member)),
            Self::KillSession(member, _) => format!("kill -9 a session of {member}"),
            Self::KillLeader => "kill -9 publisher".to_owned(),
            Self::PauseLeader(_) => "pause publisher".to_owned(),
            Self::Disturb(way, weather, _) => {
                let to = if *way == Way::Log { "log" } else { "views" };
                match weather {
                    Weather::Fair => format!("nothing to {to}"),
                    Weather::Cut => format!("link to {to} cut"),
                    Weather::Slow(_) => format!("link to {to} slow"),
                    Weather::Held => format!("link to {to} held"),
                    Weather::Answerless => format!("answers of {to} lost"),
                }
            }
            Self::Gone(members, _) => format!("{} gone", members.join(" and ")),
            Self::Everything => EVERYTHING.to_owned(),
            Self::DiskFull(_) => DISK_FULL.to_owned(),
        }
    }
}

/// A fault that has struck.
#[derive(Debug, Clone)]
pub(crate) struct Struck {
    /// Which.
    pub(crate) name: String,
    /// Whether commands go through what it breaks.
    pub(crate) on_the_way_of_writes: bool,
    /// When it began, since the run began.
    pub(crate) from: Duration,
    /// When others went on: what clients wait for later is not its doing.
    pub(crate) over: Duration,
    /// When all of what it broke was back.
    pub(crate) back: Option<Duration>,
}

/// Which faults there are for a cluster, lane by lane.
#[derive(Debug)]
pub(crate) struct Plan {
    lanes: Vec<Lane>,
    exclusive: Vec<Fault>,
}

#[derive(Debug)]
struct Lane {
    random: fastrand::Rng,
    on_the_way_of_writes: bool,
    /// Whom it strikes in each round.
    members: &'static [&'static str],
    /// Every fault once in each round, in an order of its own.
    kinds: Vec<Fault>,
    round: Vec<Fault>,
}

impl Lane {
    fn next(&mut self) -> Option<Fault> {
        if self.round.is_empty() {
            self.round.clone_from(&self.kinds);
            self.random.shuffle(&mut self.round);
        }
        let mut fault = self.round.pop()?;
        let mut some = |longest: Duration| longest.mul_f64(0.3 + 0.7 * self.random.f64());
        match &mut fault {
            Fault::Pause(_, time) | Fault::PauseLeader(time) | Fault::Disturb(_, _, time) => {
                *time = some(*time)
            }
            Fault::KillSession(_, choice) => *choice = self.random.usize(..1_000),
            _ => {}
        }
        Some(fault)
    }

    fn gap(&mut self) -> Duration {
        Duration::from_millis(self.random.u64(400..1_000))
    }
}

impl Plan {
    /// All faults of these members, by a seed; `only` those whose names hold one of some words.
    pub(crate) fn new(seed: u64, cluster: &Cluster, gone_for: Duration, only: &[String]) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let both = |members: Vec<String>| {
            members
                .into_iter()
                .flat_map(|it| [Fault::Kill(it.clone()), Fault::Pause(it, LONGEST_PAUSE)])
                .collect::<Vec<_>>()
        };
        let disturb = |way| {
            let brief = LONGEST_PAUSE / 4;
            vec![
                Fault::Disturb(way, Weather::Cut, brief * 2),
                Fault::Disturb(way, Weather::Slow(Duration::from_millis(40)), LONGEST_PAUSE),
                Fault::Disturb(way, Weather::Held, LONGEST_PAUSE),
                Fault::Disturb(way, Weather::Answerless, brief),
            ]
        };
        let mut writes = both(cluster.like("command-"));
        writes.extend(both(cluster.like("postgres-log")));
        writes.push(Fault::KillSession("postgres-log".to_owned(), 0));
        writes.extend([Fault::KillLeader, Fault::PauseLeader(LONGEST_PAUSE)]);
        writes.extend(disturb(Way::Log));
        if only.iter().any(|word| word == DISK_FULL) {
            writes.push(Fault::DiskFull(FULL_FOR));
        }
        let mut views = both(cluster.like("projector-"));
        views.extend(both(cluster.like("query-")));
        let mut below = Vec::new();
        for member in ["postgres-views", "postgres-replica", "redis", "kafka", "pgbouncer"] {
            below.extend(both(cluster.like(member)));
        }
        below.push(Fault::KillSession("postgres-views".to_owned(), 0));
        below.extend(disturb(Way::Views));
        let away: Vec<String> = ["kafka", "redis"].iter().flat_map(|member| cluster.like(member)).collect();
        let wanted = |fault: &Fault| only.is_empty() || only.iter().any(|word| fault.name().contains(word));
        let mut lane = |kinds: Vec<Fault>, members, on_the_way_of_writes| Lane {
            random: random.fork(),
            on_the_way_of_writes,
            members,
            kinds: kinds.into_iter().filter(|fault| wanted(fault)).collect(),
            round: Vec::new(),
        };
        let [of_writes, of_views, of_below] = LANES;
        Self {
            lanes: vec![
                lane(writes, of_writes, true),
                lane(views, of_views, false),
                lane(below, of_below, false),
            ],
            exclusive: [Fault::Everything, Fault::Gone(away, gone_for)].into_iter().filter(wanted).collect(),
        }
    }
}

/// What faults need to strike.
pub(crate) struct Arena {
    pub(crate) cluster: Arc<Cluster>,
    links: Arc<Links>,
    disk: Option<Arc<Disk>>,
    pub(crate) stage: Arc<Stage>,
    pub(crate) began: Instant,
    http: reqwest::Client,
    struck: Mutex<Vec<Struck>>,
    /// Whom lanes strike that have come to the end of a round.
    due: Mutex<BTreeSet<&'static str>>,
    /// Taken by a lane for each fault, and alone by what strikes alone.
    turn: RwLock<()>,
}

impl Arena {
    /// Nothing has struck yet.
    pub(crate) fn new(
        cluster: Arc<Cluster>,
        links: Arc<Links>,
        disk: Option<Arc<Disk>>,
        stage: Arc<Stage>,
        began: Instant,
    ) -> Self {
        let http = reqwest::Client::builder().timeout(ASK_WITHIN).pool_max_idle_per_host(0).build();
        Self {
            cluster,
            links,
            disk,
            stage,
            began,
            http: http.unwrap_or_default(),
            struck: Mutex::default(),
            due: Mutex::default(),
            turn: RwLock::new(()),
        }
    }

    /// Lets faults strike for a time, and up to [`LONGER`] times as long while fewer commands than `least` have been
    /// acknowledged: a slow machine needs longer. Then it waits until the last are over.
    pub(crate) async fn strike(self: &Arc<Self>, plan: Plan, time: Duration, least: u64) {
        let over = CancellationToken::new();
        let mut lanes = tokio::task::JoinSet::new();
        for lane in plan.lanes {
            lanes.spawn(Arc::clone(self).run(lane, over.clone()));
        }
        let end = Instant::now() + time;
        let parts = u32::try_from(plan.exclusive.len()).unwrap_or(0) + 1;
        for fault in plan.exclusive {
            tokio::time::sleep(time / parts / 2).await;
            let alone = self.turn.write().await;
            self.one(fault, true).await;
            drop(alone);
        }
        tokio::time::sleep_until(end.into()).await;
        while self.stage.accepted() < least && Instant::now() < end + time * (LONGER - 1) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        over.cancel();
        while lanes.join_next().await.is_some() {}
    }

    /// All faults that have struck.
    pub(crate) fn struck(&self) -> Vec<Struck> {
        self.struck.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Those whom at least one fault must have struck: their lane was through with all of its faults. A machine may be
    /// too slow for that.
    pub(crate) fn due(&self) -> BTreeSet<&'static str> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn run(self: Arc<Self>, mut lane: Lane, over: CancellationToken) {
        while !over.is_cancelled() {
            tokio::time::timeout(lane.gap(), over.cancelled()).await.ok();
            let turn = self.turn.read().await;
            if over.is_cancelled() {
                return;
            }
            let Some(fault) = lane.next() else { return };
            self.one(fault, lane.on_the_way_of_writes).await;
            drop(turn);
            if lane.round.is_empty() {
                self.due.lock().unwrap_or_else(PoisonError::into_inner).extend(lane.members);
            }
        }
    }

    /// One fault, until what it broke is back. What Kafka needs to come up, other faults need not wait for: it is seen
    /// to apart, and so is what takes too long. A fault that strikes nothing is none.
    async fn one(self: &Arc<Self>, fault: Fault, on_the_way_of_writes: bool) {
        let name = fault.name();
        let Some(fault) = self.aimed(fault).await else {
            tracing::warn!(name, "there is nobody to strike");
            return;
        };
        let from = self.began.elapsed();
        tracing::info!(at = from.as_secs_f32(), ?fault, "strikes");
        let Some(members) = self.inflict(fault).await else {
            tracing::warn!(name, "nothing was struck");
            return;
        };
        let (later, first): (Vec<String>, Vec<String>) =
            members.into_iter().partition(|member| member == "kafka");
        let back = self.is_back(&first, on_the_way_of_writes, Some(Instant::now() + BACK_WITHIN)).await;
        let in_time = back.is_some();
        let back = back.filter(|_| later.is_empty());
        let number = {
            let mut struck = self.struck.lock().unwrap_or_else(PoisonError::into_inner);
            let over = self.began.elapsed();
            struck.push(Struck { name: name.clone(), on_the_way_of_writes, from, over, back });
            struck.len() - 1
        };
        if !in_time {
            tracing::warn!(name, ?first, "not back in time, going on");
        }
        if back.is_none() {
            let missing = if in_time { later } else { [first, later].concat() };
            let arena = Arc::clone(self);
            tokio::spawn(async move {
                let back = arena.is_back(&missing, on_the_way_of_writes && !in_time, None).await;
                let mut struck = arena.struck.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(fault) = struck.get_mut(number) {
                    fault.back = back;
                }
            });
        }
    }

    /// The same fault, at somebody who is there. `None`: there is nobody.
    async fn aimed(&self, fault: Fault) -> Option<Fault> {
        let end = Instant::now() + SOMEBODY_WITHIN;
        loop {
            let aimed = match &fault {
                Fault::KillLeader => self.leader().await.map(Fault::Kill),
                Fault::PauseLeader(time) => self.leader().await.map(|leader| Fault::Pause(leader, *time)),
                Fault::Kill(member) | Fault::Pause(member, _) | Fault::KillSession(member, _) => {
                    self.cluster.process(member).map(|_| fault.clone())
                }
                Fault::Disturb(..) | Fault::Gone(..) | Fault::Everything | Fault::DiskFull(_) => {
                    Some(fault.clone())
                }
            };
            if aimed.is_some() || Instant::now() > end {
                return aimed;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Breaks it, and mends what does not mend itself. Returns whom to wait for; `None`: it has struck nothing.
    async fn inflict(&self, fault: Fault) -> Option<Vec<String>> {
        let cluster = &self.cluster;
        match fault {
            Fault::Kill(member) => cluster.kill(&member).await.then(|| vec![member]),
            Fault::Pause(member, time) => {
                let paused = cluster.pause(&member);
                if paused {
                    tokio::time::sleep(time).await;
                    cluster.go_on(&member);
                }
                paused.then(|| vec![member])
            }
            Fault::KillSession(member, choice) => {
                let killed = cluster.kill_below(&member, "127.0.0.1", choice).await;
                killed.then(|| vec![member])
            }
            // Whoever it was is named by now.
            Fault::KillLeader | Fault::PauseLeader(_) => None,
            Fault::Disturb(way, weather, time) => {
                let link = if way == Way::Log { &self.links.log } else { &self.links.views };
                link.set(weather);
                tokio::time::sleep(time).await;
                link.set(Weather::Fair);
                Some(Vec::new())
            }
            Fault::Gone(members, time) => {
                let mut ran = false;
                for member in &members {
                    ran |= cluster.keep_away(member).await;
                }
                tokio::time::sleep(time).await;
                for member in &members {
                    cluster.let_back(member);
                }
                ran.then_some(members)
            }
            Fault::DiskFull(time) => {
                let disk = self.disk.as_ref()?;
                cluster.forgive(LOG);
                if let Err(error) = block_in_place(|| disk.fill()) {
                    tracing::error!(%error, "a disk could not be filled");
                    return None;
                }
                tokio::time::sleep(time).await;
                cluster.forgive(LOG);
                if let Err(error) = block_in_place(|| disk.free()) {
                    tracing::error!(%error, "a disk could not be freed again");
                }
                Some(vec![LOG.to_owned()])
            }
            Fault::Everything => {
                let killed = futures_util::future::join_all(
                    cluster.members().iter().map(|member| cluster.kill_tree(member)),
                )
                .await;
                killed.contains(&true).then(|| cluster.members().to_vec())
            }
        }
    }

    /// The command service that publishes; while a lease is being taken over there is none for a moment.
    async fn leader(&self) -> Option<String> {
        for member in self.cluster.like("command-") {
            let Ok(port) = self.cluster.port(&member) else { continue };
            let answered = async {
                self.http.get(format!("http://127.0.0.1:{port}/metrics")).send().await?.text().await
            };
            if answered.await.is_ok_and(|text| text.lines().any(|line| line == "tidemark_publisher_leads 1"))
            {
                return Some(member);
            }
        }
        None
    }

    /// When all of these are ready and, if it stood in their way, a command that was sent after that was done. `None`:
    /// not in time, or, where there is no end, not before the cluster was stopped.
    async fn is_back(&self, members: &[String], writes: bool, end: Option<Instant>) -> Option<Duration> {
        let is_over = || end.map_or_else(|| self.cluster.is_over(), |end| Instant::now() > end);
        for member in members {
            while !self.ready(member).await {
                if is_over() {
                    return None;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        let ready = self.began.elapsed();
        while writes && self.stage.wrote() < ready {
            if is_over() {
                return None;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Some(self.began.elapsed())
    }

    /// Whether a member can do its work, as far as can be seen from outside.
    pub(crate) async fn ready(&self, member: &str) -> bool {
        if self.cluster.process(member).is_none() {
            return false;
        }
        let Ok(port) = self.cluster.port(member) else { return false };
        let asked = async {
            match member {
                "nginx" => true,
                "pgbouncer" | "redis" | "kafka" => TcpStream::connect(("127.0.0.1", port)).await.is_ok(),
                _ if member.starts_with("postgres-") => log::connect(port, "postgres").await.is_ok(),
                _ => {
                    let asked = self.http.get(format!("http://127.0.0.1:{port}/readyz")).send().await;
                    asked.is_ok_and(|response| response.status().is_success())
                }
            }
        };
        tokio::time::timeout(ASK_WITHIN, asked).await.unwrap_or(false)
    }
}

/// Which faults a wait of a client is due to, each with its part of the wait. Of a write: those that stood in its way,
/// which strike one after the other, each from when it struck until the next one did, since no fault is the cause of what
/// was before it. Of a read, and where there are none: the one under which it waited longest, of those that stood in its
/// way if there are any. What was refused is counted once, with the longest part.
pub(crate) fn causes(struck: &[Struck], wait: Wait, writes: bool) -> Vec<(&Struck, Wait)> {
    let during = || struck.iter().filter(|fault| fault.from <= wait.to && fault.over >= wait.from);
    let mut causes: Vec<&Struck> = during().filter(|fault| writes && fault.on_the_way_of_writes).collect();
    if causes.is_empty() {
        causes.extend(during().max_by_key(|fault| {
            let together = fault.over.min(wait.to).saturating_sub(fault.from.max(wait.from));
            (fault.on_the_way_of_writes == writes, together)
        }));
    }
    causes.sort_unstable_by_key(|fault| fault.from);
    let begins: Vec<Duration> = causes.iter().skip(1).map(|fault| fault.from).chain([wait.to]).collect();
    let mut from = wait.from.max(causes.first().map_or(Duration::ZERO, |first| first.from));
    let mut parts: Vec<_> = causes
        .into_iter()
        .zip(begins)
        .map(|(fault, to)| {
            let part = Wait { from, to: to.max(from), errors: 0 };
            from = part.to;
            (fault, part)
        })
        .collect();
    if let Some((_, longest)) = parts.iter_mut().max_by_key(|(_, part)| part.to.saturating_sub(part.from)) {
        longest.errors = wait.errors;
    }
    parts
}

/// How often each fault has struck.
pub(crate) fn counted(struck: &[Struck]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for fault in struck {
        *counts.entry(fault.name.as_str()).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_charged_what_was_waited_for_after_it_had_struck() {
        let fault = |name: &str, on_the_way_of_writes, from, over| Struck {
            name: name.to_owned(),
            on_the_way_of_writes,
            from: Duration::from_millis(from),
            over: Duration::from_millis(over),
            back: None,
        };
        let struck = [
            fault("slow", true, 1_000, 3_000),
            fault("views", false, 500, 9_000),
            fault("kill", true, 3_400, 5_000),
        ];
        let charged = |from, to, writes| {
            let (from, to) = (Duration::from_millis(from), Duration::from_millis(to));
            causes(&struck, Wait { from, to, errors: 7 }, writes)
                .into_iter()
                .map(|(fault, part)| (fault.name.clone(), (part.to - part.from).as_millis(), part.errors))
                .collect::<Vec<_>>()
        };
        let of = |name: &str, time, errors| (name.to_owned(), time, errors);
        assert_eq!(charged(900, 3_600, true), [of("slow", 2_400, 7), of("kill", 200, 0)]);
        assert_eq!(charged(2_900, 4_500, true), [of("slow", 500, 0), of("kill", 1_100, 7)]);
        assert_eq!(charged(3_500, 9_500, true), [of("kill", 6_000, 7)], "what it has broken stays so");
        assert_eq!(charged(900, 4_500, false), [of("views", 3_600, 7)]);
        assert_eq!(charged(5_100, 5_300, true), [of("views", 200, 7)], "nothing else was broken");
        assert_eq!(charged(9_001, 9_500, true), []);
    }
}
