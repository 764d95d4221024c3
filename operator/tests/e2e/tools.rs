//! Helpers that run programs and wait for conditions.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Time limit of a condition. Far longer than any condition takes on a loaded machine: reaching it is a bug.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// Evaluates `condition` until it returns a value. Fails the test with `what` and the last error after [`PATIENCE`].
pub(crate) async fn until<T>(what: &str, condition: impl AsyncFnMut() -> anyhow::Result<T>) -> T {
    within(PATIENCE, what, condition).await
}

/// Like [`until`], with another time limit.
pub(crate) async fn within<T>(
    patience: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> anyhow::Result<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match condition().await {
            Ok(value) => return value,
            Err(error) if Instant::now() >= deadline => {
                panic!("{what}: not within {patience:?}; last error: {error:#}")
            }
            // No test depends on the length of this pause.
            Err(_) => tokio::time::sleep(Duration::from_millis(300)).await,
        }
    }
}

/// Returns an error with this text unless the condition holds.
pub(crate) fn holds(holds: bool, otherwise: impl Into<String>) -> anyhow::Result<()> {
    let otherwise: String = otherwise.into();
    ensure!(holds, otherwise);
    Ok(())
}

/// Prints a step of a scenario, with the name of the test.
pub(crate) fn say(text: &str) {
    println!("[{}] {text}", std::thread::current().name().unwrap_or("?"));
}

/// Runs a program with this standard input and returns its standard output.
pub(crate) async fn feed(program: &str, args: &[&str], input: &[u8]) -> anyhow::Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| program.to_owned())?;
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = tokio::spawn(async move { stdin.write_all(&input).await });
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .with_context(|| format!("{program} {args:?} hangs"))?
        .with_context(|| program.to_owned())?;
    // A program may end before it has read its whole input; its exit code says whether that is an error.
    let _ = writing.await;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(out);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    bail!(
        "{program} {}: {}: {}{}",
        args.join(" "),
        output.status,
        errors.trim(),
        out.chars().take(2000).collect::<String>()
    )
}

/// Runs a program and returns its standard output.
pub(crate) async fn try_run(program: &str, args: &[&str]) -> anyhow::Result<String> {
    feed(program, args, b"").await
}

/// Runs a program that must succeed, and returns its standard output.
pub(crate) async fn run(program: &str, args: &[&str]) -> String {
    must(try_run(program, args).await)
}

/// Returns the value of a step that must succeed. Fails the test with the error otherwise.
pub(crate) fn must<T>(result: anyhow::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error:#}"))
}

/// Returns the path of a file in the checkout.
pub(crate) fn checkout(path: &str) -> String {
    format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))
}

/// Returns the image of the store's nodes.
pub(crate) fn image() -> String {
    std::env::var("IMAGE").unwrap_or_else(|_| format!("shardkv:{}", env!("CARGO_PKG_VERSION")))
}
