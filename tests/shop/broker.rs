//! An Apache Kafka of the tests' own, one broker that is its own controller.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tempfile::TempDir;
use tidemark_kafka::record::{Record, parse};

use crate::harness::{folder, free_port, until};

pub(crate) struct Broker {
    folder: TempDir,
    port: u16,
    server: std::sync::Mutex<Option<std::process::Child>>,
}

impl Broker {
    pub(crate) async fn start() -> Self {
        let folder = folder();
        let (port, controller) = (free_port(), free_port());
        let properties = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             controller.listener.names=CONTROLLER\nlog.dirs={}/data\n\
             offsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=1\ngroup.initial.rebalance.delay.ms=0\n\
             auto.create.topics.enable=false\n",
            folder.path().display()
        );
        std::fs::write(folder.path().join("server.properties"), properties).unwrap();
        std::fs::write(folder.path().join("log4j.properties"), "log4j.rootLogger=OFF\n").unwrap();
        let broker = Self { folder, port, server: std::sync::Mutex::default() };
        let formatted = broker
            .java("kafka.tools.StorageTool")
            .args(["format", "--cluster-id", "dGlkZW1hcmstdGVzdHMtMQ", "--config"])
            .arg(broker.folder.path().join("server.properties"))
            .status()
            .unwrap();
        assert!(formatted.success());
        broker.launch().await;
        broker
    }

    fn java(&self, class: &str) -> Command {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scripts/kafka-jars");
        let jars = Command::new(script).output().unwrap();
        assert!(jars.status.success(), "{}", String::from_utf8_lossy(&jars.stderr));
        let jars = String::from_utf8(jars.stdout).unwrap();
        let mut command = Command::new("java");
        command
            .args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .arg(format!("-Dlog4j.configuration=file:{}/log4j.properties", self.folder.path().display()))
            .args(["-cp", &format!("{}/*", jars.trim()), class])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    pub(crate) async fn launch(&self) {
        let server =
            self.java("kafka.Kafka").arg(self.folder.path().join("server.properties")).spawn().unwrap();
        *self.server.lock().unwrap() = Some(server);
        until("Kafka answers", async || std::net::TcpStream::connect(("127.0.0.1", self.port)).ok()).await;
    }

    pub(crate) fn kill(&self) {
        if let Some(mut server) = self.server.lock().unwrap().take() {
            server.kill().ok();
            server.wait().ok();
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.address());
        client
    }

    /// All that is committed in a topic's partitions, in order; what cannot be read is left out.
    pub(crate) fn content(&self, topic: &str, partitions: i32) -> Vec<Vec<Record>> {
        let consumer: BaseConsumer = self
            .client()
            .set("group.id", "tests")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let read = |partition| {
            let mut assignment = TopicPartitionList::new();
            assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
            consumer.assign(&assignment).unwrap();
            let mut records = Vec::new();
            let end = Instant::now() + Duration::from_secs(20);
            while Instant::now() < end {
                match consumer.poll(Duration::from_millis(100)) {
                    Some(Ok(message)) => {
                        assert_eq!(message.partition(), partition);
                        records.extend(parse(&message, |_| true).ok());
                    }
                    Some(Err(KafkaError::PartitionEOF(_))) => return records,
                    Some(Err(error)) => panic!("{error}"),
                    None => {}
                }
            }
            panic!("partition {partition} did not come to its end");
        };
        (0..partitions).map(read).collect()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}
