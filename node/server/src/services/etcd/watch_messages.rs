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
        cancel_reason: why.text().to_owned(),
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
