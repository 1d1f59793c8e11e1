//! Mails of accounts: what they say, and how they leave, over SMTP or, without one, as files.

use std::path::PathBuf;
use std::time::Duration;

pub use lettre::message::Mailbox;
use lettre::message::MessageBuilder;
use lettre::message::header::ContentType;
use lettre::transport::smtp::PoolConfig;
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use uuid::Uuid;

/// How long a mail server may take.
const WITHIN: Duration = Duration::from_secs(20);

/// How mails leave.
#[derive(Debug, Clone)]
pub struct MailerConfig {
    /// `smtp://user:password@host:port` or `smtps://…`; none: files.
    pub smtp_url: Option<String>,
    /// Where files are put.
    pub folder: PathBuf,
    /// Who they come from.
    pub from: Mailbox,
    /// Where the shop is reached, without a slash at the end: links begin with it.
    pub public_url: String,
}

/// What a mail is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Verify your address.
    Verify,
    /// Somebody tried to register with your address.
    Repeated,
    /// Set a new password.
    Reset,
    /// Your password was changed.
    PasswordChanged,
    /// A session was ended because its token was used twice.
    TokenReused,
}

impl Kind {
    /// Its name in the table of mails.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Repeated => "repeated",
            Self::Reset => "reset",
            Self::PasswordChanged => "password_changed",
            Self::TokenReused => "token_reused",
        }
    }

    /// The kind of a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Verify, Self::Repeated, Self::Reset, Self::PasswordChanged, Self::TokenReused]
            .into_iter()
            .find(|kind| kind.as_str() == name)
    }

    fn subject(self) -> &'static str {
        match self {
            Self::Verify => "Please verify your e-mail address",
            Self::Repeated => "You have an account already",
            Self::Reset => "Set a new password",
            Self::PasswordChanged => "Your password was changed",
            Self::TokenReused => "A session was ended for your safety",
        }
    }

    fn text(self, public_url: &str, token: &str) -> String {
        match self {
            Self::Verify => format!(
                "Somebody, you we hope, has registered with this address at {public_url}.\n\n\
                 To verify it, use this token within 24 hours:\n\n{token}\n\n\
                 It goes to POST {public_url}/v1/accounts/email-verifications. If it was not you, do nothing.\n"
            ),
            Self::Repeated => format!(
                "Somebody, perhaps you, tried to register at {public_url} with this address, which has an account.\n\n\
                 If you have forgotten your password, ask for a new one with POST {public_url}/v1/password-resets. \
                 If it was not you, do nothing: nothing was changed.\n"
            ),
            Self::Reset => format!(
                "To set a new password at {public_url}, use this token within an hour:\n\n{token}\n\n\
                 It goes to POST {public_url}/v1/password-resets/completion. If you have not asked for it, do nothing: \
                 your password stays as it is.\n"
            ),
            Self::PasswordChanged => format!(
                "The password of your account at {public_url} was changed, and all other sessions were ended.\n\n\
                 If it was not you, set a new one at once with POST {public_url}/v1/password-resets.\n"
            ),
            Self::TokenReused => format!(
                "A refresh token of your account at {public_url} was used twice, so one of the two was not you. \
                 The session was ended. Log in again; if you think that somebody knows your password, change it.\n"
            ),
        }
    }
}

/// Why a mail did not leave.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    /// No mail can be written to the address, ever.
    #[error("the address cannot be written to")]
    Address,
    /// The mail server refuses it for good, with this code. That is no proof about the address: it may as well be its
    /// own password, sender or policy that it minds.
    #[error("the mail server refuses it ({0})")]
    Refused(u16),
    /// It may leave later. The text says nothing of the address.
    #[error("{0}")]
    Later(String),
    /// The settings are wrong.
    #[error("{0}")]
    Settings(String),
}

/// Sends mails. Cheap to clone.
#[derive(Clone)]
pub struct Mailer {
    way: Way,
    from: Mailbox,
    public_url: String,
}

impl std::fmt::Debug for Mailer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.way {
            Way::Smtp(_) => "Mailer(SMTP)",
            Way::Files(_) => "Mailer(files)",
        })
    }
}

#[derive(Clone)]
enum Way {
    Smtp(AsyncSmtpTransport<Tokio1Executor>),
    Files(PathBuf),
}

impl Mailer {
    /// Reads the settings.
    ///
    /// # Errors
    /// [`MailError::Settings`].
    pub fn new(config: MailerConfig) -> Result<Self, MailError> {
        let way = match &config.smtp_url {
            None => Way::Files(config.folder),
            Some(url) => {
                let builder = AsyncSmtpTransport::<Tokio1Executor>::from_url(url).map_err(|_| {
                    MailError::Settings("smtp://user:password@host:port or smtps://…".to_owned())
                })?;
                let pool = PoolConfig::new().max_size(2);
                Way::Smtp(builder.timeout(Some(WITHIN)).pool_config(pool).build())
            }
        };
        Ok(Self { way, from: config.from, public_url: config.public_url })
    }

    /// Sends a mail. The same `id` is the same mail: its `Message-ID` and its file are named by it.
    ///
    /// # Errors
    /// [`MailError`].
    pub async fn send(&self, id: Uuid, kind: Kind, to: &str, token: &str) -> Result<(), MailError> {
        let to = Mailbox::new(None, to.parse().map_err(|_| MailError::Address)?);
        let domain = self.from.email.domain();
        let message = MessageBuilder::new()
            .message_id(Some(format!("<{id}@{domain}>")))
            .from(self.from.clone())
            .to(to)
            .subject(kind.subject())
            .header(ContentType::TEXT_PLAIN)
            .body(kind.text(&self.public_url, token))
            .map_err(|_| MailError::Address)?;
        match &self.way {
            Way::Smtp(transport) => deliver(transport, message).await,
            Way::Files(folder) => write(folder, id, &message.formatted()).await,
        }
    }
}

async fn deliver(transport: &AsyncSmtpTransport<Tokio1Executor>, message: Message) -> Result<(), MailError> {
    match tokio::time::timeout(WITHIN, transport.send(message)).await {
        Ok(Ok(_)) => Ok(()),
        // A server's words may repeat the address, its code does not.
        Ok(Err(error)) => Err(match error.status() {
            Some(code) if error.is_permanent() => MailError::Refused(code.into()),
            Some(_) => MailError::Later("the mail server asks to try again later".to_owned()),
            None => MailError::Later("the mail server cannot be reached".to_owned()),
        }),
        Err(_elapsed) => Err(MailError::Later("the mail server takes too long".to_owned())),
    }
}

/// Whole or not at all, for its owner's eyes only: it holds a token.
async fn write(folder: &std::path::Path, id: Uuid, bytes: &[u8]) -> Result<(), MailError> {
    use tokio::io::AsyncWriteExt;
    let later = |error: std::io::Error| MailError::Later(format!("{}: {error}", folder.display()));
    tokio::fs::create_dir_all(folder).await.map_err(later)?;
    let (draft, path) = (folder.join(format!("{id}.new")), folder.join(format!("{id}.eml")));
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&draft).await.map_err(later)?;
    file.write_all(bytes).await.map_err(later)?;
    file.sync_all().await.map_err(later)?;
    tokio::fs::rename(draft, path).await.map_err(later)
}
