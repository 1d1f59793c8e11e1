//! The schemas of the databases: brought up to date by who writes there, looked at by who only reads.

use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool};

/// How long somebody else's migrations are waited for at once.
const LOCK_WITHIN: &str = "10s";

/// A schema and the migrations that make it.
#[derive(Debug)]
pub struct Schema {
    /// Its name; the migrations that it has had are in its table `migrations`.
    pub name: &'static str,
    /// Those that this program needs.
    pub migrator: &'static Migrator,
    /// What brings them, for whoever may not.
    pub brought_by: &'static str,
}

/// A schema that this program cannot work with.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// It is older than the program.
    #[error(
        "the schema {schema} lacks migration {version} ({description}), which this program needs: {brought_by} of this version brings it"
    )]
    Older {
        /// The schema.
        schema: &'static str,
        /// The first migration that is missing.
        version: i64,
        /// What it is called.
        description: String,
        /// Who brings it.
        brought_by: &'static str,
    },
    /// It is newer than the program.
    #[error(
        "the schema {schema} has migration {version} ({description}), which this program does not know: use the version that brought it, or a newer one"
    )]
    Newer {
        /// The schema.
        schema: &'static str,
        /// The first migration that is not known.
        version: i64,
        /// What it is called.
        description: String,
    },
    /// One of its migrations is another.
    #[error(
        "migration {version} ({description}) of the schema {schema} is not the one of this program: the database belongs to another program"
    )]
    Other {
        /// The schema.
        schema: &'static str,
        /// The first migration that differs.
        version: i64,
        /// What it is called in the database.
        description: String,
    },
    /// A migration failed.
    #[error("migrating the schema {schema}: {error}")]
    Failed {
        /// The schema.
        schema: &'static str,
        /// Why.
        #[source]
        error: MigrateError,
    },
    /// The database did not answer, or refused.
    #[error("looking at the schema's migrations: {0}")]
    Database(#[from] sqlx::Error),
}

impl SchemaError {
    /// Whether database and program do not belong together, so that trying again is of no use.
    #[must_use]
    pub fn is_misfit(&self) -> bool {
        matches!(self, Self::Older { .. } | Self::Newer { .. } | Self::Other { .. })
    }
}

impl Schema {
    /// Makes it, or brings it up to date. Several processes may do so at once.
    ///
    /// # Errors
    /// [`SchemaError::Newer`] and [`SchemaError::Other`] when it is none of this program's, else
    /// [`SchemaError::Failed`]; nothing is changed by a migration that failed.
    pub async fn migrate(&self, pool: &PgPool) -> Result<(), SchemaError> {
        let mut migrator = Migrator { ..Migrator::DEFAULT };
        migrator.migrations = self.migrator.migrations.clone();
        migrator.create_schema(self.name);
        migrator.dangerous_set_table_name(format!("{}.migrations", self.name));
        match migrator.run(pool).await {
            Ok(()) => Ok(()),
            Err(error @ (MigrateError::VersionMissing(_) | MigrateError::VersionMismatch(_))) => {
                self.compare(&mut *pool.acquire().await?).await?;
                Err(SchemaError::Failed { schema: self.name, error })
            }
            Err(error) => Err(SchemaError::Failed { schema: self.name, error }),
        }
    }

    /// Looks whether it is as this program needs it; `false`: nobody has made it yet. Changes nothing, and waits for
    /// migrations that are under way.
    ///
    /// # Errors
    /// [`SchemaError`], when it is not.
    pub async fn check(&self, options: &PgConnectOptions) -> Result<bool, SchemaError> {
        let mut connection = options.clone().options([("lock_timeout", LOCK_WITHIN)]).connect().await?;
        connection.lock().await.map_err(|error| SchemaError::Failed { schema: self.name, error })?;
        let found = self.compare(&mut connection).await;
        // Ends the session, and with it the lock.
        connection.close().await.ok();
        found
    }

    /// Compares the migrations that the database has had with those of this program; `false`: it has had none.
    async fn compare(&self, connection: &mut PgConnection) -> Result<bool, SchemaError> {
        let (schema, table) = (self.name, format!("{}.migrations", self.name));
        let there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(&table)
            .fetch_one(&mut *connection)
            .await?;
        if !there {
            return Ok(false);
        }
        let statement = format!("SELECT version, description, checksum FROM {table} ORDER BY version");
        let applied: Vec<(i64, String, Vec<u8>)> =
            sqlx::query_as(AssertSqlSafe(statement)).fetch_all(connection).await?;
        for (version, description, checksum) in &applied {
            let (version, description) = (*version, description.clone());
            match self.migrator.iter().find(|known| known.version == version) {
                None => return Err(SchemaError::Newer { schema, version, description }),
                Some(known) if *known.checksum != **checksum => {
                    return Err(SchemaError::Other { schema, version, description });
                }
                Some(_) => {}
            }
        }
        let missing =
            self.migrator.iter().find(|known| applied.iter().all(|(version, ..)| *version != known.version));
        match missing {
            None => Ok(true),
            Some(_) if applied.is_empty() => Ok(false),
            Some(known) => Err(SchemaError::Older {
                schema,
                version: known.version,
                description: known.description.to_string(),
                brought_by: self.brought_by,
            }),
        }
    }
}
