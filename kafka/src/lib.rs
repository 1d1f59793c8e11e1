//! The log in Kafka: published once and in order, read by whoever projects it.
//!
//! | module | what it does |
//! |---|---|
//! | [`record`] | an event as a CloudEvent, and back |
//! | [`asyncapi`] | the topics as others can rely on them |
//! | [`topic`] | the topics, and where they stand |
//! | [`publisher`] | the log to the topic, by one process at a time |
//! | [`source`] | the topic to whoever asks, partition by partition |

pub mod asyncapi;
pub mod publisher;
pub mod record;
pub mod source;
pub mod topic;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::producer::{DeliveryResult, ProducerContext};
use rdkafka::{ClientConfig, ClientContext};
use tidemark_events::log::LogError;

/// How Kafka is reached, and what the topics are called.
#[derive(Debug, Clone)]
pub struct KafkaConfig {
    /// `host:port`, several with commas between.
    pub brokers: String,
    /// The topic of the events. The one of the publisher's place is called the same with `.place` behind.
    pub topic: String,
    /// What the consumer groups' names begin with. Projectors of one views' database share it, others have their own.
    pub group: String,
}

impl KafkaConfig {
    /// The topic that holds the publisher's place.
    #[must_use]
    pub fn place_topic(&self) -> String {
        format!("{}.place", self.topic)
    }

    /// What all clients have in common.
    pub(crate) fn client(&self, id: &str) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", id)
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.nagle.disable", "true");
        client
    }
}

/// What librdkafka says about its connections, many times a second while a broker is away, is for debugging: what it
/// means for us is an error of ours, said once.
pub(crate) fn debug_log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    tracing::debug!(?level, facility, message, "librdkafka");
}

/// The context of clients that need none.
pub(crate) struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        debug_log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ConsumerContext for Quiet {}

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    // A record that was not delivered fails its transaction.
    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// What can go wrong between the log and Kafka.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Kafka did not answer, or refused.
    #[error("Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// The log's database.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The topic is not as the code needs it.
    #[error("{0}")]
    Topic(String),
    /// The log is not the one that was published.
    #[error(
        "the topic stands at {place}, the log at {head}: it is not the log that was published there, use another topic"
    )]
    AnotherLog {
        /// Where the topic stands.
        place: tidemark_events::log::Head,
        /// Where the log stands.
        head: tidemark_events::log::Head,
    },
    /// Another process publishes now.
    #[error("another process publishes now")]
    Fenced,
    /// Something of Kafka's did not come to an end.
    #[error("{0} took more than {1:?}")]
    Stuck(&'static str, std::time::Duration),
}
