//! What must hold, looked at from the outside: with the log as its tables have it, the clients' history, and what the
//! views, the services and the topic hold.

pub(crate) mod commands;
pub(crate) mod log;
pub(crate) mod logs;
pub(crate) mod reads;
pub(crate) mod served;
pub(crate) mod stock;
pub(crate) mod tier;
pub(crate) mod topic;
pub(crate) mod views;

/// How many mismatches of a check are kept in words.
const SHOWN: usize = 5;

/// One invariant: how often it was looked at, and what did not hold.
#[derive(Debug)]
pub(crate) struct Check {
    /// The invariant.
    pub(crate) name: &'static str,
    /// Things compared.
    pub(crate) compared: u64,
    /// Of these, such that do not match.
    pub(crate) mismatched: u64,
    /// The first of them.
    pub(crate) examples: Vec<String>,
}

impl Check {
    /// Nothing compared yet.
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, compared: 0, mismatched: 0, examples: Vec::new() }
    }

    /// Looks at one thing.
    pub(crate) fn expect(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        self.compared += 1;
        if !holds {
            self.mismatched += 1;
            if self.examples.len() < SHOWN {
                self.examples.push(otherwise());
            }
        }
    }

    /// Looks at things of which only those that do not hold are listed.
    pub(crate) fn expect_none(&mut self, looked_at: u64, wrong: impl IntoIterator<Item = String>) {
        self.compared += looked_at;
        for text in wrong {
            self.compared = self.compared.max(self.mismatched + 1);
            self.mismatched += 1;
            if self.examples.len() < SHOWN {
                self.examples.push(text);
            }
        }
    }

    #[cfg(test)]
    /// Whether it holds, and was looked at at all.
    pub(crate) fn holds(&self) -> bool {
        self.mismatched == 0 && self.compared > 0
    }
}
