//! `delete`: deletes a key, or all keys with a prefix.

use std::ffi::OsString;
use std::future::Future;
use std::io::{self, IsTerminal as _, Write};

use bytes::Bytes;
use clap::Args;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use indicatif::ProgressBar;
use shardkv_client::{Error, ScanOptions};

use crate::client_error::call_failure;
use crate::exit::{Exit, Failure};
use crate::output::{Answer, grouped};
use crate::parse::is_yes;
use crate::verbs::Verbs;

/// The most deletes in flight.
const IN_FLIGHT: usize = 256;

/// The arguments of `delete`.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct DeleteArgs {
    /// The key
    #[arg(required_unless_present = "prefix", conflicts_with = "prefix")]
    pub(crate) key: Option<OsString>,
    /// Delete all keys that begin with this prefix, after a confirmation
    #[arg(long, short)]
    pub(crate) prefix: Option<OsString>,
    /// Delete by prefix without asking
    #[arg(long, conflicts_with = "key")]
    pub(crate) yes: bool,
}

impl Verbs<'_> {
    /// Runs `delete`.
    pub(crate) async fn delete(
        &self,
        args: &DeleteArgs,
        out: &mut dyn Write,
    ) -> Result<Exit, Failure> {
        let existed = match (&args.key, &args.prefix) {
            (Some(key), _) => {
                let key = self.bytes(key)?;
                let existed = self.client.delete(key.clone()).await?;
                self.tell(out, &Answer::Deleted { key: &key, existed })?;
                existed
            }
            (None, prefix) => {
                let prefix = self.bytes(prefix.as_deref().unwrap_or_default())?;
                if !args.yes {
                    self.confirm(&prefix)?;
                }
                let deleted = self.delete_prefix(&prefix).await?;
                let prefix = &prefix;
                self.tell(out, &Answer::DeletedAll { prefix, deleted })?;
                deleted > 0
            }
        };
        Ok(if existed { Exit::Ok } else { Exit::NotFound })
    }

    /// Asks the person at the terminal. The shell reads its commands from there, so it never asks.
    fn confirm(&self, prefix: &[u8]) -> Result<(), Failure> {
        let what = if prefix.is_empty() {
            "ALL keys".to_owned()
        } else {
            let prefix = self.style.encoding.show(prefix);
            format!("all keys that begin with {prefix}")
        };
        if !self.dash_is_stdin || !io::stdin().is_terminal() {
            return Err(Failure::usage(
                format!("{what} would be deleted, and nobody is there to confirm it"),
                "look at them with `shardkv scan --keys-only --prefix ...`, then repeat the command with --yes",
            ));
        }
        eprint!("delete {what}? [y/N] ");
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map_err(|error| {
            let next = "repeat the command with --yes";
            Failure::failed(format!("can't read the answer: {error}"), next)
        })?;
        if is_yes(&answer) {
            return Ok(());
        }
        Err(Failure::failed(
            "nothing was deleted",
            "repeat the command and answer y",
        ))
    }

    async fn delete_prefix(&self, prefix: &Bytes) -> Result<u64, Failure> {
        let mut options = ScanOptions::prefix(prefix.clone());
        options.keys_only = true;
        let keys = self.client.scan(options).map(|pair| Ok(pair?.key));
        let bar = if io::stderr().is_terminal() {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::hidden()
        };
        let mut deleted = 0;
        let result = delete_all(
            keys,
            |key| self.client.delete(key),
            |count| {
                deleted = count;
                bar.set_message(format!("{} keys deleted", grouped(count)));
                bar.tick();
            },
        )
        .await;
        bar.finish_and_clear();
        match result {
            Ok(()) => Ok(deleted),
            Err(error) => Err(call_failure(&error)
                .after_some(deleted > 0)
                .context(&format!("after {} keys were deleted", grouped(deleted)))
                .with_next("repeat the command: it goes on with the keys that are left")),
        }
    }
}

/// Deletes keys, with a bounded number in flight, and reports the count of those that existed. After a failure it sends no more,
/// and waits for those in flight.
async fn delete_all<F>(
    keys: impl Stream<Item = Result<Bytes, Error>>,
    delete: impl Fn(Bytes) -> F,
    mut report: impl FnMut(u64),
) -> Result<(), Error>
where
    F: Future<Output = Result<bool, Error>>,
{
    let mut keys = std::pin::pin!(keys.fuse());
    let mut flying = FuturesUnordered::new();
    let (mut deleted, mut failed) = (0, None);
    loop {
        let more = failed.is_none() && flying.len() < IN_FLIGHT;
        tokio::select! {
            biased;
            Some(result) = flying.next() => match result {
                Ok(existed) => {
                    deleted += u64::from(existed);
                    report(deleted);
                }
                Err(error) => failed = failed.or(Some(error)),
            },
            Some(key) = keys.next(), if more => match key {
                Ok(key) => flying.push(delete(key)),
                Err(error) => failed = Some(error),
            },
            else => break,
        }
    }
    failed.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeSet;

    use futures::stream;

    use super::*;

    fn closed() -> Error {
        Error::Closed {
            maybe_applied: false,
        }
    }

    async fn run(keys: u32, fails_at: u32) -> (Result<(), Error>, u64, usize, usize) {
        let listed = stream::iter((0..keys).map(|n| Ok(Bytes::from(n.to_string()))));
        let left: RefCell<BTreeSet<Bytes>> = RefCell::default();
        let (flying, most) = (Cell::new(0), Cell::new(0));
        let mut deleted = 0;
        let delete = |key: Bytes| {
            flying.set(flying.get() + 1);
            most.set(most.get().max(flying.get()));
            let left = &left;
            let flying = &flying;
            async move {
                tokio::task::yield_now().await;
                flying.set(flying.get() - 1);
                if key == fails_at.to_string() {
                    return Err(closed());
                }
                // Every tenth key is gone by the time that it is deleted.
                let existed = !key.ends_with(b"0");
                left.borrow_mut().insert(key);
                Ok(existed)
            }
        };
        let result = delete_all(listed, delete, |count| deleted = count).await;
        let tried = left.borrow().len();
        (result, deleted, tried, most.get())
    }

    #[tokio::test]
    async fn all_keys_are_deleted_and_those_that_existed_are_counted() {
        let (result, deleted, tried, most) = run(2_000, u32::MAX).await;
        assert_eq!((result, deleted, tried), (Ok(()), 1_800, 2_000));
        assert!((2..=IN_FLIGHT).contains(&most), "{most} in flight");
        assert_eq!(run(0, 0).await.1, 0);
    }

    #[tokio::test]
    async fn a_failure_ends_it_and_keeps_the_count() {
        let (result, deleted, tried, _) = run(2_000, 700).await;
        assert_eq!(result, Err(closed()));
        assert!(tried < 2_000 && deleted > 0, "{tried} {deleted}");
    }
}
