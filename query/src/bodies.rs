//! One body, from wherever it is nearest: Redis, a replica, the primary. (The process's own memory comes before:
//! [`crate::cache`].)

use std::time::Instant;

use tidemark_http::problem::{self, Problem};
use tidemark_views::body::{self, Body, Kind, Tables};
use uuid::Uuid;

use crate::cache::Ready;
use crate::feed::View;
use crate::reads::Planned;
use crate::{QueryState, arguments, reply, unavailable};

impl QueryState {
    /// The live tables, once there are those of `views`.
    pub(crate) fn tables(&self, views: &[View]) -> Result<Tables, Problem> {
        let instance = |view| self.0.standing.of(view).instance;
        if views.iter().any(|&view| instance(view) == 0) {
            let detail = "the views are not there yet";
            return Err(Problem::new(&problem::UNAVAILABLE, detail).with_retry_after(1));
        }
        Ok(Tables {
            products: instance(View::Products),
            stock: instance(View::Stock),
            orders: instance(View::Orders),
        })
    }

    /// Reads a body; `None` when there is no such thing.
    pub(crate) async fn load(&self, kind: Kind, id: Uuid) -> Result<Option<Ready>, Problem> {
        let state = &self.0;
        // Before the tables are chosen: when readers are led to others, what was read of these is not kept.
        let (read_at, needed) = (Instant::now(), state.cache.needed_of(id));
        let tables = match kind {
            Kind::Product => self.tables(&[View::Products, View::Stock])?,
            Kind::Order => self.tables(&[View::Orders])?,
        };
        let shelf = state.shelf.as_ref().filter(|_| state.standing.is_fresh());
        let shelf = shelf.and_then(|shelf| Some((shelf, shelf.session()?)));
        if let Some((shelf, session)) = &shelf
            && let Some(found) = shelf.get(session, kind, id, needed).await
        {
            return Ok(Some(ready(found.body, found.number, read_at)));
        }
        let statement = body::statement(kind, tables);
        let (number, rows) =
            state.reads.rows(&state.standing, needed, &statement, Planned::Once, arguments!([id])?).await?;
        let bodies = body::read(kind, &rows).map_err(|error| unavailable(&error))?;
        let Some(body) = bodies.into_iter().next() else { return Ok(None) };
        if let Some((shelf, session)) = shelf {
            // All changes up to here are known; if none of them is of this key, the body knows them too.
            let known = state.standing.newest();
            let number = if state.cache.needed_of(id) <= number { number.max(known) } else { number };
            shelf.put(session, kind, number, body.clone());
        }
        Ok(Some(ready(body, number, read_at)))
    }
}

fn ready(body: Body, number: i64, read_at: Instant) -> Ready {
    Ready {
        etag: reply::etag_of_versions(format_args!("{}", body.tag), &body.json),
        body: body.json.into(),
        owner: body.owner,
        link: None,
        parked: body.parked,
        number,
        read_at,
    }
}
