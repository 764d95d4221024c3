//! The signals by which a user or a program ends a command: Ctrl-C, `kill`, and a closed terminal.

use futures::stream::{self, LocalBoxStream, StreamExt as _};
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Failure;

/// Catches the signals from now on. Each is an item; the process no longer ends by them.
pub(crate) fn signals() -> Result<LocalBoxStream<'static, ()>, Failure> {
    let catch = |kind| {
        signal(kind)
            .map_err(|error| Failure::failed(format!("can't catch signals: {error}"), "try again"))
    };
    let mut interrupt = catch(SignalKind::interrupt())?;
    let mut terminate = catch(SignalKind::terminate())?;
    let mut hangup = catch(SignalKind::hangup())?;
    let next = stream::poll_fn(move |cx| {
        let ready = [&mut interrupt, &mut terminate, &mut hangup]
            .into_iter()
            .any(|signal| signal.poll_recv(cx).is_ready());
        if ready {
            std::task::Poll::Ready(Some(()))
        } else {
            std::task::Poll::Pending
        }
    });
    Ok(next.boxed_local())
}
