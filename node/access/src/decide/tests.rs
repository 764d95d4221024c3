//! The decisions, as a table of identities and rights.

use std::sync::Arc;

use super::*;
use crate::paths;

/// A client's rights: to read, to write, to administer.
struct Rights(bool, bool, bool);

impl Grants for Rights {
    fn allows(&self, _: &Certificate, need: Need) -> bool {
        let Self(read, write, admin) = *self;
        match need {
            Need::Public => true,
            Need::Route => read || write || admin,
            Need::Data(Access::Read) => read,
            Need::Data(Access::Write) => write,
            Need::Data(Access::ReadWrite | Access::Parts) => read && write,
            Need::Admin | Need::NodeAdmin => admin,
            Need::Member => panic!("no grant makes a client a member"),
        }
    }
}

const NEEDS: [Need; 9] = [
    Need::Public,
    Need::Route,
    Need::Data(Access::Read),
    Need::Data(Access::Write),
    Need::Data(Access::ReadWrite),
    Need::Data(Access::Parts),
    Need::Admin,
    Need::NodeAdmin,
    Need::Member,
];

fn client() -> Caller {
    Caller::Client(Arc::new(Certificate {
        common_name: Some("app".to_owned()),
        ..Certificate::default()
    }))
}

/// Returns a letter for each need: allowed, unauthenticated, denied.
fn row(caller: &Caller, takes_plain: bool, rights: &Rights) -> String {
    let letter = |need| match decide(caller, need, takes_plain, rights) {
        Ok(()) => 'A',
        Err(refusal) if refusal.is_unauthenticated() => 'u',
        Err(_) => '-',
    };
    NEEDS.into_iter().map(letter).collect()
}

#[test]
fn each_identity_has_its_rights() {
    let none = &Rights(false, false, false);
    for (caller, takes_plain, expected) in [
        (Caller::Plain, true, "AAAAAAAAA"),
        (Caller::Plain, false, "uuuuuuuuu"),
        (Caller::Anonymous, true, "Auuuuuuuu"),
        (Caller::Member(Gid(2)), false, "AAAAAAA-A"),
        (Caller::Member(Gid::NONE), false, "AAAAAAA-A"),
        (Caller::Operator, false, "AA----AA-"),
        (client(), true, "A--------"),
    ] {
        assert_eq!(row(&caller, takes_plain, none), expected, "{caller}");
    }
    for (rights, expected) in [
        (Rights(true, false, false), "AAA--A---"),
        (Rights(false, true, false), "AA-A-A---"),
        (Rights(true, true, false), "AAAAAA---"),
        (Rights(false, false, true), "AA----AA-"),
        (Rights(true, true, true), "AAAAAAAA-"),
    ] {
        assert_eq!(row(&client(), false, &rights), expected);
    }
}

#[test]
fn a_client_without_grants_may_call_nothing_but_what_is_public() {
    for path in paths() {
        let need = crate::need(&path).unwrap();
        let decided = decide(&client(), need, true, &NoGrants);
        assert_eq!(decided.is_ok(), need == Need::Public, "{path}");
    }
}

#[test]
fn nothing_but_health_the_version_and_a_login_is_public() {
    let public: Vec<String> = paths()
        .filter(|path| crate::need(path) == Some(Need::Public))
        .collect();
    assert_eq!(
        public,
        [
            "/grpc.health.v1.Health/Check",
            "/grpc.health.v1.Health/List",
            "/grpc.health.v1.Health/Watch",
            "/etcdserverpb.Auth/Authenticate",
            "/version",
        ]
    );
}

#[test]
fn a_path_that_no_service_has_has_no_need() {
    for path in [
        "",
        "/",
        "//",
        "/shardkv.v1.Kv",
        "/shardkv.v1.Kv/",
        "/shardkv.v1.Kv/get",
        "/shardkv.v1.Kv/Get/",
        "/shardkv.v1.Kv/Get/x",
        "/x/shardkv.v1.Kv/Get",
        "//shardkv.v1.Kv/Get",
        "shardkv.v1.Kv/Get",
        "/v3/kv/range",
        "/version/",
    ] {
        assert_eq!(crate::need(path), None, "{path}");
    }
}

#[test]
fn each_path_is_listed_once() {
    let all: Vec<String> = paths().collect();
    let once: std::collections::BTreeSet<&String> = all.iter().collect();
    assert_eq!(all.len(), once.len());
}

#[test]
fn a_member_acts_for_its_own_group_only() {
    let member = |gid| Caller::Member(Gid(gid));
    // The caller, and whether it may speak Raft with group 2, and report for it.
    for (caller, raft, report) in [
        (member(2), true, true),
        (member(3), false, false),
        (member(0), false, true),
        (Caller::Plain, true, true),
        (Caller::Operator, false, false),
        (Caller::Anonymous, false, false),
        (client(), false, false),
    ] {
        assert_eq!(check_group(&caller, Gid(2)).is_ok(), raft, "{caller}");
        assert_eq!(check_report(&caller, Gid(2)).is_ok(), report, "{caller}");
    }
    assert!(check_group(&member(0), Gid::NONE).is_ok());
    assert!(check_group(&member(2), Gid::NONE).is_err());
}

#[test]
fn a_refusal_says_what_happened_and_what_to_do() {
    let forbidden = |caller, need| decide(&caller, need, false, &NoGrants).unwrap_err();
    let write = Need::Data(Access::Write);
    for (refusal, expected) in [
        (
            forbidden(client(), write),
            r#"the client "app" may not write: ask the cluster's administrator for a grant"#,
        ),
        (
            forbidden(Caller::Operator, write),
            "the operator may not write: call it with a client's certificate that has a grant",
        ),
        (
            forbidden(Caller::Operator, Need::Member),
            "the operator may not act as a node: only nodes call this method, with the certificate of their group",
        ),
        (
            check_report(&Caller::Member(Gid(3)), Gid(2)).unwrap_err(),
            "a node of g3 may not act for g2: check that this node's certificate has the node's own group",
        ),
        (
            check_group(&Caller::Member(Gid(3)), Gid::NONE).unwrap_err(),
            "a node of g3 may not act for the controllers: check that this node's certificate has the node's own group",
        ),
    ] {
        assert_eq!(refusal.to_string(), expected);
        assert!(!refusal.is_unauthenticated());
    }
    let plain = forbidden(Caller::Plain, write).to_string();
    assert!(plain.contains("over TLS only: pass --ca"), "{plain}");
    let anonymous = forbidden(Caller::Anonymous, write).to_string();
    assert!(anonymous.contains("pass --cert and --key"), "{anonymous}");
}
