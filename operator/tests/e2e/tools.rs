//! Running programs, and waiting for conditions.

use std::fmt::Debug;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// How long a condition may take. Far longer than it ever takes on a loaded machine: reaching it is a bug.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// Asks until `condition` gives a value. Fails the test with `what` and the last refusal after [`PATIENCE`].
pub(crate) async fn until<T, E: Debug>(
    what: &str,
    condition: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    within(PATIENCE, what, condition).await
}

/// [`until`] with another bound.
pub(crate) async fn within<T, E: Debug>(
    patience: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match condition().await {
            Ok(value) => return value,
            Err(error) if Instant::now() >= deadline => {
                panic!("{what}: not within {patience:?}; at last: {error:?}")
            }
            // The pause between two questions; nothing depends on its length.
            Err(_) => tokio::time::sleep(Duration::from_millis(300)).await,
        }
    }
}

/// `Ok` if `holds`, for conditions that only hold or don't.
pub(crate) fn holds(holds: bool, otherwise: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

/// Says what happens, so that the log of a run reads as a story.
pub(crate) fn say(text: &str) {
    println!("[{}] {text}", std::thread::current().name().unwrap_or("?"));
}

/// Runs a program with this standard input. Its standard output, or what went wrong.
pub(crate) async fn feed(program: &str, args: &[&str], input: &[u8]) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = tokio::spawn(async move { stdin.write_all(&input).await });
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .map_err(|_| format!("{program} {args:?} hangs"))?
        .map_err(|error| format!("{program}: {error}"))?;
    // A program that ends before it has read all has its reasons, and says them by its exit code.
    let _ = writing.await;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(out);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{program} {}: {}: {}{}",
        args.join(" "),
        output.status,
        errors.trim(),
        out.chars().take(2000).collect::<String>()
    ))
}

/// Runs a program. Its standard output, or what went wrong.
pub(crate) async fn try_run(program: &str, args: &[&str]) -> Result<String, String> {
    feed(program, args, b"").await
}

/// Runs a program that must succeed.
pub(crate) async fn run(program: &str, args: &[&str]) -> String {
    try_run(program, args)
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

/// A path of the checkout.
pub(crate) fn checkout(path: &str) -> String {
    format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))
}

/// The image of the store's nodes.
pub(crate) fn image() -> String {
    std::env::var("IMAGE").unwrap_or_else(|_| format!("shardkv:{}", env!("CARGO_PKG_VERSION")))
}
