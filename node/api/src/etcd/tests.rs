//! Holds the services and messages of `proto/etcd` against etcd's, which `schema.txt` lists, one method, field or value a line.
//! The list was made from the descriptors of etcd 3.7.3, without the messages that no service uses.

use std::fmt::Write as _;

use bytes::Bytes;
use prost::Message;

use super::etcdserverpb::range_request::SortOrder;
use super::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader, WatchResponse};
use super::mvccpb::{Event, KeyValue, event::EventType};

// The parts of a file descriptor that the list names.

#[derive(Clone, PartialEq, Message)]
struct Files {
    #[prost(message, repeated, tag = "1")]
    files: Vec<File>,
}

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "4")]
    messages: Vec<Record>,
    #[prost(message, repeated, tag = "5")]
    enums: Vec<Enum>,
    #[prost(message, repeated, tag = "6")]
    services: Vec<Service>,
}

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    fields: Vec<Field>,
    #[prost(message, repeated, tag = "4")]
    enums: Vec<Enum>,
    #[prost(message, repeated, tag = "8")]
    oneofs: Vec<Named>,
}

#[derive(Clone, PartialEq, Message)]
struct Field {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "3")]
    number: i32,
    #[prost(int32, tag = "4")]
    label: i32,
    #[prost(int32, tag = "5")]
    kind: i32,
    #[prost(string, tag = "6")]
    type_name: String,
    #[prost(int32, optional, tag = "9")]
    oneof: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Enum {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    values: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "2")]
    number: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    methods: Vec<Method>,
}

#[derive(Clone, PartialEq, Message)]
struct Method {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    input: String,
    #[prost(string, tag = "3")]
    output: String,
    #[prost(bool, tag = "5")]
    client_streams: bool,
    #[prost(bool, tag = "6")]
    server_streams: bool,
}

const REPEATED: i32 = 3;

impl Field {
    fn describe(&self, record: &Record) -> String {
        let mut text = String::new();
        if let Some(oneof) = self.oneof {
            let oneof = &record.oneofs[usize::try_from(oneof).unwrap()];
            write!(text, "oneof {} ", oneof.name).unwrap();
        }
        if self.label == REPEATED {
            text.push_str("repeated ");
        }
        text.push_str(match self.kind {
            3 => "int64",
            4 => "uint64",
            8 => "bool",
            9 => "string",
            11 | 14 => self.type_name.trim_start_matches('.'),
            12 => "bytes",
            13 => "uint32",
            other => panic!("no field of etcd has the type {other}"),
        });
        text
    }
}

fn list_enum(lines: &mut Vec<String>, scope: &str, kind: &Enum) {
    for value in &kind.values {
        lines.push(format!(
            "{scope}.{}.{} = {}",
            kind.name, value.name, value.number
        ));
    }
}

fn list_message(lines: &mut Vec<String>, package: &str, record: &Record) {
    let name = format!("{package}.{}", record.name);
    for field in &record.fields {
        let described = field.describe(record);
        lines.push(format!(
            "{name}.{} = {} {described}",
            field.name, field.number
        ));
    }
    for kind in &record.enums {
        list_enum(lines, &name, kind);
    }
    lines.push(name);
}

fn list_service(lines: &mut Vec<String>, package: &str, service: &Service) {
    let stream = |yes| if yes { "stream " } else { "" };
    for method in &service.methods {
        lines.push(format!(
            "{package}.{}.{} ({}{}) {}{}",
            service.name,
            method.name,
            stream(method.client_streams),
            method.input.trim_start_matches('.'),
            stream(method.server_streams),
            method.output.trim_start_matches('.'),
        ));
    }
}

#[test]
fn services_messages_and_numbers_are_those_of_etcd() {
    let set = Files::decode(super::DESCRIPTORS).unwrap();
    let mut lines = Vec::new();
    for file in &set.files {
        for record in &file.messages {
            list_message(&mut lines, &file.package, record);
        }
        for kind in &file.enums {
            list_enum(&mut lines, &file.package, kind);
        }
        for service in &file.services {
            list_service(&mut lines, &file.package, service);
        }
    }
    let mut expected: Vec<_> = include_str!("schema.txt").lines().collect();
    lines.sort_unstable();
    expected.sort_unstable();
    assert_eq!(lines, expected);
}

#[test]
fn messages_have_the_bytes_that_etcds_numbers_give() {
    let request = RangeRequest {
        key: Bytes::from_static(b"a"),
        range_end: Bytes::from_static(b"\0"),
        limit: 3,
        sort_order: SortOrder::Descend.into(),
        max_create_revision: 300,
        ..RangeRequest::default()
    };
    let golden = b"\x0a\x01a\x12\x01\0\x18\x03\x28\x02\x68\xac\x02";
    assert_eq!(request.encode_to_vec(), golden);

    let pair = KeyValue {
        key: Bytes::from_static(b"k"),
        create_revision: 2,
        mod_revision: 3,
        version: 4,
        value: Bytes::from_static(b"v"),
        lease: 5,
    };
    let golden = b"\x0a\x01k\x10\x02\x18\x03\x20\x04\x2a\x01v\x30\x05";
    assert_eq!(pair.encode_to_vec(), golden);

    let answer = RangeResponse {
        header: Some(ResponseHeader {
            cluster_id: 1,
            member_id: 2,
            revision: 3,
            raft_term: 4,
        }),
        kvs: Vec::new(),
        more: true,
        count: 9,
    };
    let golden = b"\x0a\x08\x08\x01\x10\x02\x18\x03\x20\x04\x18\x01\x20\x09";
    assert_eq!(answer.encode_to_vec(), golden);

    let events = WatchResponse {
        watch_id: -1,
        events: vec![Event {
            r#type: EventType::Delete.into(),
            kv: None,
            prev_kv: None,
        }],
        ..WatchResponse::default()
    };
    let golden = b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x5a\x02\x08\x01";
    assert_eq!(events.encode_to_vec(), golden);
}
