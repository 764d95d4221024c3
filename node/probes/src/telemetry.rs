//! Log lines on standard error, as text or as JSON.

use std::panic;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt;

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A line of plain text.
    Human,
    /// A line of JSON.
    Json,
}

/// A log filter that can't be parsed. Trying again doesn't help: the filter must be corrected.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct InvalidFilter(#[from] ParseError);

/// Checks a log filter: a level, or levels by module such as `info,shardkv_server=debug`.
pub fn check_filter(filter: &str) -> Result<(), InvalidFilter> {
    EnvFilter::try_new(filter)?;
    Ok(())
}

/// Starts logging for the process and logs the lines that the filter selects. From then on a panic is logged too.
pub fn start(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)?;
    let lines = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    let started = match format {
        LogFormat::Human => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging can't be started: {error}"))?;
    panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(place, "a thread panicked: {message}");
    }));
    Ok(())
}
