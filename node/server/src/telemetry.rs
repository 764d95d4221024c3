//! Log lines: on standard error, for people or as JSON. They never carry a value, nor a key.

use std::panic;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::options::{LogFormat, Options};

/// Starts logging for the process.
pub(crate) fn start(options: &Options) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&options.log_filter)?;
    let lines = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    let started = match options.log_format {
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
