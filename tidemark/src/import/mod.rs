//! `tidemark import`: data from outside, through the same decisions as HTTP.

mod complete_journey;
mod source;

use crate::Failure;
use crate::config::{ImportOptions, ImportSource};

pub(crate) async fn run(options: ImportOptions) -> Result<(), Failure> {
    match options.source {
        ImportSource::CompleteJourney(options) => complete_journey::run(options).await,
    }
}
