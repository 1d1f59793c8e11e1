//! The "Complete Journey" import: products with their opening stock, then every basket as an order of its household
//! at its time.
//!
//! Ids follow from the source's, so a second run finds everything there and changes nothing, and a run that was
//! killed is gone on with by running it again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use comfy_table::Table;
use csv::StringRecord;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use sqlx::ConnectOptions;
use tidemark_command::command::NewId;
use tidemark_command::order::{Line, MAX_LINES, PlaceOrder};
use tidemark_command::product::{CreateProduct, PublishProduct};
use tidemark_command::stock::ReceiveStock;
use tidemark_command::value::{Department, Name, Price, Quantity, Sku};
use tidemark_command::writer::Rendered;
use tidemark_command::{Answer, Command, CommandError, Rejection, Request, Writer, WriterConfig};
use tidemark_events::listener::Listener;
use tidemark_events::log::{Log, wake};
use tidemark_events::{Currency, Metadata, Money};
use tidemark_projector::{Feed, INSTANCES, ProjectorConfig, Retention, Supervisor};
use tidemark_views::instance::{self, State};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::source::{broken, derived, field, open};
use crate::config::CompleteJourneyOptions;
use crate::database::Database;
use crate::{Failure, tell};

const PRODUCT_COLUMNS: &[&str] = &[
    "product_id",
    "manufacturer_id",
    "department",
    "brand",
    "product_category",
    "product_type",
    "package_size",
    "unit_price_cents",
];
const LINE_COLUMNS: &[&str] =
    &["basket_id", "household_id", "store_id", "placed_at", "product_id", "quantity", "sales_cents"];

/// Requests that are on their way at once.
const IN_FLIGHT: usize = 1_024;

/// How long the views may take to catch up at the end.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(600);

/// How often a request is handed in again when the log is busy or away.
const TRIES: u32 = 60;

pub(super) async fn run(options: CompleteJourneyOptions) -> Result<(), Failure> {
    let products = options.dir.join("products.csv.gz");
    let lines = options.dir.join("basket_lines.csv.gz");
    open(&products, PRODUCT_COLUMNS)?;
    open(&lines, LINE_COLUMNS)?;
    let database = Database::open(&options.data, false).await?;
    let report = options.report.clone().unwrap_or_else(|| database.data_dir.join("import-report.csv"));
    let retention = options.retention.retention();
    let imported = import(&database, &products, &lines, &report, retention).await;
    database.close().await?;
    imported
}

async fn import(
    database: &Database,
    products: &Path,
    lines: &Path,
    report: &Path,
    retention: Retention,
) -> Result<(), Failure> {
    let log = database.log(6).await?;
    let (writer_stop, stop) = (CancellationToken::new(), CancellationToken::new());
    let mut heard = Listener::default();
    let following = log.follow(heard.on(wake::CHANNEL), stop.clone());
    let instances = heard.on(INSTANCES);
    let listening = heard.spawn(database.options.clone(), stop.clone());
    let (writer, writing) =
        Writer::spawn(log.clone(), database.options.clone(), WriterConfig::default(), writer_stop.clone());
    // Stands by where a running shop feeds its views itself.
    let projecting = Supervisor::spawn(
        Feed {
            log: log.clone(),
            kafka: None,
            views: database.options.clone(),
            instances,
            config: ProjectorConfig { retention, ..ProjectorConfig::default() },
            only: Vec::new(),
        },
        stop.clone(),
    );
    let mut run =
        Run { writer, refused: Refused::create(report)?, sold: HashMap::new(), taken: HashSet::new() };
    let done = run.all(database, &log, products, lines).await;
    let refused = run.refused;
    drop(run.writer);
    writer_stop.cancel();
    stop.cancel();
    for task in [writing, projecting, following, listening] {
        task.await.ok();
    }
    log.pool().close().await;
    let figures = done?;
    refused.finish()?.print(&figures, report)
}

/// What came of it.
#[derive(Debug, Default)]
struct Figures {
    products: Counts,
    orders: Counts,
    lines_taken: u64,
    lines_there: u64,
    lines_read: u64,
    order_seconds: f64,
    total_seconds: f64,
}

#[derive(Debug, Default)]
struct Counts {
    taken: u64,
    there: u64,
}

struct Run {
    writer: Writer,
    refused: Refused,
    /// Units sold of each product over the whole year: its opening stock.
    sold: HashMap<String, i64>,
    /// Products of the source that are in the shop.
    taken: HashSet<String>,
}

impl Run {
    async fn all(
        &mut self,
        database: &Database,
        log: &Log,
        products: &Path,
        lines: &Path,
    ) -> Result<Figures, Failure> {
        let started = Instant::now();
        let total = self.count(lines)?;
        let mut figures = Figures::default();
        self.products(products, &mut figures).await?;
        let orders_started = Instant::now();
        self.orders(lines, total, &mut figures).await?;
        catch_up(database, log).await?;
        figures.order_seconds = orders_started.elapsed().as_secs_f64();
        figures.total_seconds = started.elapsed().as_secs_f64();
        Ok(figures)
    }

    /// A first pass over the lines: how many there are, and how many units of each product are sold.
    fn count(&mut self, path: &Path) -> Result<u64, Failure> {
        let mut table = open(path, LINE_COLUMNS)?;
        let mut row = StringRecord::new();
        let mut total = 0;
        while table.read_record(&mut row).map_err(|error| broken(path, &error))? {
            total += 1;
            let quantity: i64 = field(&row, 5).parse().unwrap_or(0);
            if Quantity::try_from(quantity).is_ok() {
                match self.sold.get_mut(field(&row, 4)) {
                    Some(sold) => *sold += quantity,
                    None => {
                        self.sold.insert(field(&row, 4).to_owned(), quantity);
                    }
                }
            }
        }
        Ok(total)
    }

    async fn products(&mut self, path: &Path, figures: &mut Figures) -> Result<(), Failure> {
        let bar = bar(0, "products");
        let mut table = open(path, PRODUCT_COLUMNS)?;
        let mut row = StringRecord::new();
        let mut flights = FuturesUnordered::new();
        loop {
            let more = table.read_record(&mut row).map_err(|error| broken(path, &error))?;
            if more {
                bar.inc(1);
                match self.product(&row) {
                    Ok(request) => {
                        let source_id = field(&row, 0).to_owned();
                        flights.push(submit(self.writer.clone(), request, source_id));
                    }
                    Err(reason) => self.refused.line("", field(&row, 0), "", reason)?,
                }
            }
            while flights.len() >= IN_FLIGHT || (!more && !flights.is_empty()) {
                let Some((source_id, outcome)) = flights.next().await else { break };
                match outcome? {
                    Ok(_) => figures.products.taken += 1,
                    Err(Rejection::AlreadyExists { .. }) => figures.products.there += 1,
                    Err(rejection) => {
                        self.refused.line("", &source_id, "", reason_of(&rejection))?;
                        continue;
                    }
                }
                self.taken.insert(source_id);
            }
            if !more {
                bar.finish_and_clear();
                return Ok(());
            }
        }
    }

    /// A row as a product that is created, published and received, in one commit.
    fn product(&self, row: &StringRecord) -> Result<Request, &'static str> {
        let source_id = field(row, 0);
        let product_id = derived("product", source_id, None);
        let (category, kind, size) = (field(row, 4), field(row, 5), field(row, 6));
        let title = if kind.is_empty() { category } else { kind };
        if title.is_empty() {
            return Err("the product has no name");
        }
        let name = if size.is_empty() { title.to_owned() } else { format!("{title} {size}") };
        let price = Money {
            amount: field(row, 7).parse().map_err(|_| "the product's price is no number")?,
            currency: Currency::parse("USD").ok_or("the currency is unknown")?,
        };
        let create = CreateProduct {
            product_id: NewId::Derived(product_id),
            sku: Sku::try_from(source_id.to_owned()).map_err(|_| "the product's id is no SKU")?,
            name: Name::try_from(name).map_err(|_| "the product's name is not valid")?,
            description: None,
            department: Department::try_from(field(row, 2).to_owned()).ok(),
            price: Price::try_from(price).map_err(|_| "the product's price is not valid")?,
        };
        let mut commands =
            vec![Command::CreateProduct(create), Command::PublishProduct(PublishProduct { product_id })];
        let mut left = self.sold.get(source_id).copied().unwrap_or(0);
        while let Ok(quantity) = Quantity::try_from(left.min(Quantity::MAX)) {
            commands.push(Command::ReceiveStock(ReceiveStock { product_id, quantity }));
            left -= quantity.get();
        }
        Ok(request(product_id, commands, Utc::now()))
    }

    async fn orders(&mut self, path: &Path, total: u64, figures: &mut Figures) -> Result<(), Failure> {
        let bar = bar(total, "lines");
        let mut table = open(path, LINE_COLUMNS)?;
        let mut row = StringRecord::new();
        let mut basket: Option<Basket> = None;
        let mut flights = FuturesUnordered::new();
        loop {
            let more = table.read_record(&mut row).map_err(|error| broken(path, &error))?;
            let full = basket.take_if(|basket| !more || basket.source_id != field(&row, 0));
            if let Some(full) = full {
                bar.inc(full.read);
                figures.lines_read += full.read;
                if !full.lines.is_empty() {
                    flights.push(full.submit(self.writer.clone()));
                }
            }
            if more {
                match &mut basket {
                    Some(basket) => basket.add(&row, &self.taken, &mut self.refused)?,
                    None => {
                        let mut new = Basket::new(&row);
                        new.add(&row, &self.taken, &mut self.refused)?;
                        basket = Some(new);
                    }
                }
            }
            while flights.len() >= IN_FLIGHT || (!more && !flights.is_empty()) {
                let Some((basket, outcome)) = flights.next().await else { break };
                let basket: Basket = basket;
                match outcome? {
                    Ok(_) => {
                        figures.orders.taken += 1;
                        figures.lines_taken += basket.good;
                    }
                    Err(Rejection::AlreadyExists { .. }) => {
                        figures.orders.there += 1;
                        figures.lines_there += basket.good;
                    }
                    Err(rejection) => basket.refuse(reason_of(&rejection), &mut self.refused)?,
                }
            }
            if !more {
                bar.finish_and_clear();
                return Ok(());
            }
        }
    }
}

/// One basket's lines, as they come.
struct Basket {
    source_id: String,
    household: String,
    placed_at: Option<DateTime<Utc>>,
    read: u64,
    /// Lines that are part of the order, before those of one product are merged.
    good: u64,
    lines: Vec<Line>,
    products: HashMap<String, usize>,
}

impl Basket {
    fn new(row: &StringRecord) -> Self {
        Self {
            source_id: field(row, 0).to_owned(),
            household: field(row, 1).to_owned(),
            placed_at: field(row, 3).parse().ok(),
            read: 0,
            good: 0,
            lines: Vec::new(),
            products: HashMap::new(),
        }
    }

    fn add(
        &mut self,
        row: &StringRecord,
        taken: &HashSet<String>,
        refused: &mut Refused,
    ) -> Result<(), Failure> {
        self.read += 1;
        let product = field(row, 4);
        match self.take(product, field(row, 5), taken) {
            Ok(()) => {
                self.good += 1;
                Ok(())
            }
            Err(reason) => refused.line(&self.source_id, product, field(row, 5), reason),
        }
    }

    fn take(&mut self, product: &str, quantity: &str, taken: &HashSet<String>) -> Result<(), &'static str> {
        if self.placed_at.is_none() {
            return Err("the basket's time cannot be read");
        }
        if !taken.contains(product) {
            return Err("the product is not in the shop");
        }
        let quantity: i64 = quantity.parse().map_err(|_| "the quantity is no number")?;
        if quantity == 0 {
            return Err("the quantity is 0");
        }
        let quantity = Quantity::try_from(quantity).map_err(|_| "the quantity is out of bounds")?;
        if let Some(&line) = self.products.get(product) {
            let line = &mut self.lines[line];
            let sum = line.quantity.get() + quantity.get();
            line.quantity = Quantity::try_from(sum).map_err(|_| "the quantity is out of bounds")?;
            return Ok(());
        }
        if self.lines.len() == MAX_LINES {
            return Err("the basket has more than 200 products");
        }
        self.products.insert(product.to_owned(), self.lines.len());
        self.lines.push(Line { product_id: derived("product", product, None), quantity });
        Ok(())
    }

    async fn submit(self, writer: Writer) -> (Self, Result<Result<Answer, Rejection>, Failure>) {
        let placed_at = self.placed_at.unwrap_or_default();
        let order_id = derived("order", &self.source_id, self.placed_at);
        let place = PlaceOrder {
            order_id: NewId::Derived(order_id),
            customer_id: derived("household", &self.household, None),
            lines: self.lines.clone(),
        };
        let request = request(order_id, vec![Command::PlaceOrder(place)], placed_at);
        let (basket, outcome) = submit(writer, request, self).await;
        (basket, outcome)
    }

    fn refuse(&self, reason: &'static str, refused: &mut Refused) -> Result<(), Failure> {
        for (product, &line) in &self.products {
            let quantity = self.lines[line].quantity.get().to_string();
            refused.line(&self.source_id, product, &quantity, reason)?;
        }
        Ok(())
    }
}

/// A request of the import; its flow is the thing it makes.
fn request(id: Uuid, commands: Vec<Command>, now: DateTime<Utc>) -> Request {
    Request {
        bytes: commands.len() * 512,
        commands,
        key: None,
        if_match: None,
        now,
        metadata: Metadata {
            correlation_id: id,
            causation_id: None,
            actor: "import:complete-journey".to_owned(),
            traceparent: None,
            origin: None,
        },
        render: |outcomes| match outcomes.first() {
            Some(Ok(_)) => Some(Rendered { status: 201, location: None, body: Vec::new() }),
            _ => None,
        },
        stop_at_rejection: true,
    }
}

/// Hands a request in until it is answered; it may be repeated, since its ids are always the same.
async fn submit<T>(
    writer: Writer,
    request: Request,
    what: T,
) -> (T, Result<Result<Answer, Rejection>, Failure>) {
    let mut tries = 0;
    loop {
        tries += 1;
        let error = match writer.submit(request.clone()).await {
            Ok(answer) => return (what, Ok(Ok(answer))),
            Err(CommandError::Rejected(rejection)) => return (what, Ok(Err(rejection))),
            Err(error) => error,
        };
        if tries == TRIES {
            let failure =
                Failure::NotYet(format!("the log does not take the import: {error}. Run it again to go on"));
            return (what, Err(failure));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn reason_of(rejection: &Rejection) -> &'static str {
    match rejection {
        Rejection::SkuTaken { .. } => "another product has the SKU",
        Rejection::OutOfStock { .. } => "not enough stock",
        Rejection::UnknownProduct { .. } | Rejection::NotForSale { .. } => "the product is not in the shop",
        Rejection::AmountOverflow { .. } => "the amount is too large",
        _ => "refused",
    }
}

/// Waits until every live view stands at the log's head.
async fn catch_up(database: &Database, log: &Log) -> Result<(), Failure> {
    let head = log.head().await?.position;
    let mut connection = database.options.connect().await?;
    let until = Instant::now() + CATCH_UP_WITHIN;
    loop {
        let instances = instance::all(&mut connection).await?;
        let behind = |i: &&instance::Instance| i.state == State::Live && i.position < head;
        match instances.iter().find(behind) {
            None => return Ok(()),
            Some(view) if Instant::now() > until => {
                return Err(Failure::NotYet(format!(
                    "the view {} did not catch up. Run it again to go on",
                    view.name
                )));
            }
            Some(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// The lines that could not be taken: a file with each, and how many for each reason.
struct Refused {
    file: csv::Writer<std::fs::File>,
    path: PathBuf,
    reasons: BTreeMap<&'static str, u64>,
}

impl Refused {
    fn create(path: &Path) -> Result<Self, Failure> {
        let file =
            std::fs::File::create(path).map_err(Failure::io(format!("cannot write {}", path.display())))?;
        let mut refused =
            Self { file: csv::Writer::from_writer(file), path: path.to_owned(), reasons: BTreeMap::new() };
        refused.write(["basket_id", "product_id", "quantity", "reason"])?;
        Ok(refused)
    }

    fn line(
        &mut self,
        basket: &str,
        product: &str,
        quantity: &str,
        reason: &'static str,
    ) -> Result<(), Failure> {
        *self.reasons.entry(reason).or_default() += 1;
        self.write([basket, product, quantity, reason])
    }

    fn write(&mut self, row: [&str; 4]) -> Result<(), Failure> {
        let path = self.path.display();
        self.file.write_record(row).map_err(|error| Failure::NotYet(format!("cannot write {path}: {error}")))
    }

    fn finish(mut self) -> Result<Report, Failure> {
        self.file.flush().map_err(Failure::io(format!("cannot write {}", self.path.display())))?;
        Ok(Report { reasons: self.reasons })
    }
}

struct Report {
    reasons: BTreeMap<&'static str, u64>,
}

impl Report {
    fn print(&self, figures: &Figures, path: &Path) -> Result<(), Failure> {
        let mut table = Table::new();
        table.set_header(["", "taken", "already there"]);
        let row = |name: &str, taken, there| {
            [name.to_owned(), HumanCount(taken).to_string(), HumanCount(there).to_string()]
        };
        table.add_row(row("products", figures.products.taken, figures.products.there));
        table.add_row(row("orders", figures.orders.taken, figures.orders.there));
        table.add_row(row("lines", figures.lines_taken, figures.lines_there));
        tell(&table.to_string())?;
        if !self.reasons.is_empty() {
            let mut table = Table::new();
            table.set_header(["not taken because", "rows"]);
            for (reason, count) in &self.reasons {
                table.add_row([(*reason).to_owned(), HumanCount(*count).to_string()]);
            }
            tell(&table.to_string())?;
            tell(&format!("each of them: {}", path.display()))?;
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate for people"
        )]
        let rate = (figures.lines_read as f64 / figures.order_seconds) as u64;
        tell(&format!(
            "{} lines of baskets in {:.1} s, views caught up: {} lines/s; everything in {:.1} s",
            HumanCount(figures.lines_read),
            figures.order_seconds,
            HumanCount(rate),
            figures.total_seconds
        ))
    }
}

fn bar(length: u64, what: &'static str) -> ProgressBar {
    let template = if length == 0 {
        "{spinner} {human_pos} {msg}  {per_sec}"
    } else {
        "{bar:40} {percent:>3}%  {human_pos}/{human_len} {msg}  {per_sec}  ETA {eta}"
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(length).with_style(style).with_message(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
