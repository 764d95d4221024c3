//! Each method of the descriptors has a rule in the crate `access`, and each rule has a method.

use std::collections::BTreeSet;

use prost::Message;
use shardkv_api as api;

// The parts of a file descriptor that name a method.

#[derive(Clone, PartialEq, Message)]
struct Files {
    #[prost(message, repeated, tag = "1")]
    files: Vec<File>,
}

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "6")]
    services: Vec<Service>,
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
}

/// The methods and paths of other packages.
const OTHERS: [&str; 8] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/health",
    "/livez",
    "/readyz",
    "/version",
];

fn methods(files: Files) -> BTreeSet<String> {
    let mut methods = BTreeSet::new();
    for File { package, services } in files.files {
        for service in services {
            let path = |method: &Method| format!("/{package}.{}/{}", service.name, method.name);
            methods.extend(service.methods.iter().map(path));
        }
    }
    methods
}

#[test]
fn each_method_has_a_rule_and_each_rule_a_method() {
    let mut methods = methods(Files::decode(api::DESCRIPTORS).unwrap());
    methods.append(&mut self::methods(
        Files::decode(api::etcd::DESCRIPTORS).unwrap(),
    ));
    assert!(methods.contains("/shardkv.v1.Kv/Get"), "{methods:?}");
    assert!(methods.contains("/etcdserverpb.KV/Range"), "{methods:?}");
    for path in &methods {
        let rule = access::need(path);
        assert!(rule.is_some(), "{path} needs a rule in access/src/need.rs");
    }
    methods.extend(OTHERS.map(str::to_owned));
    assert_eq!(access::paths().collect::<BTreeSet<String>>(), methods);
}
