//! Who did what from where: acts of people of the shop and what happened to accounts, security events, and the accounts
//! there are. One projection feeds all three, so that the log is looked through once for them.
//!
//! Nothing in it is personal but the addresses of security events, and those stand sealed as in the events: when an
//! account's key is destroyed nobody can open them any more, and nothing is to be emptied here.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};
use tidemark_events::account::AccountRole;
use tidemark_events::audit::{SecurityEvent, security_event};
use tidemark_events::fact::AccountEvent;
use tidemark_events::log::Filter;
use tidemark_events::{Fact, Personal};
use uuid::Uuid;

use crate::projection::{Applied, ApplyError, Event, Projection, Retention};

/// The projection `audit`.
#[derive(Debug, Clone, Copy)]
pub struct Audit;

impl Projection for Audit {
    fn name(&self) -> &'static str {
        tidemark_views::AUDIT
    }

    fn fold_version(&self) -> i32 {
        1
    }

    fn filter(&self) -> Filter {
        Filter { audited: true, ..Filter::default() }
    }

    fn is_sparse(&self) -> bool {
        true
    }

    fn create(&self, instance: i32) -> Vec<String> {
        vec![
            format!(
                "CREATE TABLE views.audit_{instance} (position bigint PRIMARY KEY, recorded_at timestamptz NOT NULL, \
                 event_type text NOT NULL, category text NOT NULL, resource uuid NOT NULL, stream_id uuid NOT NULL, \
                 version bigint NOT NULL, actor text NOT NULL, origin cidr, correlation_id uuid NOT NULL)"
            ),
            format!(
                "CREATE TABLE views.security_events_{instance} (position bigint PRIMARY KEY, \
                 recorded_at timestamptz NOT NULL, kind text NOT NULL, detail text, account_id uuid NOT NULL, \
                 session_id uuid, actor text NOT NULL, origin cidr, source text)"
            ),
            format!(
                "CREATE TABLE views.accounts_{instance} (id uuid PRIMARY KEY, status text NOT NULL, \
                 role text NOT NULL, verified boolean NOT NULL, second_factor boolean NOT NULL, \
                 registered_at timestamptz NOT NULL, version bigint NOT NULL) WITH (fillfactor = 80)"
            ),
        ]
    }

    fn index(&self, instance: i32) -> Vec<String> {
        // Times never go back along positions, so both orders are one.
        let mut statements = Vec::new();
        for (table, column) in [
            ("audit", ""),
            ("audit", "actor"),
            ("audit", "event_type"),
            ("security_events", ""),
            ("security_events", "account_id"),
            ("security_events", "kind"),
        ] {
            let (suffix, first) = if column.is_empty() {
                ("recorded_at", String::new())
            } else {
                (column, format!("{column}, "))
            };
            statements.push(format!(
                "CREATE INDEX IF NOT EXISTS {table}_{instance}_{suffix} \
                 ON views.{table}_{instance} ({first}recorded_at, position)"
            ));
        }
        for column in ["role", "status"] {
            statements.push(format!(
                "CREATE INDEX IF NOT EXISTS accounts_{instance}_{column} ON views.accounts_{instance} ({column}, id)"
            ));
        }
        statements.extend(TABLES.map(|table| format!("ANALYZE views.{table}_{instance}")));
        statements
    }

    fn remove(&self, instance: i32) -> Vec<String> {
        TABLES.map(|table| format!("DROP TABLE IF EXISTS views.{table}_{instance}")).into()
    }

    fn apply<'a>(
        &'a self,
        connection: &'a mut PgConnection,
        instance: i32,
        retention: Retention,
        events: &'a [Event<'a>],
    ) -> Applied<'a> {
        Box::pin(apply(connection, instance, retention, events))
    }

    fn prune(&self, instance: i32) -> Option<String> {
        // Of several projectors each takes what no other is at.
        Some(format!(
            "DELETE FROM views.security_events_{instance} WHERE position = ANY(ARRAY(\
             SELECT position FROM views.security_events_{instance} \
             WHERE recorded_at < now() - make_interval(secs => $1) ORDER BY recorded_at LIMIT $2 \
             FOR UPDATE SKIP LOCKED))"
        ))
    }
}

const TABLES: [&str; 3] = ["audit", "security_events", "accounts"];

/// No body in any cache is of these rows, so no key is told.
async fn apply(
    connection: &mut PgConnection,
    instance: i32,
    retention: Retention,
    events: &[Event<'_>],
) -> Result<Vec<Uuid>, ApplyError> {
    let acts: Vec<&Event<'_>> = events.iter().filter(|event| is_act(&event.fact)).collect();
    let security: Vec<(&Event<'_>, SecurityEvent<'_>)> =
        events.iter().filter_map(|event| Some((event, security_event(&event.fact)?))).collect();
    let mut accounts: BTreeMap<Uuid, Change> = BTreeMap::new();
    for event in events {
        if let Fact::Account(fact) = &event.fact {
            accounts.entry(event.stream_id).or_default().fold(event, fact);
        }
    }
    insert_acts(connection, instance, &acts).await?;
    insert_security(connection, instance, retention, &security).await?;
    let (new, known): (Vec<_>, Vec<_>) =
        accounts.into_iter().partition(|(_, change)| change.registered_at.is_some());
    insert_accounts(connection, instance, &new).await?;
    update_accounts(connection, instance, &known).await?;
    Ok(Vec::new())
}

/// Whether it is in the audit for good. Log-ins, and those that failed, are security events alone, and go with them.
fn is_act(fact: &Fact) -> bool {
    !matches!(fact, Fact::Session(_) | Fact::Account(AccountEvent::LoginFailed(_)))
}

/// What has changed of an account; what has not is `None`. That one is active holds only if its address is verified,
/// which may stand in the row alone: a reinstated one that never was is pending.
#[derive(Debug, Default)]
struct Change {
    registered_at: Option<DateTime<Utc>>,
    status: Option<&'static str>,
    role: Option<AccountRole>,
    verified: Option<bool>,
    second_factor: Option<bool>,
    version: i64,
}

impl Change {
    fn fold(&mut self, recorded: &Event<'_>, event: &AccountEvent) {
        self.version = recorded.version;
        match event {
            AccountEvent::AccountRegistered(_) => self.registered_at = Some(recorded.recorded_at),
            AccountEvent::EmailVerified(_) => {
                self.status = Some("active");
                self.verified = Some(true);
            }
            AccountEvent::AccountReinstated(_) => self.status = Some("active"),
            AccountEvent::AccountDeactivated(_) => self.status = Some("deactivated"),
            AccountEvent::AccountErased(_) => {
                self.status = Some("erased");
                self.role = Some(AccountRole::default());
                self.second_factor = Some(false);
            }
            AccountEvent::RoleGranted(event) => self.role = Some(event.role),
            AccountEvent::SecondFactorEnabled(_) => self.second_factor = Some(true),
            AccountEvent::SecondFactorDisabled(_) => self.second_factor = Some(false),
            AccountEvent::VerificationRequested(_)
            | AccountEvent::RegistrationRepeated(_)
            | AccountEvent::PasswordResetRequested(_)
            | AccountEvent::PasswordChanged(_)
            | AccountEvent::ProfileUpdated(_)
            | AccountEvent::AddressAdded(_)
            | AccountEvent::AddressRevised(_)
            | AccountEvent::AddressRemoved(_)
            | AccountEvent::LoginFailed(_) => {}
        }
    }
}

fn origin(event: &Event<'_>) -> Option<String> {
    event.metadata.origin.map(|origin| origin.to_string())
}

async fn insert_acts(
    connection: &mut PgConnection,
    instance: i32,
    acts: &[&Event<'_>],
) -> Result<(), sqlx::Error> {
    if acts.is_empty() {
        return Ok(());
    }
    let kinds: Vec<_> = acts.iter().map(|act| act.fact.event_type()).collect();
    sqlx::query(AssertSqlSafe(format!(
        "INSERT INTO views.audit_{instance} \
           (position, recorded_at, event_type, category, resource, stream_id, version, actor, origin, correlation_id) \
         SELECT position, recorded_at, event_type, category, resource, stream_id, version, actor, origin::cidr, \
           correlation_id \
         FROM unnest($1::bigint[], $2::timestamptz[], $3::text[], $4::text[], $5::uuid[], $6::uuid[], $7::bigint[], \
           $8::text[], $9::text[], $10::uuid[]) AS u (position, recorded_at, event_type, category, resource, \
           stream_id, version, actor, origin, correlation_id)"
    )))
    .bind(acts.iter().map(|act| act.position).collect::<Vec<_>>())
    .bind(acts.iter().map(|act| act.recorded_at).collect::<Vec<_>>())
    .bind(kinds.iter().map(|kind| kind.name).collect::<Vec<_>>())
    .bind(kinds.iter().map(|kind| kind.category).collect::<Vec<_>>())
    .bind(acts.iter().map(|act| act.partition_key).collect::<Vec<_>>())
    .bind(acts.iter().map(|act| act.stream_id).collect::<Vec<_>>())
    .bind(acts.iter().map(|act| act.version).collect::<Vec<_>>())
    .bind(acts.iter().map(|act| act.metadata.actor.as_str()).collect::<Vec<_>>())
    .bind(acts.iter().map(|act| origin(act)).collect::<Vec<_>>())
    .bind(acts.iter().map(|act| act.metadata.correlation_id).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// What is behind the retention already is not written at all.
async fn insert_security(
    connection: &mut PgConnection,
    instance: i32,
    retention: Retention,
    events: &[(&Event<'_>, SecurityEvent<'_>)],
) -> Result<(), sqlx::Error> {
    if events.is_empty() {
        return Ok(());
    }
    let session = |event: &Event<'_>| matches!(event.fact, Fact::Session(_)).then_some(event.stream_id);
    sqlx::query(AssertSqlSafe(format!(
        "INSERT INTO views.security_events_{instance} \
           (position, recorded_at, kind, detail, account_id, session_id, actor, origin, source) \
         SELECT position, recorded_at, kind, detail, account_id, session_id, actor, origin::cidr, source \
         FROM unnest($1::bigint[], $2::timestamptz[], $3::text[], $4::text[], $5::uuid[], $6::uuid[], $7::text[], \
           $8::text[], $9::text[]) \
           AS u (position, recorded_at, kind, detail, account_id, session_id, actor, origin, source) \
         WHERE recorded_at >= now() - make_interval(secs => $10)"
    )))
    .bind(events.iter().map(|(event, _)| event.position).collect::<Vec<_>>())
    .bind(events.iter().map(|(event, _)| event.recorded_at).collect::<Vec<_>>())
    .bind(events.iter().map(|(_, what)| what.kind).collect::<Vec<_>>())
    .bind(events.iter().map(|(_, what)| what.detail).collect::<Vec<_>>())
    .bind(events.iter().map(|(event, _)| event.partition_key).collect::<Vec<_>>())
    .bind(events.iter().map(|(event, _)| session(event)).collect::<Vec<_>>())
    .bind(events.iter().map(|(event, _)| event.metadata.actor.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|(event, _)| origin(event)).collect::<Vec<_>>())
    .bind(events.iter().map(|(_, what)| what.source.map(Personal::as_sealed)).collect::<Vec<_>>())
    .bind(retention.seconds())
    .execute(connection)
    .await?;
    Ok(())
}

async fn insert_accounts(
    connection: &mut PgConnection,
    instance: i32,
    accounts: &[(Uuid, Change)],
) -> Result<(), sqlx::Error> {
    if accounts.is_empty() {
        return Ok(());
    }
    let column = |accounts: &[(Uuid, Change)], value: fn(&Change) -> Option<bool>| {
        accounts.iter().map(|(_, change)| value(change).unwrap_or(false)).collect::<Vec<_>>()
    };
    sqlx::query(AssertSqlSafe(format!(
        "INSERT INTO views.accounts_{instance} (id, registered_at, status, role, verified, second_factor, version) \
         SELECT id, registered_at, CASE WHEN status = 'active' AND NOT verified THEN 'pending' ELSE status END, role, \
           verified, second_factor, version \
         FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::boolean[], $6::boolean[], \
           $7::bigint[]) AS u (id, registered_at, status, role, verified, second_factor, version)"
    )))
    .bind(accounts.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(accounts.iter().map(|(_, change)| change.registered_at).collect::<Vec<_>>())
    .bind(accounts.iter().map(|(_, change)| change.status.unwrap_or("pending")).collect::<Vec<_>>())
    .bind(accounts.iter().map(|(_, change)| change.role.unwrap_or_default().as_str()).collect::<Vec<_>>())
    .bind(column(accounts, |change| change.verified))
    .bind(column(accounts, |change| change.second_factor))
    .bind(accounts.iter().map(|(_, change)| change.version).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

async fn update_accounts(
    connection: &mut PgConnection,
    instance: i32,
    accounts: &[(Uuid, Change)],
) -> Result<(), ApplyError> {
    if accounts.is_empty() {
        return Ok(());
    }
    let updated = sqlx::query(AssertSqlSafe(format!(
        "UPDATE views.accounts_{instance} a SET status = CASE \
             WHEN u.status = 'active' AND NOT COALESCE(u.verified, a.verified) THEN 'pending' \
             ELSE COALESCE(u.status, a.status) END, \
           role = COALESCE(u.role, a.role), verified = COALESCE(u.verified, a.verified), \
           second_factor = COALESCE(u.second_factor, a.second_factor), version = u.version \
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::boolean[], $5::boolean[], $6::bigint[]) \
           AS u (id, status, role, verified, second_factor, version) WHERE a.id = u.id"
    )))
    .bind(accounts.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(accounts.iter().map(|(_, change)| change.status).collect::<Vec<_>>())
    .bind(accounts.iter().map(|(_, change)| change.role.map(AccountRole::as_str)).collect::<Vec<_>>())
    .bind(accounts.iter().map(|(_, change)| change.verified).collect::<Vec<_>>())
    .bind(accounts.iter().map(|(_, change)| change.second_factor).collect::<Vec<_>>())
    .bind(accounts.iter().map(|(_, change)| change.version).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    if updated.rows_affected() == accounts.len() as u64 {
        Ok(())
    } else {
        Err(ApplyError::Misfit("an account that something happened to is not in the view".to_owned()))
    }
}
