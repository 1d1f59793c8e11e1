//! Passwords: Argon2id in a bounded pool of its own threads, which yield to everything else, so that a flood of log-ins
//! takes neither the memory nor the processor from orders and reads.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;

use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash};
use argon2::{Algorithm, Argon2, Params, Version};
use tidemark_http::Email;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::refused::RefusedPasswords;
use super::value::NewPassword;

/// Bounds of the pool, and the cost of a hash.
#[derive(Debug, Clone, Copy)]
pub struct PasswordConfig {
    /// Threads that hash.
    pub threads: usize,
    /// Hashes that may wait; one more is refused at once.
    pub queue: usize,
    /// KiB of memory of one hash (OWASP: at least 19,456 with 2 passes).
    pub memory_kib: u32,
    /// Passes.
    pub passes: u32,
}

impl Default for PasswordConfig {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self { threads: (cores / 2).max(1), queue: 16, memory_kib: 19_456, passes: 2 }
    }
}

/// Why a password was not hashed or compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// Too many wait. Nothing was done.
    #[error("too many log-ins at once")]
    Busy,
    /// The hash that is stored is none, or the system has no randomness.
    #[error("a password could not be hashed or compared")]
    Broken,
}

/// What came of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is another password.
    Wrong,
    /// It is the one.
    Right,
    /// It is the one, and its hash was made at a lower cost than today's: this is a new one.
    Outdated(String),
}

type Work = Box<dyn FnOnce(&Argon2<'static>) + Send>;

/// Hashes and compares. Cheap to clone.
#[derive(Clone)]
pub struct Passwords {
    queue: SyncSender<Work>,
    /// Compared with when there is no account: unknown and wrong take the same time.
    nobody: Arc<str>,
    params: Params,
    /// What is refused by name.
    refused: RefusedPasswords,
}

impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passwords")
    }
}

impl Passwords {
    /// Starts the threads; they end with the last clone.
    ///
    /// # Errors
    /// [`PasswordError::Broken`] when the parameters are none.
    pub fn start(config: PasswordConfig, refused: RefusedPasswords) -> Result<Self, PasswordError> {
        let params =
            Params::new(config.memory_kib, config.passes, 1, None).map_err(|_| PasswordError::Broken)?;
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.clone());
        let nobody = hash(&argon, b"nobody has this password").ok_or(PasswordError::Broken)?;
        let (queue, work) = sync_channel::<Work>(config.queue);
        let work = Arc::new(std::sync::Mutex::new(work));
        for _ in 0..config.threads {
            let (work, argon) = (Arc::clone(&work), argon.clone());
            let thread = thread::Builder::new().name("passwords".to_owned());
            thread
                .spawn(move || {
                    yield_to_others();
                    loop {
                        // Held while it waits: the next thread waits for the lock instead of the queue.
                        let next = work.lock().ok().and_then(|work| work.recv().ok());
                        let Some(next) = next else { return };
                        next(&argon);
                    }
                })
                .map_err(|_| PasswordError::Broken)?;
        }
        Ok(Self { queue, nobody: nobody.into(), params, refused })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Argon2<'static>) -> T + Send + 'static,
    ) -> Result<T, PasswordError> {
        let (done, outcome) = oneshot::channel();
        let work: Work = Box::new(move |argon| {
            // Who has gone away needs no hash.
            if !done.is_closed() {
                done.send(work(argon)).ok();
            }
        });
        self.queue.try_send(work).map_err(|error| match error {
            TrySendError::Full(_) => PasswordError::Busy,
            TrySendError::Disconnected(_) => PasswordError::Broken,
        })?;
        outcome.await.map_err(|_| PasswordError::Broken)
    }

    /// The hash of a password, as a PHC string; `None` if it is too easily guessed, or in the list of those that are refused.
    ///
    /// # Errors
    /// See [`PasswordError`].
    pub async fn hash(
        &self,
        password: NewPassword,
        email: Option<&Email>,
    ) -> Result<Option<String>, PasswordError> {
        let hints: Vec<String> = email.map(|email| hints(email.as_str())).unwrap_or_default();
        let refused = self.refused.clone();
        self.run(move |argon| {
            if refused.contains(&password) || is_weak(password.normal(), &hints) {
                return Ok(None);
            }
            hash(argon, password.normal().as_bytes()).map(Some).ok_or(PasswordError::Broken)
        })
        .await?
    }

    /// Compares a password with a hash, or with nobody's: that is always wrong, and takes as long.
    ///
    /// # Errors
    /// See [`PasswordError`].
    pub async fn verify(
        &self,
        password: Option<Zeroizing<String>>,
        stored: Option<String>,
    ) -> Result<Verdict, PasswordError> {
        let known = stored.is_some() && password.is_some();
        let stored = stored.unwrap_or_else(|| self.nobody.to_string());
        let password = password.unwrap_or_default();
        let params = self.params.clone();
        self.run(move |argon| {
            let parsed = PasswordHash::new(&stored).map_err(|_| PasswordError::Broken)?;
            let fits = argon.verify_password(password.as_bytes(), &parsed).is_ok();
            if !(fits && known) {
                return Ok(Verdict::Wrong);
            }
            let made = Params::try_from(&parsed).map_err(|_| PasswordError::Broken)?;
            let outdated = made.m_cost() < params.m_cost() || made.t_cost() < params.t_cost();
            match outdated.then(|| hash(argon, password.as_bytes())).flatten() {
                Some(newer) => Ok(Verdict::Outdated(newer)),
                None => Ok(Verdict::Right),
            }
        })
        .await?
    }
}

fn hash(argon: &Argon2<'_>, password: &[u8]) -> Option<String> {
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).ok()?;
    argon.hash_password_with_salt(password, &salt).ok().map(|hash| hash.to_string())
}

/// Linux's policy for what may wait (`SCHED_IDLE`): whoever else wakes up has the processor. Beside 200 log-ins/s, p99 of
/// reads was 4.2 to 5.6 ms in three rounds with it, and 3.6 to 11.8 ms with the lowest nice value.
fn yield_to_others() {
    #[cfg(target_os = "linux")]
    {
        use thread_priority::unix::{set_thread_priority_and_policy, thread_native_id};
        use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};

        let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        if let Err(error) = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy) {
            tracing::debug!(?error, "a thread of the passwords keeps its priority");
        }
    }
}

/// What a password should not be made of.
fn hints(email: &str) -> Vec<String> {
    let mut hints = vec![email.to_owned()];
    hints.extend(email.split(['@', '.', '+', '-', '_']).map(ToOwned::to_owned));
    hints
}

/// Whether a password is one of those that are tried first: common ones, patterns, and what is known of its owner.
/// Measured in guesses (Wheeler, "zxcvbn: Low-Budget Password Strength Estimation", USENIX Security 2016); there are
/// no rules of composition.
fn is_weak(password: &str, hints: &[String]) -> bool {
    /// What an online attacker within the limits of log-ins does not reach.
    const LEAST_LOG10_GUESSES: f64 = 8.0;
    /// Longer ones cost too much to look at; their beginning decides.
    const LOOKED_AT: usize = 64;
    let looked_at: Zeroizing<String> = Zeroizing::new(password.chars().take(LOOKED_AT).collect());
    let hints: Vec<&str> = hints.iter().map(String::as_str).collect();
    zxcvbn::zxcvbn(&looked_at, &hints).guesses_log10() < LEAST_LOG10_GUESSES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cheap() -> PasswordConfig {
        PasswordConfig { threads: 1, queue: 2, memory_kib: 64, passes: 1 }
    }

    fn password(text: &str) -> NewPassword {
        NewPassword::try_from(text.to_owned()).unwrap()
    }

    fn shown(text: &str) -> Option<Zeroizing<String>> {
        Some(Zeroizing::new(text.to_owned()))
    }

    #[tokio::test]
    async fn a_password_fits_its_own_hash_alone() {
        let passwords = Passwords::start(cheap(), RefusedPasswords::default()).unwrap();
        let good = "correct horse battery staple";
        let hash = passwords.hash(password(good), None).await.unwrap().unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=64,t=1,p=1$"), "{hash}");
        assert_ne!(passwords.hash(password(good), None).await.unwrap().unwrap(), hash, "salted");
        assert_eq!(passwords.verify(shown(good), Some(hash.clone())).await, Ok(Verdict::Right));
        assert_eq!(
            passwords.verify(shown("Correct horse battery staple"), Some(hash.clone())).await,
            Ok(Verdict::Wrong)
        );
        assert_eq!(passwords.verify(None, Some(hash)).await, Ok(Verdict::Wrong));
        assert_eq!(passwords.verify(shown("nobody has this password"), None).await, Ok(Verdict::Wrong));
        let broken = passwords.verify(shown(good), Some("no hash".to_owned())).await;
        assert_eq!(broken, Err(PasswordError::Broken));
    }

    #[tokio::test]
    async fn every_letter_of_a_password_counts_and_any_are_taken() {
        let passwords = Passwords::start(cheap(), RefusedPasswords::default()).unwrap();
        let long = format!("{}correct horse battery stapl", "a long way to go ".repeat(13));
        let long = format!("{long}{}", "e".repeat(256 - long.chars().count()));
        for good in [
            "only lower case letters",
            "ONLY UPPER CASE LETTERS",
            "9182 7364 5546 3728",
            "☂☃ ☄★☆☎☏☐☑☒☓ ☔☕",
            &long,
        ] {
            let hash = passwords.hash(password(good), None).await.unwrap().expect(good);
            assert_eq!(passwords.verify(shown(good), Some(hash.clone())).await, Ok(Verdict::Right), "{good}");
            let letters: Vec<char> = good.chars().collect();
            let but_one: String = letters[..letters.len() - 1].iter().collect();
            for other in [but_one, format!("{good} "), format!(" {good}"), good.replace('e', "E") + "?"] {
                assert_eq!(
                    passwords.verify(shown(&other), Some(hash.clone())).await,
                    Ok(Verdict::Wrong),
                    "{other}"
                );
            }
        }
    }

    #[tokio::test]
    async fn a_hash_of_a_lower_cost_is_made_anew() {
        let before = Passwords::start(cheap(), RefusedPasswords::default()).unwrap();
        let hash = before.hash(password("correct horse battery staple"), None).await.unwrap().unwrap();
        let now =
            Passwords::start(PasswordConfig { memory_kib: 128, ..cheap() }, RefusedPasswords::default())
                .unwrap();
        let verdict = now.verify(shown("correct horse battery staple"), Some(hash)).await.unwrap();
        let Verdict::Outdated(newer) = verdict else { panic!("{verdict:?}") };
        assert!(newer.contains("m=128"));
        assert_eq!(now.verify(shown("correct horse battery staple"), Some(newer)).await, Ok(Verdict::Right));
    }

    #[tokio::test]
    async fn what_is_tried_first_is_refused() {
        for weak in [
            "password1234",
            "123456789012",
            "qwertyuiopas",
            "aaaaaaaaaaaa",
            "iloveyouiloveyou",
            "ada@example.org",
            "abcdefghijkl",
            "passwordpassword",
            "1q2w3e4r5t6y",
        ] {
            assert!(is_weak(weak, &hints("ada@example.org")), "{weak}");
        }
        for good in [
            "correct horse battery staple",
            "Tr0ub4dor&3 and more",
            "gläserne Brücke 47",
            "xkT93-vPq02-LmZ77",
        ] {
            assert!(!is_weak(good, &hints("ada@example.org")), "{good}");
        }
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once() {
        let slow = PasswordConfig { threads: 1, queue: 1, memory_kib: 65_536, passes: 6 };
        let passwords = Passwords::start(slow, RefusedPasswords::default()).unwrap();
        let tries = (0..8).map(|_| passwords.verify(shown("some password"), None));
        let outcomes = futures_util::future::join_all(tries).await;
        assert!(outcomes.contains(&Err(PasswordError::Busy)), "{outcomes:?}");
        assert!(outcomes.contains(&Ok(Verdict::Wrong)), "{outcomes:?}");
    }
}
