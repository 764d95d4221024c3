use super::table::ROWS;
use super::*;

/// Parses a command line without the environment: tests run in one process and must not share it.
fn values(args: &[&str], file: &str) -> anyhow::Result<Values> {
    let args = [&["shardkv-node"], args].concat();
    let matches = read::command().try_get_matches_from(args)?;
    let settings = file::parse(file)?;
    let mut values = Values::new("node.yaml", settings);
    values.add_matches(&matches);
    Ok(values)
}

fn options(args: &[&str], file: &str) -> anyhow::Result<Options> {
    Ok(build(&mut values(args, file)?)?)
}

#[test]
fn the_tables_defaults_build_valid_options() {
    let options = options(&["--data-dir", "/d"], "").unwrap();
    let raft = raft::Options {
        feature_level: replica::FEATURE_LEVEL,
        keeps_leases: true,
        ..raft::Options::default()
    };
    assert_eq!(options.replica.raft, raft);
    assert_eq!(options.replica.tick_ms, 10);
    assert_eq!(options.limits.max_value_bytes, 1 << 20);
    assert_eq!(options.genesis, GenesisOptions::default());
    assert_eq!(options.metrics_listen.as_deref(), Some("127.0.0.1:7401"));
    assert!(options.rpc_threads >= 1);
}

#[test]
fn every_row_of_the_table_is_read() {
    let mut values = values(&["--data-dir", "/d"], "").unwrap();
    build(&mut values).unwrap();
    let report = values.report();
    for row in ROWS {
        assert!(report.contains(&format!("{}: ", row.key)), "{}", row.key);
    }
}

#[test]
fn the_report_is_a_file_that_gives_the_same_options() {
    let mut first = values(
        &["--data-dir", "/d", "--peers", "a:1,b:2", "--lease-reads"],
        "",
    )
    .unwrap();
    build(&mut first).unwrap();
    let report = first.report();
    let mut second = values(&[], &report).unwrap();
    let options = build(&mut second).unwrap();
    assert_eq!(options.peers, ["a:1", "b:2"]);
    assert!(options.replica.raft.lease_reads);
    let none = GenesisOptions::default();
    assert_eq!(options.genesis, none, "a default is not a choice");
}

#[test]
fn flags_win_over_the_file_and_the_file_over_defaults() {
    let file = "data_dir: /file\ntick_ms: 20\ngid: 7\n";
    let options = options(&["--tick-ms", "5"], file).unwrap();
    assert_eq!(options.replica.tick_ms, 5, "flag over file");
    assert_eq!(options.gid, Gid(7), "file over default");
    assert_eq!(options.data_dir, PathBuf::from("/file"));
    assert_eq!(
        options.replica.raft.heartbeat_ticks, 20,
        "100 ms of 5 ms ticks"
    );
}

#[test]
fn the_environment_stands_between_flags_and_file() {
    // The parser reads the variable's value from the process' environment, which tests must not change. So the test checks
    // the parser itself: every option has its variable, and a variable's value counts as such.
    let command = read::command();
    for row in ROWS {
        let arg = command
            .get_arguments()
            .find(|arg| arg.get_id() == row.key)
            .unwrap();
        assert_eq!(
            arg.get_env().unwrap().to_str().unwrap(),
            row.variable(),
            "{}",
            row.key
        );
    }
}

#[test]
fn a_bad_value_names_its_place() {
    let cases: &[(&[&str], &str, &str)] = &[
        (&[], "", "--data-dir: is required"),
        (
            &["--data-dir=/d", "--tick-ms=no"],
            "",
            "--tick-ms: `no` is not a whole number from 1 to 1000",
        ),
        (
            &["--data-dir=/d"],
            "tick_ms: 0",
            "node.yaml line 1: tick_ms: `0` is not",
        ),
        (
            &["--data-dir=/d"],
            "\nelection_timeout_ms: 200",
            "node.yaml line 2: election_timeout_ms: must be at least 3 times",
        ),
        (
            &["--data-dir=/d", "--max-value-bytes=8000000"],
            "",
            "--max-request-bytes: must be at least",
        ),
        (
            &["--data-dir=/d", "--max-pending-resets=100"],
            "",
            "--max-pending-resets: must be at least max_streams_per_connection, 1024",
        ),
        (
            &["--data-dir=/d", "--max-scan-bytes=8388607"],
            "",
            "--max-scan-bytes: must be at least 8388608, 32 KiB for each of the 256 open scans",
        ),
        (
            &["--data-dir=/d", "--max-scans=2049"],
            "",
            "--max-scan-bytes: must be at least 67141632",
        ),
        (
            &["--data-dir=/d", "--stall-timeout-ms=1"],
            "",
            "--stall-timeout-ms: `1` is not a whole number from 3000",
        ),
        (
            &["--data-dir=/d", "--listen=nowhere"],
            "",
            "--listen: `nowhere` is not an address",
        ),
        (
            &["--data-dir=/d", "--peers=a:1,a:1"],
            "",
            "--peers: `a:1` is given twice",
        ),
        (
            &["--data-dir=/d", "--log-format=xml"],
            "",
            "--log-format: `xml` is not a log format",
        ),
        (
            &["--data-dir=/d", "--lease-reads=maybe"],
            "",
            "--lease-reads: `maybe` is neither",
        ),
        (
            &["--data-dir=/d", "--cluster-name=a b"],
            "",
            "--cluster-name: `a b` is not a name",
        ),
        (&["--data-dir=/d", "--data-dri=/d"], "", "--data-dir"),
        (
            &["--data-dir=/d"],
            "data-dri: /x",
            "line 1: unknown option `data-dri`; did you mean `data_dir`?",
        ),
    ];
    for (args, file, needle) in cases {
        let error = options(args, file).unwrap_err().to_string();
        assert!(error.contains(needle), "{args:?} {file:?}: {error}");
    }
}

#[test]
fn addresses_of_all_kinds_are_taken() {
    for good in ["a:1", "10.0.0.1:0", "db-0.db.ns.svc:7400", "[::1]:7400"] {
        assert!(check_address(good).is_ok(), "{good}");
    }
    for bad in [
        "", ":1", "a", "a:", "a:70000", "::1:1", "[x]:1", "a b:1", "a:1:2",
    ] {
        assert!(check_address(bad).is_err(), "{bad}");
    }
}

#[test]
fn help_names_every_option_with_unit_and_default() {
    let arguments = ["shardkv-node", "--help"].map(Into::into);
    let Ok(Invocation::Print(help)) = parse(arguments, "Exit codes:") else {
        panic!("--help prints a text");
    };
    for row in ROWS {
        assert!(help.contains(&format!("--{}", row.flag())), "{}", row.key);
        assert!(help.contains(row.unit), "{}", row.key);
    }
    assert!(help.contains("Exit codes:"));
}

#[test]
fn a_role_says_which_group_and_whose_controllers() {
    let base = ["--data-dir", "/d"];
    let with = |more: &[&str]| options(&[&base[..], more].concat(), "");
    let standalone = with(&[]).unwrap();
    assert_eq!(standalone.genesis.kind, GroupKind::Standalone);
    assert_eq!((standalone.gid, standalone.controllers.len()), (Gid(1), 0));
    let controller = with(&["--role", "controller"]).unwrap();
    assert_eq!(controller.genesis.kind, GroupKind::Controller);
    assert_eq!(controller.gid, Gid::NONE);
    let shards = ["--role", "shards", "--gid", "3", "--controllers", "a:1,b:1"];
    let shards = with(&shards).unwrap();
    assert_eq!((shards.gid, shards.controllers.len()), (Gid(3), 2));
    let refused: [(&[&str], &str); 7] = [
        (&["--role", "king"], "--role"),
        (&["--gid", "0"], "--gid"),
        (&["--role", "controller", "--gid", "1"], "--gid"),
        (&["--role", "shards", "--controllers", "a:1"], "--gid"),
        (&["--role", "shards", "--gid", "1"], "--controllers"),
        (&["--controllers", "a:1"], "--controllers"),
        (
            &["--handoff-chunk-bytes", "9000000"],
            "--handoff-chunk-bytes",
        ),
    ];
    for (arguments, place) in refused {
        let error = with(arguments).unwrap_err().to_string();
        assert!(error.starts_with(place), "{arguments:?}: {error}");
    }
}

#[test]
fn small_entries_have_smaller_parts_of_shards() {
    let small = [
        "--data-dir",
        "/d",
        "--max-value-bytes",
        "1000",
        "--max-entry-bytes",
        "50000",
    ];
    let options = options(&small, "").unwrap();
    let chunk = options.handoff.mover.chunk_bytes;
    assert!((1..50_000).contains(&chunk), "{chunk}");
}

/// The operator checks a file without a process, and gets the error that the node would end with.
#[test]
fn a_file_is_checked_with_the_environment_that_it_will_meet() {
    let shards = [
        ("SHARDKV_DATA_DIR", "/d"),
        ("SHARDKV_ROLE", "shards"),
        ("SHARDKV_GID", "1"),
        ("SHARDKV_CONTROLLERS", "a:1,b:1"),
        ("PATH", "/bin"),
    ];
    let with = |file: &str| check("node.yaml", file, shards).map_err(|error| error.to_string());
    assert_eq!(with("tick_ms: 5\ngid: 0\n"), Ok(()), "the environment wins");
    let refused = [
        (
            "log_filter: a=debgu\n",
            "node.yaml line 1: log_filter: `a=debgu`",
        ),
        (
            "\ntick_m: 5\n",
            "node.yaml: line 2: unknown option `tick_m`; did you mean `tick_ms`?",
        ),
        (
            "tick_ms: 0\n",
            "node.yaml line 1: tick_ms: `0` is not a whole number",
        ),
    ];
    for (file, reason) in refused {
        let error = with(file).unwrap_err();
        assert!(error.starts_with(reason), "{error}");
    }
    let error = check("node.yaml", "", [("SHARDKV_GID", "1")]).unwrap_err();
    assert_eq!(error.place, "--data-dir");
}

fn keyspaces_of(settings: &[(&str, &str)]) -> Result<KeyspaceNames, String> {
    let mut values = Values::new("", Vec::new());
    values.add_environment(settings.iter().copied());
    keyspaces::names(&mut values).map_err(|error| error.to_string())
}

#[test]
fn names_of_keyspaces_are_checked() {
    let default = keyspaces_of(&[]).unwrap();
    assert_eq!(default.fallback.as_deref(), Some("default"));
    assert_eq!((default.services.len(), default.listen.len()), (0, 0));
    let given = keyspaces_of(&[
        ("SHARDKV_FALLBACK_KEYSPACE", "none"),
        ("SHARDKV_SERVICE_NAMES", "db.prod.svc, db"),
        ("SHARDKV_KEYSPACE_LISTEN", "a=127.0.0.1:0,b.c=[::1]:2379"),
    ]);
    let given = given.unwrap();
    assert_eq!(given.fallback, None);
    assert_eq!(given.services, ["db.prod.svc", "db"]);
    let listen = [("a", "127.0.0.1:0"), ("b.c", "[::1]:2379")];
    let listen = listen.map(|(name, address)| (name.to_owned(), address.to_owned()));
    assert_eq!(given.listen, listen);
    for (variable, value) in [
        ("SHARDKV_FALLBACK_KEYSPACE", "No"),
        ("SHARDKV_FALLBACK_KEYSPACE", ""),
        ("SHARDKV_SERVICE_NAMES", "db:7400"),
        ("SHARDKV_KEYSPACE_LISTEN", "127.0.0.1:2379"),
        ("SHARDKV_KEYSPACE_LISTEN", "A=127.0.0.1:2379"),
        ("SHARDKV_KEYSPACE_LISTEN", "a=127.0.0.1"),
    ] {
        let refused = keyspaces_of(&[(variable, value)]).unwrap_err();
        assert!(refused.starts_with(variable), "{refused}");
    }
}

#[test]
fn the_parts_of_tls_are_given_together() {
    let options = |args: &[&str]| tls::tls(&mut values(args, "").unwrap());
    assert_eq!(options(&[]).unwrap(), None);
    let pair = ["--tls-cert", "c", "--tls-key", "k"];
    let needed = [pair.as_slice(), &["--tls-peers-ca", "p"]].concat();
    let mut expected = Tls {
        cert: "c".into(),
        key: "k".into(),
        peers_ca: "p".into(),
        operator_ca: None,
        clients_ca: None,
        accepts_plain: false,
    };
    assert_eq!(options(&needed).unwrap().as_ref(), Some(&expected));
    let more = ["--tls-operator-ca", "o", "--tls-clients-ca", "l"];
    let all = [needed.as_slice(), &more, &["--tls-plain", "accept"]].concat();
    expected.operator_ca = Some("o".into());
    expected.clients_ca = Some("l".into());
    expected.accepts_plain = true;
    assert_eq!(options(&all).unwrap(), Some(expected));
    for (args, says) in [
        (pair.as_slice(), "--tls-cert: TLS needs"),
        (&["--tls-clients-ca", "l"], "--tls-clients-ca: TLS needs"),
        (&["--tls-plain", "maybe"], "--tls-plain: `maybe` is neither"),
    ] {
        let said = options(args).unwrap_err().to_string();
        assert!(said.starts_with(says), "{said}");
    }
}

#[test]
fn a_node_with_certificates_is_refused_until_it_serves_tls() {
    let args = ["--data-dir", "/d", "--tls-cert", "c", "--tls-key", "k"];
    let all = [args.as_slice(), &["--tls-peers-ca", "p"]].concat();
    let said = options(&all, "").unwrap_err().to_string();
    assert!(
        said.starts_with("--tls-cert: this version of the node serves no TLS yet"),
        "{said}"
    );
}
