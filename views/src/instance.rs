//! Which tables are live, and where they stand.

use sqlx::{PgConnection, Row};
use tidemark_events::{Epoch, Position};

use crate::ViewError;

/// What an instance is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Being built beside the live one.
    Building,
    /// What readers see.
    Live,
    /// The live one before, fed on for a way back.
    Previous,
}

impl State {
    /// Its name in the table.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Live => "live",
            Self::Previous => "previous",
        }
    }

    fn parse(name: &str) -> Result<Self, sqlx::Error> {
        [Self::Building, Self::Live, Self::Previous]
            .into_iter()
            .find(|state| state.as_str() == name)
            .ok_or_else(|| sqlx::Error::Decode(format!("no state {name}").into()))
    }
}

/// A projection built at one time by one version of its fold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The projection.
    pub name: String,
    /// Its number, and the suffix of its tables.
    pub instance: i32,
    /// The version of the fold that feeds it.
    pub fold_version: i32,
    /// What it is for.
    pub state: State,
    /// The least of its partitions' epochs.
    pub epoch: Epoch,
    /// The least of its partitions' checkpoints.
    pub position: Position,
}

/// Every instance there is, by name and number.
///
/// # Errors
/// [`ViewError::Database`].
pub async fn all(connection: &mut PgConnection) -> Result<Vec<Instance>, ViewError> {
    let rows = sqlx::query(
        "SELECT p.name, p.instance, p.fold_version, p.state, COALESCE(min(c.epoch), 1), COALESCE(min(c.position), 0) \
         FROM views.projections p LEFT JOIN views.checkpoints c USING (name, instance) \
         GROUP BY p.name, p.instance ORDER BY p.name, p.instance",
    )
    .fetch_all(connection)
    .await?;
    let instance = |row: &sqlx::postgres::PgRow| {
        Ok(Instance {
            name: row.try_get(0)?,
            instance: row.try_get(1)?,
            fold_version: row.try_get(2)?,
            state: State::parse(row.try_get(3)?)?,
            epoch: row.try_get(4)?,
            position: row.try_get(5)?,
        })
    };
    rows.iter().map(instance).collect::<Result<_, sqlx::Error>>().map_err(ViewError::from)
}
