//! The rights by grants, compared with a model that looks at each key alone.

// Tests may panic, also in functions beside them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;

use access::{
    Access, Account, Authorizer, Caller, Certificate, Grant, Need, Policy, PolicyNum, Rights,
    Space, Subject, Verb, Verbs, decide,
};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use types::Gid;

const SPACES: [Space<'static>; 4] = [
    Space::Flat,
    Space::Keyspace("a"),
    Space::Keyspace("ab"),
    Space::Keyspace("b"),
];

fn client(name: &str) -> Caller {
    Caller::Client(Arc::new(Certificate {
        common_name: Some(name.to_owned()),
        dns_names: vec![format!("{name}.example")],
        uris: vec![format!("spiffe://{name}")],
    }))
}

fn account(name: &str) -> Account {
    Account {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: format!("uid-of-{name}"),
    }
}

fn policy(grants: Vec<Grant>) -> Policy {
    Policy::new(PolicyNum(1), grants, None).unwrap()
}

fn draw(rng: &mut ChaCha8Rng, below: u32) -> u32 {
    rng.next_u32() % below
}

fn draw_grant(rng: &mut ChaCha8Rng) -> Grant {
    let account = |name: &str, uid: Option<&str>| Subject::ServiceAccount {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: uid.map(str::to_owned),
    };
    let subjects = [
        Subject::AnyAuthenticated,
        Subject::CommonName("x".to_owned()),
        Subject::DnsName("x.example".to_owned()),
        Subject::Uri("spiffe://x".to_owned()),
        Subject::CommonName("y".to_owned()),
        Subject::Accounts { namespace: None },
        Subject::Accounts {
            namespace: Some("shop".to_owned()),
        },
        Subject::Accounts {
            namespace: Some("other".to_owned()),
        },
        account("x", None),
        account("x", Some("uid-of-x")),
        account("x", Some("uid-of-another")),
        account("y", None),
    ];
    let verbs = draw(rng, 3) + 1;
    let keyspaces: [&[&str]; 6] = [&[], &["a"], &["a*"], &["*"], &["b", "a"], &["ab*"]];
    let prefixes = ["a", "b", "ab", "ba", "bb", "\u{7f}", "c"];
    let prefixes: Vec<String> = (0..draw(rng, 4))
        .map(|_| prefixes[draw(rng, 7) as usize].to_owned())
        .collect();
    Grant {
        subject: subjects[draw(rng, 12) as usize].clone(),
        verbs: Verbs {
            read: verbs & 1 > 0,
            write: verbs & 2 > 0,
            admin: false,
        },
        keyspaces: keyspaces[draw(rng, 6) as usize]
            .iter()
            .map(|name| (*name).to_owned())
            .collect(),
        prefixes,
    }
}

/// The meaning of a grant, for one key.
fn grants_key(
    grant: &Grant,
    caller: &Caller,
    account: Option<&Account>,
    space: Space,
    verb: Verb,
    key: &[u8],
) -> bool {
    let certificate = match caller {
        Caller::Client(certificate) => Some(certificate),
        _ => None,
    };
    let subject = match &grant.subject {
        Subject::AnyAuthenticated => certificate.is_some() || account.is_some(),
        Subject::CommonName(name) => {
            certificate.is_some_and(|it| it.common_name.as_ref() == Some(name))
        }
        Subject::DnsName(name) => certificate.is_some_and(|it| it.dns_names.contains(name)),
        Subject::Uri(name) => certificate.is_some_and(|it| it.uris.contains(name)),
        Subject::Accounts { namespace } => {
            account.is_some_and(|it| namespace.as_ref().is_none_or(|name| *name == it.namespace))
        }
        Subject::ServiceAccount {
            namespace,
            name,
            uid,
        } => account.is_some_and(|it| {
            it.namespace == *namespace
                && it.name == *name
                && uid.as_ref().is_none_or(|uid| *uid == it.uid)
        }),
    };
    let verb = match verb {
        Verb::Read => grant.verbs.read,
        Verb::Write => grant.verbs.write,
    };
    let space = match space {
        Space::Flat => grant.keyspaces.is_empty(),
        Space::Keyspace(name) => {
            grant
                .keyspaces
                .iter()
                .any(|pattern| match pattern.strip_suffix('*') {
                    Some(beginning) => name.starts_with(beginning),
                    None => name == pattern,
                })
        }
    };
    let prefixes = &grant.prefixes;
    let prefix = prefixes.is_empty()
        || prefixes
            .iter()
            .any(|prefix| key.starts_with(prefix.as_bytes()));
    subject && verb && space && prefix
}

/// Keys between which no prefix of `draw_grant` begins or ends: all of up to three letters, and those just before and after.
fn keys() -> Vec<Vec<u8>> {
    let letters = [b'a', b'b', b'c', 0x7f, 0x80];
    let mut keys: Vec<Vec<u8>> = vec![vec![]];
    for length in 0..3 {
        let longer = keys.iter().filter(|key| key.len() == length);
        let longer: Vec<Vec<u8>> = longer
            .flat_map(|key| letters.map(|letter| [key.as_slice(), &[letter]].concat()))
            .collect();
        keys.extend(longer);
    }
    keys.sort();
    keys
}

/// Compares all decisions for a caller with the model.
fn compare(
    rights: &Rights,
    grants: &[Grant],
    caller: &Caller,
    account: Option<&Account>,
    keys: &[Vec<u8>],
) {
    for (space, verb) in SPACES
        .into_iter()
        .flat_map(|space| [(space, Verb::Read), (space, Verb::Write)])
    {
        let one = |key: &Vec<u8>| {
            grants
                .iter()
                .any(|grant| grants_key(grant, caller, account, space, verb, key))
        };
        let allowed: Vec<bool> = keys.iter().map(one).collect();
        for (key, allowed) in keys.iter().zip(&allowed) {
            assert_eq!(
                rights.key(space, verb, key),
                *allowed,
                "{space:?} {verb:?} {key:?} of {grants:?}"
            );
        }
        assert_eq!(rights.some(space, verb), allowed.contains(&true));
        assert_eq!(
            rights.whole(space, verb),
            !allowed.contains(&false),
            "{space:?} {verb:?} of {grants:?}"
        );
        // The number of denied keys before each.
        let denied: Vec<usize> = allowed
            .iter()
            .scan(0, |sum, allowed| {
                let before = *sum;
                *sum += usize::from(!allowed);
                Some(before)
            })
            .collect();
        for (from, start) in keys.iter().enumerate() {
            for (to, end) in keys.iter().enumerate().step_by(3) {
                let expected = if to > from {
                    denied[to] == denied[from]
                } else {
                    allowed[from]
                };
                let found = rights.range(space, verb, start, Some(end));
                assert_eq!(
                    found, expected,
                    "{space:?} {verb:?} {start:?} to {end:?} of {grants:?}"
                );
            }
            assert_eq!(
                rights.range(space, verb, start, None),
                !allowed[from..].contains(&false)
            );
        }
    }
}

#[test]
fn a_range_is_allowed_if_and_only_if_each_key_is() {
    let keys = keys();
    for seed in 0..40 {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let grants: Vec<Grant> = (0..draw(rng, 7)).map(|_| draw_grant(rng)).collect();
        let authorizer = Authorizer::new(&policy(grants.clone()));
        let callers = [
            (client("x"), None),
            (client("x"), Some(account("y"))),
            (Caller::Anonymous, Some(account("x"))),
        ];
        let (caller, account) = &callers[draw(rng, 3) as usize];
        let rights = authorizer.rights(caller, account.as_ref());
        compare(&rights, &grants, caller, account.as_ref(), &keys);
    }
}

#[test]
fn callers_without_an_identity_get_nothing() {
    let all = Verbs {
        read: true,
        write: true,
        admin: false,
    };
    let admin = Verbs {
        admin: true,
        ..Verbs::default()
    };
    let grant = |verbs, keyspaces: &[&str]| Grant {
        subject: Subject::AnyAuthenticated,
        verbs,
        keyspaces: keyspaces.iter().map(|name| (*name).to_owned()).collect(),
        prefixes: Vec::new(),
    };
    let policy = policy(vec![grant(all, &[]), grant(all, &["*"]), grant(admin, &[])]);
    let authorizer = Authorizer::new(&policy);
    for caller in [
        Caller::Plain,
        Caller::Anonymous,
        Caller::Member(Gid(1)),
        Caller::Operator,
    ] {
        let rights = authorizer.rights(&caller, None);
        assert!(!rights.admin() && SPACES.iter().all(|space| !rights.some(*space, Verb::Read)));
    }
    let x = client("x");
    let rights = authorizer.rights(&x, None);
    assert!(rights.admin() && SPACES.iter().all(|space| rights.whole(*space, Verb::Write)));
    assert!(
        !Authorizer::default()
            .rights(&x, None)
            .some(Space::Flat, Verb::Read),
        "without a policy"
    );
}

#[test]
fn encoded_and_printed_policies_are_read_as_they_were() {
    for seed in 0..200 {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let policy = policy((0..draw(rng, 7)).map(|_| draw_grant(rng)).collect());
        assert_eq!(Policy::decode(policy.encode()), Ok(policy.clone()));
        assert_eq!(
            Policy::parse(PolicyNum(1), &policy.to_yaml()),
            Ok(policy.clone())
        );
        assert_eq!(
            Policy::from_json(PolicyNum(1), policy.to_json()),
            Ok(policy.clone())
        );
        let bytes = policy.encode();
        for length in 0..bytes.len() {
            assert!(
                Policy::decode(bytes.slice(..length)).is_err(),
                "{length} of {} bytes",
                bytes.len()
            );
        }
        let mut bad = bytes.to_vec();
        let at = draw(rng, u32::try_from(bad.len()).unwrap()) as usize;
        bad[at] ^= 1 << draw(rng, 8);
        if let Ok(other) = Policy::decode(bad.into()) {
            assert_eq!(Policy::decode(other.encode()), Ok(other));
        }
    }
}

#[test]
fn a_method_may_be_called_if_some_grant_has_its_verb() {
    let grant = |name: &str, verb: &str, keyspaces: &[&str]| Grant {
        subject: Subject::CommonName(name.to_owned()),
        verbs: Verbs {
            read: verb == "read",
            write: verb == "write",
            admin: verb == "admin",
        },
        keyspaces: keyspaces.iter().map(|name| (*name).to_owned()).collect(),
        prefixes: Vec::new(),
    };
    let grants = vec![
        grant("r", "read", &["a"]),
        grant("w", "write", &[]),
        grant("rw", "read", &[]),
        grant("rw", "write", &["a"]),
        grant("ad", "admin", &[]),
    ];
    let authorizer = Authorizer::new(&policy(grants));
    let data = [
        Access::Read,
        Access::Write,
        Access::ReadWrite,
        Access::Parts,
    ]
    .map(Need::Data);
    let others = [
        Need::Public,
        Need::Route,
        Need::Admin,
        Need::NodeAdmin,
        Need::Member,
    ];
    for (name, expected) in [
        (
            "none",
            [false, false, false, false, true, false, false, false, false],
        ),
        (
            "r",
            [true, false, false, true, true, true, false, false, false],
        ),
        (
            "w",
            [false, true, false, true, true, true, false, false, false],
        ),
        (
            "rw",
            [true, true, true, true, true, true, false, false, false],
        ),
        (
            "ad",
            [false, false, false, false, true, true, true, true, false],
        ),
    ] {
        let caller = client(name);
        let found = data.iter().chain(&others);
        let found: Vec<bool> = found
            .map(|need| decide(&caller, *need, false, &authorizer).is_ok())
            .collect();
        assert_eq!(found, expected, "{name}");
    }
}
