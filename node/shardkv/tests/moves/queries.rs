//! Queries of a shard that moves, and pulls.

use bytes::Bytes;
use shardkv::{
    Cursor, KvError, Next, PageRequest, Query, Response, SessionClock, ShardState, Step,
    read_count, read_page, user_key,
};
use types::{ConfigNum, LogTime, ShardId, ShardSet, shard_of};

use crate::common::{SHARDS_GENESIS, bytes, put};
use crate::stage::{Group, SHARD, SHARDS, key, not_ready, tagged, two, wrong_group};

#[test]
fn pulls_are_answered_by_what_the_group_knows() {
    let (mut a, _, mut configs) = two([1_000, 1_000]);
    assert_eq!(
        a.pull(2, Cursor::default(), 100),
        not_ready(),
        "not accepted"
    );
    assert_eq!(a.pull(1, Cursor::default(), 100), not_ready(), "served");
    a.follow(&configs.give(2));
    assert_eq!(a.pull(3, Cursor::default(), 100), not_ready());
    let Response::Chunk(empty) = a.pull(2, Cursor::default(), 100) else {
        panic!("it is fenced");
    };
    let (horizon, time) = (LogTime(0), LogTime(1_000));
    let clock = SessionClock { horizon, time };
    let ttl_ms = SHARDS_GENESIS.session_ttl_ms;
    assert_eq!(empty.next, Next::Done { clock, ttl_ms });
    let (shard, config) = (SHARD, ConfigNum(2));
    a.take(&Step::Delete { shard, config });
    assert_eq!(
        a.pull(2, Cursor::default(), 100),
        Response::Refused(KvError::ShardGone { shard, config })
    );
    let far = a.replica.query(&Query::Pull {
        shard: ShardId(SHARDS),
        config,
        after: Cursor::default(),
        max_bytes: 100,
    });
    let shard = ShardId(SHARDS);
    let shards = SHARDS;
    assert_eq!(far, Response::Refused(KvError::NoShard { shard, shards }));
}

#[test]
fn parts_are_about_as_large_as_asked() {
    let (mut a, mut b, mut configs) = two([1_000, 1_000]);
    for n in 0..60 {
        a.write(900 + u64::from(n), 1, put(&tagged(n), &"v".repeat(50)));
    }
    let second = configs.give(2);
    a.follow(&second);
    b.follow(&second);
    let sizes = |max_bytes| {
        let parts = a.parts(2, max_bytes).into_iter();
        parts.map(|part| part.content_bytes()).collect::<Vec<_>>()
    };
    let whole: u64 = sizes(u32::MAX).iter().sum();
    for max_bytes in [1, 60, 200, 1_000] {
        let sizes = sizes(max_bytes);
        assert_eq!(sizes.iter().sum::<u64>(), whole);
        assert!(sizes.iter().all(|size| *size <= u64::from(max_bytes) + 100));
        assert!(sizes.len() as u64 > whole / (u64::from(max_bytes) + 100));
    }
    assert_eq!(sizes(u32::MAX).len(), 1);
    b.install_from(&a, 2);
    let ShardState::Serving { config } = b.ownership().state(SHARD).unwrap().clone() else {
        panic!("it arrived");
    };
    assert_eq!(config, ConfigNum(2));
    assert_eq!(a.stored(), b.stored());
}

#[test]
fn a_shard_is_exported_counted_and_measured() {
    let (mut a, _, mut configs) = two([1_000, 1_000]);
    for n in 0..90 {
        a.write(900, 1, put(&tagged(n), "value"));
        a.replica.apply(1_000, None, put(&tagged(n), "value"));
    }
    let export = |a: &Group, start: &str, end: &str| {
        a.replica.query(&Query::Export {
            shard: SHARD,
            start: bytes(start),
            end: bytes(end),
        })
    };
    let all = |response: Response| {
        let Response::View(view) = response else {
            panic!("{response:?}");
        };
        let mut keys = Vec::new();
        while let Some(page) = view.next_page().unwrap() {
            keys.extend(page.into_iter().map(|(key, _)| user_key(key)));
        }
        keys
    };
    let whole = export(&a, "", "");
    // It stays as it was.
    a.replica.apply(1_000, None, put(&tagged(95), "later"));
    assert!(
        all(whole)
            .into_iter()
            .eq((0..90).map(|n| bytes(&tagged(n))))
    );
    let some = all(export(&a, &tagged(10), &tagged(20)));
    assert!(some.into_iter().eq((10..20).map(|n| bytes(&tagged(n)))));
    assert!(all(export(&a, &tagged(20), &tagged(10))).is_empty());

    let count = |a: &Group, after: &str| {
        let after = bytes(after);
        let alone = read_count(&a.replica.state, SHARD, &after).unwrap();
        let count = a.replica.query(&Query::Count {
            shard: SHARD,
            after,
        });
        assert_eq!(alone.unwrap_or_else(Response::Refused), count);
        count
    };
    let bytes_each = (tagged(0).len() + "value".len()) as u64;
    let expected = |keys: u64| Response::Count {
        keys,
        bytes: keys * bytes_each,
        next: None,
    };
    assert_eq!(count(&a, ""), expected(91));
    assert_eq!(count(&a, &tagged(89)), expected(1));
    let sizes = a.replica.query(&Query::Sizes {
        shards: [SHARD, ShardId(4)].into_iter().collect(),
    });
    let stored = 91 * (bytes_each + 4);
    assert_eq!(sizes, Response::Sizes(vec![stored, 0]));

    a.follow(&configs.give(2));
    assert_eq!(export(&a, "", ""), wrong_group(2));
    assert_eq!(count(&a, ""), expected(91), "fenced, but here");
    let (shard, config) = (SHARD, ConfigNum(2));
    a.take(&Step::Delete { shard, config });
    assert_eq!(count(&a, ""), wrong_group(2));
    let far = ShardSet::all(SHARDS + 1);
    assert!(matches!(
        a.replica.query(&Query::Sizes { shards: far }),
        Response::Refused(KvError::NoShard { .. })
    ));
}

#[test]
fn large_shards_are_counted_in_pages() {
    let (mut a, _, _) = two([1_000, 1_000]);
    let keys: Vec<String> = (0..5_000).map(|n| format!("{{{}}}{n:04}", key())).collect();
    for key in &keys {
        a.replica.apply(1_000, None, put(key, "v"));
    }
    let (mut found, mut bytes, mut pages) = (0, 0, 0);
    let mut after = Bytes::new();
    loop {
        let count = Query::Count {
            shard: SHARD,
            after,
        };
        let Response::Count {
            keys,
            bytes: more,
            next,
        } = a.replica.query(&count)
        else {
            panic!("it is there");
        };
        found += keys;
        bytes += more;
        pages += 1;
        match next {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!((found, pages), (5_000, 2));
    assert_eq!(bytes, 5_000 * (keys[0].len() as u64 + 1));
}

#[test]
fn scans_see_what_is_served_and_refuse_what_was_asked_and_is_not() {
    let (mut a, _, mut configs) = two([1_000, 1_000]);
    let keys: Vec<String> = (0..40).map(|n| format!("k{n:02}")).collect();
    for key in &keys {
        a.replica.apply(1_000, None, put(key, "v"));
    }
    let scan = |a: &Group, shards: Option<&[u32]>| {
        let request = PageRequest {
            start: Bytes::new(),
            end: Bytes::new(),
            limit: 1_000,
            max_bytes: u32::MAX,
            keys_only: false,
            shards: shards.map(|shards| shards.iter().copied().map(ShardId).collect()),
        };
        // A state alone gives the same page: the shards' records are in it.
        let page = read_page(&a.replica.state, &request).unwrap();
        let answer = a.replica.query(&Query::Page(request));
        assert_eq!(page.unwrap_or_else(Response::Refused), answer);
        answer
    };
    let expected = |shards: &[u32]| {
        let own = keys
            .iter()
            .filter(|key| shards.contains(&shard_of(key.as_bytes(), SHARDS).0));
        let pairs = own.map(|key| (bytes(key), bytes("v"))).collect();
        Response::Page { pairs, more: false }
    };
    assert_eq!(scan(&a, None), expected(&[0, 1, 2, 3, 4]));
    for some in [&[0][..], &[1, 3], &[4], &[0, 1, 2, 3, 4], &[]] {
        assert_eq!(scan(&a, Some(some)), expected(some), "{some:?}");
    }
    assert!(matches!(
        scan(&a, Some(&[4, 5])),
        Response::Refused(KvError::NoShard { .. })
    ));
    a.follow(&configs.give(2));
    assert_eq!(scan(&a, None), expected(&[0, 1, 2, 4]));
    assert_eq!(scan(&a, Some(&[1, 3])), wrong_group(2));
    assert_eq!(scan(&a, Some(&[0, 4])), expected(&[0, 4]));
}
