//! The queue of log lines, and the thread that writes them.
//!
//! A program has no hold on the reader of its standard error: the disk of a log file fills up, the reader of a pipe stalls or goes
//! away. None of this may stop or delay the program. So a thread of its own writes the lines, from a bounded queue. A line that
//! finds the queue full, or that can't be written, is dropped and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// The maximum number of lines in the queue.
const MAX_LINES: usize = 8_192;
/// The maximum number of bytes of the lines in the queue. A longer line goes into an empty queue only.
const MAX_BYTES: usize = 4 << 20;
/// The pause between two attempts to add to a full queue.
const FULL_PAUSE: Duration = Duration::from_millis(1);

/// The lines that were dropped, and the bytes in the queue.
#[derive(Debug, Default)]
struct Counts {
    dropped: AtomicU64,
    queued_bytes: AtomicUsize,
}

enum Message {
    Line(Vec<u8>),
    /// Tell this channel once all earlier lines were written or dropped.
    Flush(SyncSender<()>),
}

/// The queue's end for log lines.
#[derive(Clone, Debug)]
pub(crate) struct LogQueue {
    lines: SyncSender<Message>,
    counts: Arc<Counts>,
}

/// Writes one log line into the queue when it is dropped.
#[derive(Debug)]
pub(crate) struct LineWriter {
    queue: LogQueue,
    line: Vec<u8>,
}

impl LogQueue {
    /// Starts the thread that writes to `out`.
    pub(crate) fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (lines, received) = sync_channel(MAX_LINES);
        let counts = Arc::<Counts>::default();
        let of_thread = Arc::clone(&counts);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_lines(&received, out, &of_thread))?;
        Ok(Self { lines, counts })
    }

    /// Returns the number of lines that were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }

    /// Waits until the lines that are in the queue now are written, but no longer than `patience`: their reader may have stalled.
    /// A full queue is waited for too, because its lines are the last ones before the end of the program.
    pub(crate) fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let (done, wait) = sync_channel(1);
        let mut message = Message::Flush(done);
        while let Err(refused) = self.lines.try_send(message) {
            match refused {
                TrySendError::Full(back) if Instant::now() < deadline => message = back,
                TrySendError::Full(_) | TrySendError::Disconnected(_) => return,
            }
            thread::sleep(FULL_PAUSE);
        }
        let _ = wait.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }

    fn push(&self, line: Vec<u8>) {
        let bytes = line.len();
        let queued = self.counts.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = queued == 0 || queued.saturating_add(bytes) <= MAX_BYTES;
        if !fits || self.lines.try_send(Message::Line(line)).is_err() {
            self.counts.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write_lines(received: &Receiver<Message>, mut out: impl Write, counts: &Counts) {
    for message in received {
        match message {
            Message::Line(line) => {
                if out.write_all(&line).and_then(|()| out.flush()).is_err() {
                    counts.dropped.fetch_add(1, Ordering::Relaxed);
                }
                counts.queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
            }
            Message::Flush(done) => {
                // Nobody waits any more if the patience is over.
                let _ = done.try_send(());
            }
        }
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter {
            queue: self.clone(),
            line: Vec::new(),
        }
    }
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.queue.push(std::mem::take(&mut self.line));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A reader that takes lines only while the test doesn't hold it.
    #[derive(Clone, Default)]
    struct Reader(Arc<Mutex<Vec<u8>>>);

    impl Reader {
        fn hold(&self) -> MutexGuard<'_, Vec<u8>> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.hold().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn say(queue: &LogQueue, line: &[u8]) {
        queue.make_writer().write_all(line).unwrap();
    }

    #[test]
    fn lines_arrive_in_order() {
        let reader = Reader::default();
        let queue = LogQueue::start(reader.clone()).unwrap();
        say(&queue, b"one\n");
        say(&queue, b"two\n");
        queue.flush(PATIENCE);
        assert_eq!(*reader.hold(), b"one\ntwo\n");
        assert_eq!(queue.dropped(), 0);
    }

    #[test]
    fn a_stalled_reader_costs_lines_and_no_time() {
        let reader = Reader::default();
        let queue = LogQueue::start(reader.clone()).unwrap();
        let held = reader.hold();
        for _ in 0..2 * MAX_LINES {
            say(&queue, b"line\n");
        }
        let dropped = queue.dropped();
        // The thread holds one line, and the queue the others.
        let kept = 2 * MAX_LINES as u64 - dropped;
        assert!(
            (MAX_LINES as u64..=MAX_LINES as u64 + 1).contains(&kept),
            "{kept}"
        );
        drop(held);
        while queue.counts.queued_bytes.load(Ordering::Relaxed) > 0 {
            thread::yield_now();
        }
        say(&queue, b"again\n");
        queue.flush(PATIENCE);
        assert!(reader.hold().ends_with(b"line\nagain\n"));
        assert_eq!(queue.dropped(), dropped);
    }

    #[test]
    fn a_flush_waits_for_a_full_queue_and_not_for_ever() {
        let reader = Reader::default();
        let queue = LogQueue::start(reader.clone()).unwrap();
        let held = reader.hold();
        for _ in 0..2 * MAX_LINES {
            say(&queue, b"line\n");
        }
        let start = Instant::now();
        queue.flush(Duration::from_millis(50));
        assert!(start.elapsed() >= Duration::from_millis(50), "it gave up");
        assert!(held.is_empty(), "the reader has stalled");
        let lines = 2 * MAX_LINES - usize::try_from(queue.dropped()).unwrap();
        let flushing = thread::spawn({
            let queue = queue.clone();
            move || queue.flush(PATIENCE)
        });
        drop(held);
        flushing.join().unwrap();
        assert_eq!(reader.hold().len(), lines * b"line\n".len());
    }

    #[test]
    fn the_bytes_are_bounded_too() {
        let reader = Reader::default();
        let queue = LogQueue::start(reader.clone()).unwrap();
        let held = reader.hold();
        let long = vec![b'x'; MAX_BYTES / 4];
        for _ in 0..4 {
            say(&queue, &long);
        }
        assert_eq!(queue.dropped(), 0);
        say(&queue, b"one too many");
        assert_eq!(queue.dropped(), 1);
        drop(held);
    }

    #[test]
    fn a_closed_pipe_costs_lines() {
        let queue = LogQueue::start(Broken).unwrap();
        say(&queue, b"one\n");
        queue.flush(PATIENCE);
        assert_eq!(queue.dropped(), 1);
    }
}
