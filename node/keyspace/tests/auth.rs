//! Users, roles and permissions: what may be changed by whom, what is refused, and what a caller may do.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use bytes::Bytes;
use common::{Keyspace, delete, key, nested, put, span, txn};
use keyspace::{
    Access, AuthWrite, Compare, DeleteRange, KeyspaceOptions, LeaseId, Op, Permission, Principal,
    Put, ROOT, Range, Refusal, Relation, Right, Target, Txn, Write, check_access, read_role,
    read_roles, read_user, read_users,
};

fn keyspace() -> Keyspace {
    Keyspace::new(KeyspaceOptions::default())
}

fn add_user(name: &str) -> AuthWrite {
    AuthWrite::UserAdd {
        name: name.to_owned(),
        hash: Some(Bytes::from_static(b"hash")),
    }
}

fn delete_user(name: &str) -> AuthWrite {
    let name = name.to_owned();
    AuthWrite::UserDelete { name }
}

fn add_role(name: &str) -> AuthWrite {
    let name = name.to_owned();
    AuthWrite::RoleAdd { name }
}

fn delete_role(name: &str) -> AuthWrite {
    let name = name.to_owned();
    AuthWrite::RoleDelete { name }
}

fn grant_role(user: &str, role: &str) -> AuthWrite {
    let (user, role) = (user.to_owned(), role.to_owned());
    AuthWrite::GrantRole { user, role }
}

fn revoke_role(user: &str, role: &str) -> AuthWrite {
    let (user, role) = (user.to_owned(), role.to_owned());
    AuthWrite::RevokeRole { user, role }
}

fn permission(right: Right, start: &str, end: &str) -> Permission {
    Permission {
        right,
        key: key(start),
        range_end: key(end),
    }
}

fn grant(role: &str, right: Right, start: &str, end: &str) -> AuthWrite {
    AuthWrite::GrantPermission {
        role: role.to_owned(),
        permission: Some(permission(right, start, end)),
    }
}

fn revoke(role: &str, start: &str, end: &str) -> AuthWrite {
    AuthWrite::RevokePermission {
        role: role.to_owned(),
        key: key(start),
        range_end: key(end),
    }
}

fn enable() -> AuthWrite {
    let secret = Bytes::from_static(b"secret");
    AuthWrite::Enable { secret }
}

/// Carries out changes that must succeed.
fn manage(keyspace: &mut Keyspace, writes: impl IntoIterator<Item = AuthWrite>) {
    for write in writes {
        keyspace.ok(Write::Auth(write));
    }
}

fn principal(keyspace: &Keyspace, user: &str) -> Principal {
    Principal {
        user: user.to_owned(),
        revision: keyspace.record().auth.revision,
    }
}

/// Returns a write for a user, checked in the present state.
fn by(keyspace: &Keyspace, user: &str, write: Write) -> Write {
    Write::As {
        caller: principal(keyspace, user),
        write: Box::new(write),
    }
}

/// Returns a keyspace with authentication: `root`, and `ann`, who reads `a` to `c` and writes `b` to `d`.
fn guarded() -> Keyspace {
    let mut keyspace = keyspace();
    manage(
        &mut keyspace,
        [
            add_user(ROOT),
            grant_role(ROOT, ROOT),
            add_user("ann"),
            add_role("some"),
            grant("some", Right::Read, "a", "c"),
            grant("some", Right::Write, "b", "d"),
            grant_role("ann", "some"),
            enable(),
        ],
    );
    keyspace
}

fn access(keyspace: &Keyspace, user: Option<&str>, wanted: Access<'_>) -> Result<(), Refusal> {
    let caller = user.map(|user| principal(keyspace, user));
    let (reader, place) = (&keyspace.store, keyspace.place);
    check_access(reader, place, &keyspace.record(), caller.as_ref(), wanted).unwrap()
}

#[test]
fn changes_are_refused_as_etcd_refuses_them() {
    let mut keyspace = keyspace();
    let refusals = [
        (enable(), Refusal::RootUserNotExist),
        (add_user(""), Refusal::UserEmpty),
        (delete_user("x"), Refusal::UserNotFound),
        (grant_role("x", "x"), Refusal::UserNotFound),
        (revoke_role("x", "x"), Refusal::UserNotFound),
        (add_role(""), Refusal::RoleEmpty),
        (delete_role("x"), Refusal::RoleNotFound),
        (grant("x", Right::Read, "a", ""), Refusal::RoleNotFound),
        (grant("x", Right::Read, "", ""), Refusal::InvalidAuthMgmt),
        (grant("x", Right::Read, "b", "a"), Refusal::InvalidAuthMgmt),
        (grant("x", Right::Read, "b", "b"), Refusal::InvalidAuthMgmt),
        (revoke("x", "a", ""), Refusal::RoleNotFound),
    ];
    for (write, refusal) in refusals {
        assert_eq!(keyspace.refusal(Write::Auth(write)), Some(refusal));
    }
    let nothing = AuthWrite::GrantPermission {
        role: "x".to_owned(),
        permission: None,
    };
    let refusal = keyspace.refusal(Write::Auth(nothing));
    assert_eq!(refusal, Some(Refusal::PermissionNotGiven));
    let change = AuthWrite::ChangePassword {
        name: "x".to_owned(),
        hash: key("h"),
    };
    let refusal = keyspace.refusal(Write::Auth(change));
    assert_eq!(refusal, Some(Refusal::UserNotFound));
    let record = keyspace.record();
    assert_eq!(
        (record.auth.revision, record.bytes),
        (1, 0),
        "nothing changed"
    );

    manage(&mut keyspace, [add_user(ROOT), add_role("r")]);
    let refusals = [
        (enable(), Refusal::RootRoleNotExist),
        (add_user(ROOT), Refusal::UserExists),
        (add_role("r"), Refusal::RoleExists),
        (grant_role(ROOT, "x"), Refusal::RoleNotFound),
        (revoke_role(ROOT, "r"), Refusal::RoleNotGranted),
        (revoke("r", "a", ""), Refusal::PermissionNotGranted),
    ];
    for (write, refusal) in refusals {
        assert_eq!(keyspace.refusal(Write::Auth(write)), Some(refusal));
    }
    // The role `root` needs not exist.
    manage(&mut keyspace, [grant_role(ROOT, ROOT), enable()]);
    for write in [
        delete_user(ROOT),
        revoke_role(ROOT, ROOT),
        delete_role(ROOT),
    ] {
        let write = by(&keyspace, ROOT, Write::Auth(write));
        assert_eq!(keyspace.refusal(write), Some(Refusal::InvalidAuthMgmt));
    }
}

#[test]
fn the_auth_revision_counts_what_changed_and_keys_have_another() {
    let mut keyspace = keyspace();
    let revision = keyspace.record().revision;
    let steps = [
        (add_user(ROOT), 2),
        (grant_role(ROOT, ROOT), 3),
        (grant_role(ROOT, ROOT), 3),
        (AuthWrite::Disable, 3),
        (add_role("r"), 4),
        (grant("r", Right::Read, "a", "b"), 5),
        (grant("r", Right::Write, "a", "b"), 6),
        (revoke("r", "a", "b"), 7),
        (delete_role("r"), 8),
        (enable(), 8),
        (AuthWrite::Disable, 9),
        (delete_user(ROOT), 10),
    ];
    for (write, expected) in steps {
        let write = by(&keyspace, ROOT, Write::Auth(write));
        keyspace.ok(write);
        assert_eq!(keyspace.record().auth.revision, expected);
    }
    let record = keyspace.record();
    assert_eq!(record.revision, revision);
    assert_eq!((record.bytes, record.auth.bytes), (0, 0), "all was removed");
    assert_eq!((record.auth.users, record.auth.roles), (0, 0));
    assert!(record.auth.secret.is_empty());
}

#[test]
fn users_and_roles_are_read_in_the_order_of_their_names() {
    let mut keyspace = keyspace();
    let unnamed = AuthWrite::UserAdd {
        name: "b".to_owned(),
        hash: None,
    };
    let changed = |name: &str| AuthWrite::ChangePassword {
        name: name.to_owned(),
        hash: key("new"),
    };
    manage(
        &mut keyspace,
        [
            add_user("c"),
            unnamed,
            add_role("z"),
            add_role("y"),
            grant("y", Right::Read, "k", ""),
            grant("y", Right::Write, "a", "\0"),
            grant_role("c", "z"),
            grant_role("c", "y"),
            changed("b"),
            changed("c"),
        ],
    );
    let (reader, place) = (&keyspace.store, keyspace.place);
    let users = read_users(reader, place).unwrap();
    let names: Vec<_> = users.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["b", "c"]);
    assert_eq!(users[0].1.hash, None, "it stays without a password");
    assert_eq!(users[1].1.hash, Some(key("new")));
    assert_eq!(users[1].1.since, keyspace.record().auth.revision);
    assert_eq!(users[1].1.roles, ["y", "z"]);
    let roles = read_roles(reader, place).unwrap();
    assert_eq!(roles[0].0, "y");
    let expected = [
        permission(Right::Write, "a", "\0"),
        permission(Right::Read, "k", ""),
    ];
    assert_eq!(roles[0].1.permissions, expected);
    manage(&mut keyspace, [delete_role("y")]);
    let (reader, place) = (&keyspace.store, keyspace.place);
    let user = read_user(reader, place, "c").unwrap().unwrap();
    assert_eq!(user.roles, ["z"]);
    assert_eq!(read_role(reader, place, "y").unwrap(), None);
}

#[test]
fn only_root_changes_users_and_roles() {
    let mut keyspace = guarded();
    let write = || Write::Auth(add_role("more"));
    assert_eq!(keyspace.refusal(write()), Some(Refusal::UserEmpty));
    for (user, refusal) in [
        ("", Refusal::UserEmpty),
        ("nobody", Refusal::UserNotFound),
        ("ann", Refusal::PermissionDenied),
    ] {
        let write = by(&keyspace, user, write());
        assert_eq!(keyspace.refusal(write), Some(refusal));
    }
    let write = by(&keyspace, ROOT, write());
    keyspace.ok(write);
}

#[test]
fn a_write_needs_the_permission_for_all_that_it_reads_and_writes() {
    let mut keyspace = guarded();
    let with_prev = |name: &str| Put {
        prev_kv: true,
        ..put(name, "v")
    };
    let deleted = |start: &str, end: &str, prev_kv| {
        Write::DeleteRange(DeleteRange {
            span: span(start, end),
            prev_kv,
        })
    };
    let of = |ops: Vec<Op>| Write::Txn(txn(ops));
    let range = |start: &str, end: &str| Op::Range(Range::new(span(start, end)));
    let compared = |start: &str, end: &str| {
        let compare = Compare {
            span: span(start, end),
            target: Target::Version(0),
            relation: Relation::Equal,
        };
        Write::Txn(Txn {
            compare: vec![compare],
            ..txn(vec![Op::Put(put("b", "v"))])
        })
    };
    let (denied, ok) = (Some(Refusal::PermissionDenied), None);
    let table = [
        (Write::Put(put("b", "v")), ok),
        (Write::Put(put("c", "v")), ok),
        (Write::Put(put("a", "v")), denied),
        (Write::Put(put("d", "v")), denied),
        (Write::Put(with_prev("b")), ok),
        (Write::Put(with_prev("c")), denied),
        (deleted("b", "d", false), ok),
        (deleted("b", "d", true), denied),
        (deleted("b", "c", true), ok),
        (deleted("b", "d\0", false), denied),
        (deleted("b", "\0", false), denied),
        (of(vec![Op::Put(put("b", "v")), range("a", "c")]), ok),
        (of(vec![Op::Put(put("b", "v")), range("a", "c\0")]), denied),
        (of(vec![Op::DeleteRange(delete("a", ""))]), denied),
        (of(vec![nested(vec![Op::Put(put("b", "v"))])]), ok),
        (of(vec![nested(vec![Op::Put(put("a", "v"))])]), denied),
        (compared("a", "c"), ok),
        (compared("c", ""), denied),
    ];
    for (write, refusal) in table {
        let anonymous = keyspace.refusal(write.clone());
        assert_eq!(anonymous, Some(Refusal::UserEmpty), "{write:?}");
        let by_ann = by(&keyspace, "ann", write.clone());
        assert_eq!(keyspace.refusal(by_ann), refusal, "{write:?}");
        let by_root = by(&keyspace, ROOT, write);
        assert_eq!(keyspace.refusal(by_root), None);
    }
    // What isn't carried out is checked, too.
    let other = Txn {
        failure: vec![Op::Put(put("a", "v"))],
        ..Txn::default()
    };
    let other = by(&keyspace, "ann", Write::Txn(other));
    assert_eq!(keyspace.refusal(other), denied);
}

/// A right that was taken away before the write in the log doesn't count, and neither does one of a user who was added again.
#[test]
fn a_write_is_refused_once_anything_has_changed_since_its_caller_was_found_out() {
    let mut keyspace = guarded();
    let write = by(&keyspace, "ann", Write::Put(put("b", "v")));
    assert_eq!(keyspace.refusal(write.clone()), None);
    let other = by(&keyspace, ROOT, Write::Auth(add_role("other")));
    keyspace.ok(other);
    let old = Some(Refusal::AuthOldRevision);
    assert_eq!(keyspace.refusal(write), old);
    let gone = by(&keyspace, ROOT, Write::Auth(delete_user("ann")));
    keyspace.ok(gone);
    let write = by(&keyspace, "ann", Write::Put(put("b", "v")));
    assert_eq!(keyspace.refusal(write), Some(Refusal::PermissionDenied));
    // Without authentication nobody is asked.
    let disabled = by(&keyspace, ROOT, Write::Auth(AuthWrite::Disable));
    keyspace.ok(disabled);
    assert_eq!(keyspace.refusal(Write::Put(put("b", "v"))), None);
}

#[test]
fn a_lease_is_ended_or_shared_only_by_who_may_write_its_keys() {
    let mut keyspace = guarded();
    let lease = |id| Write::Grant {
        id: LeaseId(id),
        ttl: 10,
    };
    let attached = |name: &str, id| {
        Write::Put(Put {
            lease: LeaseId(id),
            ..put(name, "v")
        })
    };
    let revoked = |id| Write::Revoke { id: LeaseId(id) };
    assert_eq!(keyspace.refusal(lease(1)), Some(Refusal::UserEmpty));
    for id in [1, 2] {
        let granted = by(&keyspace, "ann", lease(id));
        keyspace.ok(granted);
    }
    assert_eq!(keyspace.refusal(revoked(1)), Some(Refusal::UserEmpty));
    let foreign = by(&keyspace, ROOT, attached("a", 1));
    keyspace.ok(foreign);
    let denied = Some(Refusal::PermissionDenied);
    for write in [revoked(1), attached("b", 1)] {
        let write = by(&keyspace, "ann", write);
        assert_eq!(keyspace.refusal(write), denied);
    }
    for write in [attached("b", 2), attached("c", 2), revoked(2)] {
        let write = by(&keyspace, "ann", write);
        assert_eq!(keyspace.refusal(write), None);
    }
    let (one, ann) = (LeaseId(1), Some("ann"));
    let refused = Err(Refusal::PermissionDenied);
    assert_eq!(access(&keyspace, ann, Access::Renew(one)), refused);
    assert_eq!(access(&keyspace, ann, Access::LeaseKeys(one)), Ok(()));
    assert_eq!(access(&keyspace, ann, Access::Leases), Ok(()));
    let foreign = by(&keyspace, ROOT, attached("d", 1));
    keyspace.ok(foreign);
    assert_eq!(access(&keyspace, ann, Access::LeaseKeys(one)), refused);
    assert_eq!(access(&keyspace, ann, Access::Leases), refused);
    for wanted in [Access::Renew(one), Access::LeaseKeys(one), Access::Leases] {
        assert_eq!(access(&keyspace, Some(ROOT), wanted), Ok(()));
        let anonymous = access(&keyspace, None, wanted);
        assert_eq!(anonymous, Err(Refusal::UserEmpty));
    }
    // A lease expires without a user.
    let expired = Write::Expire {
        id: one,
        grant: 1,
        term: keyspace.applying.term,
        config: keyspace.applying.config,
    };
    assert_eq!(keyspace.refusal(expired), None);
}

#[test]
fn reads_are_checked_in_the_state_that_they_read() {
    let keyspace = guarded();
    let read =
        |user, start: &str, end: &str| access(&keyspace, user, Access::Range(&span(start, end)));
    let denied = Err(Refusal::PermissionDenied);
    assert_eq!(read(Some("ann"), "a", "c"), Ok(()));
    assert_eq!(read(Some("ann"), "c", ""), denied);
    assert_eq!(read(Some("bob"), "a", ""), denied);
    assert_eq!(read(None, "a", ""), Err(Refusal::UserEmpty));
    assert_eq!(read(Some(ROOT), "\0", "\0"), Ok(()));
    let table = [
        (Access::Any, Ok(()), Ok(())),
        (Access::Root, denied, Ok(())),
        (Access::User("ann"), Ok(()), Ok(())),
        (Access::User(ROOT), denied, Ok(())),
        (Access::Role("some"), Ok(()), Ok(())),
        (Access::Role(ROOT), denied, Ok(())),
    ];
    for (wanted, of_ann, of_root) in table {
        assert_eq!(access(&keyspace, Some("ann"), wanted), of_ann, "{wanted:?}");
        assert_eq!(access(&keyspace, Some(ROOT), wanted), of_root);
        let anonymous = access(&keyspace, None, wanted);
        assert_eq!(anonymous, Err(Refusal::UserEmpty));
    }
    let stale = Principal {
        user: "ann".to_owned(),
        revision: 1,
    };
    let (reader, place) = (&keyspace.store, keyspace.place);
    let record = keyspace.record();
    let stale = check_access(
        reader,
        place,
        &record,
        Some(&stale),
        Access::Range(&span("a", "")),
    );
    assert_eq!(stale.unwrap(), Err(Refusal::AuthOldRevision));
}

/// As in etcd, a second permission on one first key may be there twice.
#[test]
fn a_permission_on_the_same_range_replaces_only_the_first_from_its_key_on() {
    let mut keyspace = keyspace();
    manage(
        &mut keyspace,
        [
            add_role("r"),
            grant("r", Right::Read, "a", "b"),
            grant("r", Right::Write, "a", "b"),
            grant("r", Right::Read, "a", "c"),
            grant("r", Right::Write, "a", "c"),
        ],
    );
    let permissions = |keyspace: &Keyspace| {
        let role = read_role(&keyspace.store, keyspace.place, "r").unwrap();
        role.unwrap().permissions
    };
    let expected = [
        permission(Right::Write, "a", "b"),
        permission(Right::Read, "a", "c"),
        permission(Right::Write, "a", "c"),
    ];
    assert_eq!(permissions(&keyspace), expected);
    manage(&mut keyspace, [revoke("r", "a", "c")]);
    assert_eq!(permissions(&keyspace), expected[..1]);
}

#[test]
fn users_roles_and_permissions_are_bounded_and_count_against_the_quota() {
    let mut keyspace = keyspace();
    let too_many = Some(Refusal::AuthTooLarge);
    manage(&mut keyspace, [add_user("u"), add_role("r")]);
    let long = "k".repeat(1_000);
    let mut granted = 0;
    let refusal = loop {
        let write = grant("r", Right::Read, &format!("{granted}{long}"), "");
        match keyspace.refusal(Write::Auth(write)) {
            None => granted += 1,
            refusal => break refusal,
        }
    };
    assert_eq!((refusal, granted), (too_many, 16));
    for number in 0..32 {
        let role = format!("r{number}");
        manage(&mut keyspace, [add_role(&role), grant_role("u", &role)]);
    }
    let refusal = keyspace.refusal(Write::Auth(grant_role("u", "r")));
    assert_eq!(refusal, too_many);
    for number in 32..999 {
        manage(&mut keyspace, [add_role(&format!("r{number}"))]);
    }
    let refusal = keyspace.refusal(Write::Auth(add_role("s")));
    assert_eq!(refusal, too_many);
    let name = "n".repeat(1_025);
    let refusal = keyspace.refusal(Write::Auth(add_user(&name)));
    assert_eq!(refusal, Some(Refusal::RequestTooLarge));
    let record = keyspace.record();
    assert!(record.bytes > 16_000 && record.bytes == record.auth.bytes);

    let options = KeyspaceOptions {
        quota_bytes: 140,
        ..KeyspaceOptions::default()
    };
    let mut small = Keyspace::new(options);
    manage(&mut small, [add_user("u"), add_user("v"), add_user("w")]);
    let refusal = small.refusal(Write::Auth(add_user("x")));
    assert_eq!(refusal, Some(Refusal::NoSpace));
    assert!(small.record().no_space());
    manage(&mut small, [delete_user("u"), add_user("x")]);
}

#[test]
fn a_deleted_keyspace_leaves_no_user_behind() {
    let mut keyspace = guarded();
    // Those who manage keyspaces are no users of them.
    keyspace.ok(Write::Delete);
    keyspace.clear();
    let left = read_users(&keyspace.store, keyspace.place).unwrap();
    assert!(left.is_empty());
    let left = read_roles(&keyspace.store, keyspace.place).unwrap();
    assert!(left.is_empty());
}

/// Tokens, hashes and secrets must not get into logs.
#[test]
fn nothing_secret_is_printed() {
    let keyspace = guarded();
    let user = read_user(&keyspace.store, keyspace.place, "ann").unwrap();
    let shown = format!(
        "{:?} {user:?} {:?} {:?}",
        keyspace.record(),
        add_user("x"),
        enable()
    );
    assert!(
        !shown.contains("hash\"") && !shown.contains("secret"),
        "{shown}"
    );
}
