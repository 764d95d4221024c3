//! Loading of files.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use rcgen::ExtendedKeyUsagePurpose;
use types::Gid;

use super::{Asked, Authority, DAY, Pair, named};
use crate::{Credentials, Files, LoadError, Pem};

const NODE: &str = "shardkv://c1/group/3";

fn load(pair: &Pair, peers: &Authority) -> Result<Credentials, LoadError> {
    Credentials::load(&Files {
        cert: pair.cert.clone(),
        key: pair.key.clone(),
        peers_ca: peers.bundle(),
        operator_ca: None,
        clients_ca: None,
    })
}

fn assert_refused(result: Result<Credentials, LoadError>, says: &str) {
    let said = result.unwrap_err().to_string();
    assert!(said.contains(says), "{said}");
}

#[test]
fn a_nodes_certificate_says_its_cluster_group_and_end() {
    let folder = tempfile::tempdir().unwrap();
    let peers = Authority::new(folder.path(), "peers");
    let asked = named(NODE);
    let own = load(&peers.issue("node", &asked), &peers).unwrap();
    assert_eq!((own.name().to_string().as_str(), own.gid()), (NODE, Gid(3)));
    let difference = asked.ends.duration_since(own.expires()).unwrap();
    assert!(difference.as_secs() < 1, "{difference:?}");
    let controller = peers.issue("controller", &named("shardkv://c1/controllers"));
    assert_eq!(load(&controller, &peers).unwrap().gid(), Gid::NONE);
}

#[test]
fn certificates_that_other_nodes_would_refuse_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let peers = Authority::new(folder.path(), "peers");
    let others = Authority::new(folder.path(), "others");
    let now = SystemTime::now();
    let issue = |asked: Asked| load(&peers.issue("node", &asked), &peers);
    assert_refused(
        load(&others.issue("x", &named(NODE)), &peers),
        "signed by none",
    );
    assert_refused(
        issue(Asked {
            ends: now - DAY / 2,
            ..named(NODE)
        }),
        "has expired",
    );
    assert_refused(
        issue(Asked {
            begins: now + DAY / 2,
            ..named(NODE)
        }),
        "not valid yet",
    );
    for purpose in [
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ] {
        let purposes = vec![purpose];
        assert_refused(
            issue(Asked {
                purposes,
                ..named(NODE)
            }),
            "serverAuth and clientAuth",
        );
    }
    let two = vec![NODE, "shardkv://c1/group/4"];
    for uris in [
        vec![],
        two,
        vec!["shardkv://c1/operator"],
        vec!["shardkv://c1/group/x"],
    ] {
        let said = "is not that of a node";
        assert_refused(
            issue(Asked {
                uris,
                ..Asked::default()
            }),
            said,
        );
    }
}

#[test]
fn files_that_are_no_certificates_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let peers = Authority::new(folder.path(), "peers");
    let good = peers.issue("node", &named(NODE));
    let other = peers.issue("other", &named(NODE));
    let with = |cert: &Path, key: &Path| {
        load(
            &Pair {
                cert: cert.to_owned(),
                key: key.to_owned(),
            },
            &peers,
        )
    };
    let write = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let empty = write("empty.pem", b"");
    let garbage = write(
        "garbage.pem",
        b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
    );
    let wrong = write(
        "wrong.pem",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let large = write("large.pem", &vec![b'\n'; 2 << 20]);
    let missing = folder.path().join("missing.pem");
    let (cert, key) = (&good.cert, &good.key);
    for (result, file, says) in [
        (with(&missing, key), &missing, "must exist"),
        (with(&empty, key), &empty, "has no certificate"),
        (with(key, key), key, "has no certificate"),
        (with(&garbage, key), &garbage, "no PEM text"),
        (with(&wrong, key), &wrong, "can't be used"),
        (with(&large, key), &large, "more than"),
        (with(cert, &empty), &empty, "has no private key"),
        (with(cert, cert), cert, "has no private key"),
        (with(cert, &other.key), &other.key, "not the private key of"),
    ] {
        let said = result.unwrap_err().to_string();
        let name = file.display().to_string();
        assert!(said.starts_with(&name) && said.contains(says), "{said}");
    }
}

#[test]
fn a_key_is_never_shown() {
    let text = Pem::new(Path::new("tls.key"), "secret");
    assert_eq!(format!("{text:?}"), "\"tls.key\"");
}
