//! The folder of a playground, and the signals that end it.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Failure;

/// The folder of a playground.
pub(super) struct Place {
    pub(super) dir: PathBuf,
    /// A temporary folder, which is removed at the end.
    temporary: Option<tempfile::TempDir>,
}

impl Place {
    pub(super) fn open(asked: Option<&Path>) -> Result<Self, Failure> {
        if let Some(dir) = asked {
            fs::create_dir_all(dir).map_err(|error| Failure::file("create", dir, &error))?;
            let dir = dir
                .canonicalize()
                .map_err(|error| Failure::file("open", dir, &error))?;
            return Ok(Self {
                dir,
                temporary: None,
            });
        }
        let made = tempfile::Builder::new()
            .prefix("shardkv-playground-")
            .tempdir();
        let temporary = made
            .map_err(|error| Failure::file("create a folder in", &std::env::temp_dir(), &error))?;
        Ok(Self {
            dir: temporary.path().to_path_buf(),
            temporary: Some(temporary),
        })
    }

    /// Removes a temporary folder. After a failure it stays, because its logs explain the failure.
    pub(super) fn close(self, well: bool) {
        match self.temporary {
            None => eprintln!("the data stays in {}", self.dir.display()),
            Some(temporary) if well => drop(temporary),
            Some(temporary) => eprintln!("logs and data stay in {}", temporary.keep().display()),
        }
    }
}

/// A future that ends when a user or a program stops the playground. Its value names the cause.
pub(super) type StopRequest = Pin<Box<dyn Future<Output = &'static str>>>;

/// Catches the signals that end a playground.
pub(super) fn stop_requested() -> Result<StopRequest, Failure> {
    let catch = |kind| {
        signal(kind)
            .map_err(|error| Failure::failed(format!("can't catch signals: {error}"), "try again"))
    };
    let mut interrupt = catch(SignalKind::interrupt())?;
    let mut terminate = catch(SignalKind::terminate())?;
    let mut hangup = catch(SignalKind::hangup())?;
    Ok(Box::pin(async move {
        tokio::select! {
            _ = interrupt.recv() => "interrupted",
            _ = terminate.recv() => "asked to stop",
            _ = hangup.recv() => "the terminal is gone",
        }
    }))
}
