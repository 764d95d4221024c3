use std::cell::RefCell;
use std::collections::BTreeMap;

use clap::Parser as _;

use futures::stream;

use super::*;
use crate::random::Random;
use crate::transfer::format::FileFormat;
use crate::transfer::read::{Limits, read_lines};

const QUEUE_RECORDS: usize = 1_024;

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    import: ImportArgs,
}

fn args(words: &[&str]) -> ImportArgs {
    Line::parse_from([&["import"], words].concat()).import
}

/// Imitates a store: finishes puts out of order, and counts how many are in flight.
#[derive(Default)]
struct Store {
    pairs: BTreeMap<Bytes, Bytes>,
    flying: usize,
    most: usize,
    refuse: Option<(Bytes, Error)>,
    /// The key whose write never ends.
    hang: Option<Bytes>,
}

fn disk_full() -> Error {
    let message = "full".to_owned();
    Error::DiskFull { message }
}

async fn run(args: &ImportArgs, input: &[u8], store: &RefCell<Store>) -> Result<Summary, Failure> {
    run_until(args, input, store, stream::pending()).await
}

async fn run_until(
    args: &ImportArgs,
    input: &[u8],
    store: &RefCell<Store>,
    interrupts: impl Stream<Item = ()> + Unpin,
) -> Result<Summary, Failure> {
    let (sender, parsed) = mpsc::channel(QUEUE_RECORDS);
    let limits = Limits::of(args);
    let input = input.to_vec();
    let format = FileFormat::of(args.format, None);
    let reader = std::thread::spawn(move || read_lines(&input[..], format, &limits, &sender));
    let random = RefCell::new(Random::new(1));
    let summary = write_records(
        args,
        parsed,
        None,
        interrupts,
        |key: Bytes, value: Bytes| {
            let yields = random.borrow_mut().below(20);
            store.borrow_mut().flying += 1;
            async move {
                for _ in 0..yields {
                    tokio::task::yield_now().await;
                }
                if store.borrow().hang.as_ref() == Some(&key) {
                    return std::future::pending().await;
                }
                let mut store = store.borrow_mut();
                store.most = store.most.max(store.flying);
                store.flying -= 1;
                if let Some((_, error)) = store.refuse.as_ref().filter(|it| it.0 == key) {
                    return Err(error.clone());
                }
                store.pairs.insert(key, value);
                Ok(())
            }
        },
    )
    .await;
    reader.join().unwrap();
    summary
}

fn input(lines: u32) -> Vec<u8> {
    (0..lines)
        .flat_map(|n| format!("k{}\t{n}\n", n % 97).into_bytes())
        .collect()
}

#[tokio::test]
async fn the_last_line_of_a_key_wins_and_flight_is_bounded() {
    let store = RefCell::default();
    let args = args(&["--format", "tsv", "--in-flight", "16"]);
    run(&args, &input(5_000), &store).await.unwrap();
    let store = store.into_inner();
    assert_eq!(store.pairs.len(), 97);
    for n in 5_000 - 97..5_000u32 {
        let key = Bytes::from(format!("k{}", n % 97));
        assert_eq!(store.pairs[&key], n.to_string(), "{key:?}");
    }
    assert!(
        (2..=16).contains(&store.most),
        "pipelined, bounded: {}",
        store.most
    );
}

#[tokio::test]
async fn a_bad_line_stops_with_its_number() {
    let store = RefCell::default();
    let text = b"a\t1\n\nbroken\nb\t2\n";
    let failure = run(&args(&["--format", "tsv"]), text, &store)
        .await
        .unwrap_err();
    assert_eq!(failure.exit(), Exit::Usage);
    assert!(failure.to_string().contains("line 3: "), "{failure}");
    assert_eq!(
        store.borrow().pairs.len(),
        1,
        "lines before it were written"
    );

    let skipping = args(&["--format", "tsv", "--skip-bad"]);
    run(&skipping, text, &store).await.unwrap();
    assert_eq!(store.borrow().pairs.len(), 2);
    let mut out = Vec::new();
    let summary = run(
        &args(&["--format", "tsv", "--from-line", "4"]),
        text,
        &store,
    )
    .await
    .unwrap();
    summary
        .write("imported", crate::output::Format::Raw, &mut out)
        .unwrap();
    assert_eq!(out, b"1\n");
}

#[tokio::test]
async fn a_refused_write_names_the_first_line_that_is_missing() {
    let store = RefCell::new(Store {
        refuse: Some(("k5".into(), disk_full())),
        ..Store::default()
    });
    let args = args(&["--format", "tsv", "--in-flight", "8"]);
    let failure = run(&args, &input(1_000), &store).await.unwrap_err();
    assert_eq!(failure.exit(), Exit::Refused);
    let text = failure.to_string();
    assert!(text.contains("line 6 was not"), "{text}");
    assert!(text.contains("continue with --from-line 6"), "{text}");
    assert!(
        store.borrow().pairs.len() < 97,
        "nothing more is sent after a failure"
    );
}

#[tokio::test]
async fn an_import_that_wrote_some_lines_does_not_say_that_nothing_was_done() {
    let late = Error::Timeout {
        after: Duration::from_secs(1),
        maybe_applied: false,
        last: String::new(),
    };
    let args = args(&["--format", "tsv", "--in-flight", "1"]);
    for (line, exit) in [(1, Exit::Unavailable), (4, Exit::Failed)] {
        let store = RefCell::new(Store {
            refuse: Some((format!("k{}", line - 1).into(), late.clone())),
            ..Store::default()
        });
        let failure = run(&args, &input(50), &store).await.unwrap_err();
        assert_eq!(failure.exit(), exit, "line {line}");
        let text = failure.to_string();
        let next = format!("continue with --from-line {line}");
        assert!(text.contains(&next), "{text}");
    }
}

#[tokio::test]
async fn records_larger_than_the_memory_go_one_by_one() {
    let store = RefCell::default();
    let args = args(&["--format", "tsv", "--memory-bytes", "2048"]);
    let input: Vec<u8> = (0..50)
        .flat_map(|n| format!("k{n}\t{}\n", "x".repeat(5_000)).into_bytes())
        .collect();
    run(&args, &input, &store).await.unwrap();
    let store = store.into_inner();
    assert_eq!((store.pairs.len(), store.most), (50, 1));
}

#[tokio::test]
async fn refused_and_overlong_records_are_passed_over() {
    let message = "too large".to_owned();
    let too_large = Error::TooLarge {
        what: "value".into(),
        size: 2,
        limit: 1,
        message,
    };
    let store = RefCell::new(Store {
        refuse: Some(("b".into(), too_large)),
        ..Store::default()
    });
    let long = "x".repeat(300_000);
    let text = format!("a\t1\nb\t2\nl\t{long}\nbroken\nc\t3\n");
    let words = ["--format", "tsv", "--max-line-bytes", "100"];
    let failure = run(&args(&words), text.as_bytes(), &store).await;
    let failure = failure.unwrap_err().to_string();
    assert!(failure.contains("--from-line 2, or pass over"), "{failure}");

    let skipping = [&words[..], &["--skip-bad"]].concat();
    let summary = run(&args(&skipping), text.as_bytes(), &store).await;
    let mut out = Vec::new();
    let table = crate::output::Format::Table;
    summary.unwrap().write("imported", table, &mut out).unwrap();
    let line = String::from_utf8(out).unwrap();
    assert!(line.starts_with("imported 2 records"), "{line}");
    assert!(line.contains("3 bad lines skipped"), "{line}");
    assert!(store.borrow().pairs.contains_key(&b"c"[..]));

    let later = [&words[..], &["--from-line", "5"]].concat();
    run(&args(&later), text.as_bytes(), &store).await.unwrap();
}

#[tokio::test]
async fn an_interrupted_import_names_the_line_to_continue_at() {
    let (interrupt, interrupts) = mpsc::unbounded_channel();
    let interrupts = stream::unfold(interrupts, async |mut it| Some((it.recv().await?, it)));
    let store = RefCell::new(Store {
        hang: Some("k5".into()),
        ..Store::default()
    });
    let args = args(&["--format", "tsv", "--in-flight", "8"]);
    let input = input(1_000);
    let interrupter = async {
        // The second write of the key that hangs waits for the first, so the import stops there.
        while store.borrow().pairs.len() < 96 {
            tokio::task::yield_now().await;
        }
        interrupt.send(()).unwrap();
        interrupt.send(()).unwrap();
    };
    let importing = run_until(&args, &input, &store, Box::pin(interrupts));
    let (failure, ()) = futures::join!(importing, interrupter);
    let failure = failure.unwrap_err();
    assert_eq!(failure.exit(), Exit::Failed);
    let text = failure.to_string();
    assert!(text.contains("interrupted after "), "{text}");
    assert!(text.contains("continue with --from-line 6"), "{text}");
}

#[tokio::test]
async fn one_interruption_waits_for_the_writes_in_flight() {
    let store = RefCell::default();
    let args = args(&["--format", "tsv", "--in-flight", "8"]);
    let interrupts = stream::once(async {}).chain(stream::pending());
    let failure = run_until(&args, &input(1_000), &store, Box::pin(interrupts)).await;
    let text = failure.unwrap_err().to_string();
    assert!(text.contains("continue with --from-line 1"), "{text}");
    assert!(store.borrow().pairs.is_empty());
}

#[tokio::test]
async fn a_line_without_end_is_refused() {
    let store = RefCell::default();
    let args = args(&["--max-line-bytes", "100"]);
    let failure = run(&args, &[b'x'; 1_000], &store).await.unwrap_err();
    assert!(
        failure.to_string().contains("line 1 is longer"),
        "{failure}"
    );
}
