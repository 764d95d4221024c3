//! Sends orders to a running playground: one line of JSON each way, over a socket in its folder.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::exit::{Exit, Failure};
use crate::move_progress::MoveProgress;

/// An action on a node, or (`Scale`, `Down`) on the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    Kill,
    Stop,
    Cont,
    Term,
    Restart {
        wipe: bool,
    },
    /// Have this many groups that share the shards.
    Scale {
        groups: u16,
    },
    Down,
}

/// A request.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) order: Order,
    /// A name, an address or a leader. Ignored for orders on the cluster.
    pub(super) node: String,
}

impl Request {
    /// Makes an order on the cluster.
    pub(super) fn to_all(order: Order) -> Self {
        Self {
            order,
            node: String::new(),
        }
    }
}

/// An answer: any number of `Progress`, then one of the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    /// Shards are moving.
    Progress(MoveProgress),
    /// Done, to this node, which has (or had) this process.
    Done { node: String, pid: Option<u32> },
    /// These groups share the shards now.
    Scaled { groups: Vec<String> },
    /// The playground refused the order or could not execute it.
    Refused { message: String, next: String },
}

/// The longest line of either side, in bytes.
const MAX_LINE_BYTES: u64 = 64 << 10;
/// Time limit for the other side to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit for the other side to read an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The address of a folder's socket. The name of a Unix socket has at most 107 bytes, so it is opened through
/// `/proc/self/fd` when the folder's is too long.
struct SocketPath {
    path: PathBuf,
    /// Keeps the folder open that `path` refers to.
    _folder: Option<std::fs::File>,
}

impl SocketPath {
    const NAME: &str = "control.sock";
    const MAX_BYTES: usize = 107;

    fn of(dir: &Path) -> io::Result<Self> {
        use std::os::fd::AsRawFd as _;
        let path = dir.join(Self::NAME);
        if path.as_os_str().len() <= Self::MAX_BYTES {
            return Ok(Self {
                path,
                _folder: None,
            });
        }
        let folder = std::fs::File::open(dir)?;
        let path = Path::new("/proc/self/fd")
            .join(folder.as_raw_fd().to_string())
            .join(Self::NAME);
        Ok(Self {
            path,
            _folder: Some(folder),
        })
    }
}

/// Opens the socket of `dir`, which the caller has locked.
pub(super) fn listen(dir: &Path) -> Result<UnixListener, Failure> {
    let open = || {
        let socket = SocketPath::of(dir)?;
        match std::fs::remove_file(&socket.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        UnixListener::bind(&socket.path)
    };
    open().map_err(|error| Failure::file("make the control socket in", dir, &error))
}

/// Reads the request of a connection.
pub(super) async fn receive(stream: &mut UnixStream) -> io::Result<Request> {
    let mut line = String::new();
    let mut reader = BufReader::new(stream).take(MAX_LINE_BYTES);
    timeout(REQUEST_TIMEOUT, reader.read_line(&mut line)).await??;
    Ok(serde_json::from_str(&line)?)
}

/// Converts a result to an answer.
pub(super) fn reply(result: Result<Reply, Failure>) -> Reply {
    result.unwrap_or_else(|failure| {
        let (message, next) = failure.into_words();
        Reply::Refused { message, next }
    })
}

/// Answers a connection. Fails if the caller does not read the answer in time.
pub(super) async fn answer(stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    timeout(ANSWER_TIMEOUT, stream.write_all(&line)).await?
}

/// Sends an order to the playground in `dir` and returns its answer, which is never `Progress` nor `Refused`.
pub(super) async fn ask(
    dir: &Path,
    request: &Request,
    mut progress: impl FnMut(&MoveProgress),
) -> Result<Reply, Failure> {
    let not_running = |error: io::Error| {
        Failure::new(
            Exit::Unavailable,
            format!(
                "the playground in {} does not answer: {error}",
                dir.display()
            ),
            format!("start it: `shardkv playground --dir {}`", dir.display()),
        )
    };
    let talk = async {
        let socket = SocketPath::of(dir)?;
        let mut stream = UnixStream::connect(&socket.path).await?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut stream = BufReader::new(stream);
        loop {
            let mut reply = String::new();
            let mut line = (&mut stream).take(MAX_LINE_BYTES);
            line.read_line(&mut reply).await?;
            if reply.is_empty() {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            match serde_json::from_str(&reply)? {
                Reply::Progress(moving) => progress(&moving),
                reply => return Ok(reply),
            }
        }
    };
    match talk.await.map_err(not_running)? {
        Reply::Refused { message, next } => Err(Failure::failed(message, next)),
        reply => Ok(reply),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn orders_and_answers_arrive_even_in_deep_folders() {
        let folder = tempfile::tempdir().unwrap();
        for dir in [
            folder.path().to_path_buf(),
            folder.path().join("d".repeat(150)),
        ] {
            std::fs::create_dir_all(&dir).unwrap();
            drop(listen(&dir).unwrap());
            let listener = listen(&dir).unwrap();
            let request = Request {
                order: Order::Restart { wipe: true },
                node: "leader".into(),
            };
            let done = Reply::Done {
                node: "node-1".into(),
                pid: Some(3),
            };
            let moving = MoveProgress {
                to_move: 2,
                ..MoveProgress::default()
            };
            let serve = async {
                for result in [Ok(done.clone()), Err(Failure::failed("no", "do that"))] {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let got = receive(&mut stream).await.unwrap();
                    assert_eq!((got.order, got.node.as_str()), (request.order, "leader"));
                    let progress = Reply::Progress(moving.clone());
                    answer(&mut stream, &progress).await.unwrap();
                    answer(&mut stream, &reply(result)).await.unwrap();
                }
            };
            let mut seen = Vec::new();
            let asked = async {
                let first = ask(&dir, &request, |moving| seen.push(moving.clone())).await;
                (first, ask(&dir, &request, |_| {}).await)
            };
            let ((), (first, second)) = tokio::join!(serve, asked);
            assert_eq!(first.unwrap(), done);
            assert_eq!(seen, [moving]);
            assert_eq!(second.unwrap_err().to_string(), "error: no\n next: do that");
        }
    }

    #[tokio::test]
    async fn noise_is_no_request_and_nobody_home_is_unavailable() {
        let folder = tempfile::tempdir().unwrap();
        let listener = listen(folder.path()).unwrap();
        let noise = async {
            let mut stream = UnixStream::connect(folder.path().join(SocketPath::NAME))
                .await
                .unwrap();
            stream.write_all(b"\xff{}\n").await.unwrap();
            stream
        };
        let (accepted, _stream) = tokio::join!(listener.accept(), noise);
        assert!(receive(&mut accepted.unwrap().0).await.is_err());
        drop(listener);
        let request = Request::to_all(Order::Down);
        let failure = ask(folder.path(), &request, |_| {}).await.unwrap_err();
        assert_eq!(failure.exit(), Exit::Unavailable);
    }
}
