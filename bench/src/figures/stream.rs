//! The log to Kafka, and a view from there, each catching up with all of the log.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::rebuild::head;
use crate::background::{Background, wait_for};
use crate::client::{Call, Connection};
use crate::error::BenchError;
use crate::process;
use crate::report::{Bound, Row};
use crate::scratch::Scratch;
use crate::shop::{Shop, free_address};

/// The database of the views from the topic.
const DATABASE: &str = "tidemark_bench_stream";

/// How long a process may take to answer, and to catch up.
const READY_WITHIN: Duration = Duration::from_secs(30);
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(300);

/// The figures of publishing, and of a view from the topic.
pub(super) async fn stream(scratch: &Scratch, shop: &Shop, staff: &str) -> Result<Vec<Row>, BenchError> {
    eprintln!("the log to Kafka, and a view from there");
    let folder = scratch.folder("kafka")?;
    let (broker, _kafka) = kafka(&folder).await?;
    let cluster = shop.cluster()?;
    let head = head(shop, staff).await? as f64;
    let part = async |name: &str, settings: &[(&str, &str)]| {
        let address = free_address().await?;
        let mut command = shop.command([name, "--listen", &address.to_string()]);
        command
            .env("TIDEMARK_LOG_URL", cluster.url())
            .env("TIDEMARK_KAFKA_BROKERS", &broker)
            .envs(settings.iter().copied());
        let running = Background::start(command, &folder.join(format!("{name}.log")))?;
        wait_for(address, READY_WITHIN).await?;
        Ok::<_, BenchError>((address, running))
    };

    let (publisher, _publishing) = part("command", &[]).await?;
    let published = catch_up(publisher, "tidemark_publisher_events_total", head).await?;
    cluster.create(DATABASE).await?;
    let views = cluster.database(DATABASE);
    let settings = [("TIDEMARK_VIEWS_URL", views.as_str()), ("TIDEMARK_PROJECTIONS", "orders")];
    let (projector, projecting) = part("projector", &settings).await?;
    let projected = catch_up(projector, "tidemark_projection_position{", head).await?;
    drop(projecting);
    cluster.drop_database(DATABASE).await?;
    let from = "from the first that was seen to the last";
    Ok(vec![
        Row::new("publish", "publishing the log to Kafka, catching up", "events/s", vec![published])
            .bound(Bound::Above(150_000.0))
            .note(format!("{head} events, {from}; transactions of up to 30,000 events, CloudEvents")),
        Row::new("project", "the orders view from Kafka, catching up", "events/s", vec![projected])
            .bound(Bound::Above(100_000.0))
            .note(format!("{head} events, all of them read, {from}")),
    ])
}

/// A broker that is its own controller; its address.
async fn kafka(folder: &Path) -> Result<(String, Background), BenchError> {
    let (listen, controller) = (free_address().await?, free_address().await?);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/kafka-jars");
    let jars = process::output(Command::new(script)).await?;
    let properties = folder.join("server.properties");
    let text = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@{controller}\n\
         listeners=PLAINTEXT://{listen},CONTROLLER://{controller}\ncontroller.listener.names=CONTROLLER\n\
         log.dirs={}\noffsets.topic.replication.factor=1\ntransaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\ngroup.initial.rebalance.delay.ms=0\n",
        folder.join("data").display()
    );
    fs::write(&properties, text).map_err(BenchError::io("writing Kafka's properties"))?;
    let java = |class: &str| {
        let mut command = Command::new("java");
        command.args(["-Xmx512m", "-XX:+UseSerialGC", "-cp", &format!("{}/*", jars.trim()), class]);
        command
    };
    let mut format = java("kafka.tools.StorageTool");
    format.args(["format", "-t", "dGlkZW1hcmstYmVuY2gtMQ", "-c"]).arg(&properties);
    process::output(format).await?;
    let mut server = java("kafka.Kafka");
    server.arg(&properties);
    let running = Background::start(server, &folder.join("kafka.log"))?;
    let end = Instant::now() + READY_WITHIN;
    while tokio::net::TcpStream::connect(listen).await.is_err() {
        if Instant::now() > end {
            return Err(BenchError::Wrong(process::end_of(&folder.join("kafka.log"))));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok((listen.to_string(), running))
}

/// Events a second, by a metric that counts them, from the first that was seen until there are `all`.
async fn catch_up(address: SocketAddr, metric: &str, all: f64) -> Result<f64, BenchError> {
    let mut connection = Connection::open(address).await?;
    let end = Instant::now() + CAUGHT_UP_WITHIN;
    let mut first: Option<(Instant, f64)> = None;
    while Instant::now() < end {
        let page = connection.send(&Call::get("/metrics")).await?;
        let text = String::from_utf8_lossy(&page.body).into_owned();
        let line = text.lines().find(|line| line.starts_with(metric));
        let count: f64 = line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0);
        match first {
            None if count > 0.0 => first = Some((Instant::now(), count)),
            Some((begin, from)) if count >= all => return Ok((all - from) / begin.elapsed().as_secs_f64()),
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(BenchError::Wrong(format!("{metric} did not come to {all}")))
}
