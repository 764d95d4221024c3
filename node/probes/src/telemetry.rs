//! Log lines on standard error, as text or as JSON.

use std::panic;
use std::sync::OnceLock;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt;

use crate::log_queue::LogQueue;

/// The time that the last lines may take to be written when the program ends.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The queue of the process, once logging has started.
static QUEUE: OnceLock<LogQueue> = OnceLock::new();

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

/// Starts logging for the process and logs the lines that the filter selects. From then on a panic is logged too. Logging never
/// waits for the reader of standard error: see [`dropped_lines`]. Call [`flush`] before the process ends.
pub fn start(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter)?;
    let queue = LogQueue::start(std::io::stderr())
        .map_err(|error| anyhow::anyhow!("the thread for log lines can't be started: {error}"))?;
    let lines = fmt()
        .with_env_filter(filter)
        .with_writer(queue.clone())
        .with_ansi(false);
    let started = match format {
        LogFormat::Human => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging can't be started: {error}"))?;
    // Starting twice has failed above.
    let _ = QUEUE.set(queue);
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

/// Returns the number of log lines that were dropped because standard error was full, stalled or closed.
pub fn dropped_lines() -> u64 {
    QUEUE.get().map_or(0, LogQueue::dropped)
}

/// Waits until the lines that were logged are written, for up to a second. Call it before the last line, too: a full queue drops
/// lines.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(LAST_LINES);
    }
}
