//! Converts the messages of watch streams.

use api::etcd::etcdserverpb as pb;
use api::etcd::mvccpb;
use bytes::Bytes;
use changes::{AUTO_ID, Create, NO_ID, Refused};
use keyspace::{Event, KeyValue, Span};
use pb::watch_create_request::FilterType;
use prost::Message as _;

use super::answers::pair;

/// The size of a message from which on it is split, if its watch allows that: the largest request of etcd, and its overhead.
const FRAGMENT_BYTES: usize = (3 << 19) + (512 << 10);

/// Converts the request of a watch.
pub(super) fn create(wire: pb::WatchCreateRequest) -> Create {
    // A zero byte is the smallest key.
    let key = match wire.key.as_ref() {
        [] => Bytes::from_static(&[0]),
        _ => wire.key,
    };
    let filters = |filter: FilterType| wire.filters.contains(&i32::from(filter));
    Create {
        id: if wire.watch_id == 0 {
            AUTO_ID
        } else {
            wire.watch_id
        },
        start: wire.start_revision,
        no_put: filters(FilterType::Noput),
        no_delete: filters(FilterType::Nodelete),
        prev_kv: wire.prev_kv,
        fragment: wire.fragment,
        progress_notify: wire.progress_notify,
        span: Span::new(key, wire.range_end),
    }
}

/// Returns the answer that a watch was created.
pub(super) fn created(header: pb::ResponseHeader, watch_id: i64) -> pb::WatchResponse {
    pb::WatchResponse {
        header: Some(header),
        watch_id,
        created: true,
        ..pb::WatchResponse::default()
    }
}

/// Returns the answer that a watch was not created.
pub(super) fn refused(header: pb::ResponseHeader, why: Refused) -> pb::WatchResponse {
    pb::WatchResponse {
        canceled: true,
        cancel_reason: why.text(),
        ..created(header, NO_ID)
    }
}

/// Returns the answer that a watch ends.
pub(super) fn canceled(header: pb::ResponseHeader, watch_id: i64) -> pb::WatchResponse {
    pb::WatchResponse {
        header: Some(header),
        watch_id,
        canceled: true,
        ..pb::WatchResponse::default()
    }
}

/// Returns the answer of events with the pairs before them, or of none as a notice of progress.
pub(super) fn events(
    header: pb::ResponseHeader,
    watch_id: i64,
    events: Vec<Event>,
    previous: Vec<Option<KeyValue>>,
) -> pb::WatchResponse {
    let mut previous = previous.into_iter();
    let events = events.into_iter().map(|event| mvccpb::Event {
        r#type: i32::from(event.deleted),
        kv: Some(pair(event.kv)),
        prev_kv: previous.next().flatten().map(pair),
    });
    pb::WatchResponse {
        header: Some(header),
        watch_id,
        events: events.collect(),
        ..pb::WatchResponse::default()
    }
}

/// Splits a large answer into fragments, as etcd does. All but the last say that there are more.
pub(super) fn fragments(answer: pb::WatchResponse) -> Vec<pb::WatchResponse> {
    if answer.encoded_len() < FRAGMENT_BYTES || answer.events.len() < 2 {
        return vec![answer];
    }
    let head = pb::WatchResponse {
        header: answer.header,
        watch_id: answer.watch_id,
        fragment: true,
        ..pb::WatchResponse::default()
    };
    let base = head.encoded_len();
    let mut fragments = Vec::new();
    let (mut part, mut bytes) = (head.clone(), base);
    for event in answer.events {
        let length = event.encoded_len();
        let more = 1 + prost::length_delimiter_len(length) + length;
        if !part.events.is_empty() && bytes + more >= FRAGMENT_BYTES {
            fragments.push(std::mem::replace(&mut part, head.clone()));
            bytes = base;
        }
        part.events.push(event);
        bytes += more;
    }
    part.fragment = false;
    fragments.push(part);
    fragments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_without_a_key_begins_at_the_smallest() {
        let span = |key: &'static [u8], end: &'static [u8]| {
            let wire = pb::WatchCreateRequest {
                key: Bytes::from_static(key),
                range_end: Bytes::from_static(end),
                ..pb::WatchCreateRequest::default()
            };
            create(wire).span
        };
        let zero = Bytes::from_static(&[0]);
        assert_eq!(span(b"", b""), Span::Key(zero.clone()));
        assert_eq!(span(b"", b"\0"), Span::From(zero));
        assert_eq!(span(b"a", b"b"), Span::Range("a".into(), "b".into()));
    }

    #[test]
    fn filters_are_told_apart() {
        let wire = |filters| pb::WatchCreateRequest {
            filters,
            ..pb::WatchCreateRequest::default()
        };
        for (filters, expected) in [
            (vec![], (false, false)),
            (vec![0], (true, false)),
            (vec![1], (false, true)),
            (vec![1, 0, 7], (true, true)),
        ] {
            let watch = create(wire(filters));
            assert_eq!((watch.no_put, watch.no_delete), expected);
        }
    }

    #[test]
    fn a_large_answer_is_split_between_events_and_only_the_last_part_is_the_end() {
        let event = |size: usize| Event {
            kv: KeyValue {
                key: "k".into(),
                value: vec![7; size].into(),
                ..KeyValue::default()
            },
            deleted: false,
            position: 0,
        };
        let header = pb::ResponseHeader::default();
        let split = |sizes: &[usize]| {
            let all = sizes.iter().map(|size| event(*size)).collect();
            let parts = fragments(events(header, 3, all, Vec::new()));
            let more: Vec<_> = parts.iter().map(|part| part.fragment).collect();
            let counts: Vec<_> = parts.iter().map(|part| part.events.len()).collect();
            assert!(parts.iter().all(|part| part.watch_id == 3));
            assert!(
                parts
                    .iter()
                    .all(|part| part.events.len() == 1 || part.encoded_len() < FRAGMENT_BYTES)
            );
            (counts, more)
        };
        assert_eq!(split(&[10, 10]), (vec![2], vec![false]));
        assert_eq!(split(&[3 << 20]), (vec![1], vec![false]));
        assert_eq!(
            split(&[1 << 20, 1 << 20, 1 << 19, 3 << 20]),
            (vec![1, 2, 1], vec![true, true, false])
        );
    }
}
