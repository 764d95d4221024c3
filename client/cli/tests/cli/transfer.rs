//! Files in and out of a running cluster.

use std::fs;

use crate::harness::{kv, kv_with, shared};

/// Lines in an order of their own: an export's are in the order of its shards.
fn sorted(text: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    lines.sort_unstable();
    lines
}

/// Records whose file is canonical but for the order, with what formats treat specially.
fn tsv(prefix: &str, records: u32) -> Vec<u8> {
    (0..records)
        .flat_map(|n| {
            let mut line = format!("{prefix}{n:06}\\t\tvalue {n} \\n\\\\ \u{20ac} ").into_bytes();
            if n % 7 == 0 {
                line.extend([0xff, 0x00, u8::try_from(n % 200).unwrap() | 0x80]);
            }
            line.push(b'\n');
            line
        })
        .collect()
}

#[test]
fn what_goes_in_comes_out_byte_by_byte() {
    let Some(at) = shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (input, output, json, again) = (
        path("in.tsv"),
        path("out.tsv"),
        path("out.jsonl"),
        path("again.tsv"),
    );
    let text = tsv("transfer/", 5_000);
    fs::write(&input, &text).unwrap();

    let imported = kv(at, &["import", &input, "-o", "json"]).json();
    assert_eq!(
        (&imported["records"], &imported["skipped"]),
        (&5_000.into(), &0.into())
    );
    let exported = kv(
        at,
        &[
            "export",
            "--file",
            &output,
            "--prefix",
            "transfer/",
            "-o",
            "json",
        ],
    )
    .json();
    assert_eq!(
        (&exported["records"], &exported["bytes"]),
        (&5_000.into(), &imported["bytes"])
    );
    assert_eq!(
        sorted(&fs::read(&output).unwrap()),
        sorted(&text),
        "TSV in, TSV out"
    );

    // The same with JSON Lines and pipes, under other keys.
    kv(at, &["export", "--file", &json, "--prefix", "transfer/"]).ok();
    let lines = fs::read_to_string(&json).unwrap();
    assert!(
        lines.contains("value_base64"),
        "bytes that are no text have a name of their own"
    );
    let renamed = lines.replace("transfer/", "transferred/");
    kv_with(at, &["import", "-"], renamed.as_bytes()).ok();
    let ran = kv(at, &["export", "--prefix", "transferred/"]);
    assert_eq!(sorted(&ran.out), sorted(renamed.as_bytes()));
    assert!(ran.err.contains("as it was at one moment"), "{ran:?}");
    kv(at, &["export", "--file", &again, "--prefix", "transfer/"]).ok();
    assert_eq!(sorted(&fs::read(&again).unwrap()), sorted(&text));
    assert_eq!(
        fs::read_dir(folder.path()).unwrap().count(),
        4,
        "no partial files stay"
    );
}

#[test]
fn an_import_goes_into_the_named_cluster_only() {
    let Some(at) = shared() else { return };
    let shown = kv(at, &["config", "query", "-o", "json"]).json();
    let right = shown["cluster_id"].as_str().unwrap();
    let import = |cluster: &str| {
        let args = ["import", "--format", "tsv", "--cluster", cluster];
        kv_with(at, &args, b"named/1\tone\n")
    };
    import("c00000000000000ff").failed(7, "nothing was imported");
    let typo = import("demo");
    assert_eq!(typo.code, Some(2));
    assert!(typo.err.contains("16 hexadecimal digits"), "{typo:?}");
    assert_eq!(kv(at, &["scan", "--prefix", "named/"]).ok(), "");
    import(right).ok();
    assert_eq!(
        kv(at, &["scan", "--prefix", "named/"]).ok(),
        "named/1\tone\n"
    );
}

#[test]
fn bad_lines_stop_or_are_skipped() {
    let Some(at) = shared() else { return };
    let text = b"bad/1\tone\nno tab\nbad/2\ttwo\n\tempty key\n";
    let import =
        |more: &[&str]| kv_with(at, &[&["import", "--format", "tsv"], more].concat(), text);
    import(&[]).failed(2, "line 2: ");
    assert_eq!(kv(at, &["scan", "--prefix", "bad/", "-k"]).ok(), "bad/1\n");
    let skipped = import(&["--skip-bad", "-o", "json"]);
    assert!(
        skipped.err.contains("line 2 skipped") && skipped.err.contains("line 4 skipped"),
        "{skipped:?}"
    );
    assert_eq!(
        (&skipped.json()["records"], &skipped.json()["skipped"]),
        (&2.into(), &2.into())
    );
    import(&["--from-line", "3"]).failed(2, "line 4: ");
}

#[test]
fn refused_and_overlong_records_are_passed_over() {
    let Some(at) = shared() else { return };
    let key = "k".repeat(100_000);
    let text = format!(
        "\u{feff}refused/1\tone\n{key}\tv\nrefused/{}\tv\nrefused/2\ttwo\n",
        "x".repeat(400_000)
    );
    let args = ["import", "--format", "tsv", "--max-line-bytes", "300000"];
    let import = |more: &[&str]| kv_with(at, &[&args, more].concat(), text.as_bytes());
    import(&[]).failed(7, "--from-line 2");
    let skipped = import(&["--skip-bad", "-o", "json"]);
    assert_eq!(
        (&skipped.json()["records"], &skipped.json()["skipped"]),
        (&2.into(), &2.into()),
        "{skipped:?}"
    );
    assert_eq!(
        kv(at, &["scan", "--prefix", "refused/"]).ok(),
        "refused/1\tone\nrefused/2\ttwo\n"
    );
}

#[test]
fn the_last_line_of_a_key_wins() {
    let Some(at) = shared() else { return };
    let line = |n: u32| format!("{{\"key\":\"last/{}\",\"value\":\"{n}\"}}", n % 3);
    let lines: Vec<String> = (0..2_000).map(line).collect();
    let lines = lines.join("\n");
    kv_with(at, &["import"], lines.as_bytes()).ok();
    assert_eq!(
        kv(at, &["scan", "--prefix", "last/"]).ok(),
        "last/0\t1998\nlast/1\t1999\nlast/2\t1997\n"
    );
}
