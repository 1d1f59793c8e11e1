//! The catalog, to be read by id and to be searched. What is available of a product stands in the view `stock`.

use std::collections::{HashMap, HashSet};

use sqlx::{AssertSqlSafe, PgConnection, Row};
use tidemark_events::fact::ProductEvent;
use tidemark_events::log::Filter;
use tidemark_events::{Fact, stream};
use uuid::Uuid;

use crate::projection::{Applied, ApplyError, Event, Projection, Retention};

/// The projection `products`.
#[derive(Debug, Clone, Copy)]
pub struct Products;

struct Product {
    sku: String,
    name: String,
    description: Option<String>,
    department: Option<String>,
    price_amount: i64,
    price_currency: String,
    status: String,
    version: i64,
    created_position: i64,
}

impl Projection for Products {
    fn name(&self) -> &'static str {
        tidemark_views::PRODUCTS
    }

    fn fold_version(&self) -> i32 {
        1
    }

    fn filter(&self) -> Filter {
        Filter { categories: vec![stream::PRODUCT.into()], ..Filter::default() }
    }

    fn create(&self, instance: i32) -> Vec<String> {
        // Any word of the catalog's language is found as it is written: 'simple' neither stems nor drops words. What
        // is no letter or digit separates: "CRUSHED/CUBED" is two words, not a path.
        let words = |column: &str| {
            format!("to_tsvector('simple', regexp_replace({column}, '[^[:alnum:]]+', ' ', 'g'))")
        };
        let (name, sku, description) = (words("name"), words("sku"), words("COALESCE(description, '')"));
        vec![format!(
            "CREATE TABLE views.products_{instance} (id uuid PRIMARY KEY, sku text NOT NULL, name text NOT NULL, \
             description text, department text, price_amount bigint NOT NULL, price_currency text NOT NULL, \
             status text NOT NULL, version bigint NOT NULL, created_position bigint NOT NULL, \
             search tsvector NOT NULL GENERATED ALWAYS AS (setweight({name}, 'A') || \
               setweight({sku}, 'A') || setweight({description}, 'C')) STORED) \
             WITH (fillfactor = 90)"
        )]
    }

    fn index(&self, instance: i32) -> Vec<String> {
        let on_sale = "WHERE status = 'published'";
        let table = format!("products_{instance}");
        vec![
            format!(
                "CREATE INDEX IF NOT EXISTS {table}_search ON views.{table} USING gin (search) \
                 WITH (fastupdate = off) {on_sale}"
            ),
            format!("CREATE INDEX IF NOT EXISTS {table}_name ON views.{table} (name, id) {on_sale}"),
            format!("CREATE INDEX IF NOT EXISTS {table}_price ON views.{table} (price_amount, id) {on_sale}"),
            format!(
                "CREATE INDEX IF NOT EXISTS {table}_new ON views.{table} (created_position, id) {on_sale}"
            ),
            format!(
                "CREATE INDEX IF NOT EXISTS {table}_department_name ON views.{table} (department, name, id) {on_sale}"
            ),
            format!(
                "CREATE INDEX IF NOT EXISTS {table}_department_price ON views.{table} \
                 (department, price_amount, id) {on_sale}"
            ),
            format!("ANALYZE views.{table}"),
        ]
    }

    fn remove(&self, instance: i32) -> Vec<String> {
        vec![format!("DROP TABLE IF EXISTS views.products_{instance}")]
    }

    fn apply<'a>(
        &'a self,
        connection: &'a mut PgConnection,
        instance: i32,
        _: Retention,
        events: &'a [Event<'a>],
    ) -> Applied<'a> {
        Box::pin(apply(connection, instance, events))
    }
}

async fn apply(
    connection: &mut PgConnection,
    instance: i32,
    events: &[Event<'_>],
) -> Result<Vec<Uuid>, ApplyError> {
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let made: HashSet<Uuid> =
        events.iter().filter(|event| event.version == 1).map(|event| event.stream_id).collect();
    let known: HashSet<Uuid> =
        events.iter().map(|event| event.stream_id).filter(|stream| !made.contains(stream)).collect();
    let mut products = load(connection, instance, known.into_iter().collect()).await?;
    for event in events {
        let Fact::Product(fact) = &event.fact else { continue };
        fold(&mut products, event, fact)?;
    }
    let mut products: Vec<(Uuid, Product)> = products.into_iter().collect();
    // What is found together has words in common, and often begins with them: side by side, it takes fewer pages to read.
    products.sort_unstable_by(|(_, one), (_, other)| one.name.cmp(&other.name));
    store(connection, instance, &products).await?;
    Ok(products.into_iter().map(|(id, _)| id).collect())
}

fn fold(
    products: &mut HashMap<Uuid, Product>,
    event: &Event<'_>,
    fact: &ProductEvent,
) -> Result<(), ApplyError> {
    if let ProductEvent::ProductCreated(created) = fact {
        products.insert(
            event.stream_id,
            Product {
                sku: created.sku.clone(),
                name: created.name.clone(),
                description: created.description.clone(),
                department: created.department.clone(),
                price_amount: created.price.amount,
                price_currency: created.price.currency.to_string(),
                status: "draft".to_owned(),
                version: event.version,
                created_position: event.position,
            },
        );
        return Ok(());
    }
    let product = products
        .get_mut(&event.stream_id)
        .ok_or_else(|| ApplyError::Misfit(format!("product {} is not in the view", event.stream_id)))?;
    product.version = event.version;
    match fact {
        ProductEvent::ProductCreated(_) => {}
        ProductEvent::ProductRevised(revised) => {
            product.name.clone_from(&revised.name);
            product.description.clone_from(&revised.description);
            product.department.clone_from(&revised.department);
        }
        ProductEvent::PriceChanged(changed) => {
            product.price_amount = changed.price.amount;
            product.price_currency = changed.price.currency.to_string();
        }
        ProductEvent::ProductPublished(_) => "published".clone_into(&mut product.status),
        ProductEvent::ProductRetired(_) => "retired".clone_into(&mut product.status),
    }
    Ok(())
}

async fn load(
    connection: &mut PgConnection,
    instance: i32,
    ids: Vec<Uuid>,
) -> Result<HashMap<Uuid, Product>, ApplyError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query(AssertSqlSafe(format!(
        "SELECT id, sku, name, description, department, price_amount, price_currency, status, version, \
         created_position FROM views.products_{instance} WHERE id = ANY($1)"
    )))
    .bind(ids)
    .fetch_all(connection)
    .await?;
    let mut products = HashMap::with_capacity(rows.len());
    for row in rows {
        let product = Product {
            sku: row.try_get(1)?,
            name: row.try_get(2)?,
            description: row.try_get(3)?,
            department: row.try_get(4)?,
            price_amount: row.try_get(5)?,
            price_currency: row.try_get(6)?,
            status: row.try_get(7)?,
            version: row.try_get(8)?,
            created_position: row.try_get(9)?,
        };
        products.insert(row.try_get(0)?, product);
    }
    Ok(products)
}

async fn store(
    connection: &mut PgConnection,
    instance: i32,
    products: &[(Uuid, Product)],
) -> Result<(), ApplyError> {
    fn column<'a, T>(products: &'a [(Uuid, Product)], value: impl Fn(&'a Product) -> T) -> Vec<T> {
        products.iter().map(|(_, product)| value(product)).collect()
    }
    sqlx::query(AssertSqlSafe(format!(
        "INSERT INTO views.products_{instance} (id, sku, name, description, department, price_amount, \
           price_currency, status, version, created_position) \
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], \
           $7::text[], $8::text[], $9::bigint[], $10::bigint[]) \
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, description = excluded.description, \
           department = excluded.department, price_amount = excluded.price_amount, \
           price_currency = excluded.price_currency, status = excluded.status, version = excluded.version"
    )))
    .bind(products.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(column(products, |product| product.sku.as_str()))
    .bind(column(products, |product| product.name.as_str()))
    .bind(column(products, |product| product.description.as_deref()))
    .bind(column(products, |product| product.department.as_deref()))
    .bind(column(products, |product| product.price_amount))
    .bind(column(products, |product| product.price_currency.as_str()))
    .bind(column(products, |product| product.status.as_str()))
    .bind(column(products, |product| product.version))
    .bind(column(products, |product| product.created_position))
    .execute(connection)
    .await?;
    Ok(())
}
