//! The service of a keyspace. Clients dial its name, and the name says which keyspace they mean.
//!
//! Any node serves any keyspace, so the service leads to the ready nodes of all groups. In the cluster's namespace Kubernetes selects
//! them. A service can't select pods of another namespace; there it is an alias (`ExternalName`) of the cluster's service for clients. So in
//! both cases Kubernetes follows the pods by itself, and a missing operator changes nothing. The order of addresses would help no client:
//! kube-proxy takes any.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::build::{ETCD_PORT, etcd_port, names};
use crate::validate::Cluster;
use crate::validate::keyspace::Names;

/// Builds the service. `domain` is the domain of the Kubernetes cluster.
pub(super) fn build(names: &Names, cluster: &Cluster, domain: &str) -> Service {
    let spec = if names.namespace == cluster.namespace {
        selecting(cluster)
    } else {
        alias(cluster, domain)
    };
    Service {
        metadata: ObjectMeta {
            name: Some(names.name.clone()),
            namespace: Some(names.namespace.clone()),
            labels: Some(labels(names, cluster)),
            owner_references: Some(vec![names.owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        ..Service::default()
    }
}

/// Returns the address for clients.
pub(super) fn endpoint(names: &Names) -> String {
    format!("{}.{}.svc:{ETCD_PORT}", names.name, names.namespace)
}

fn selecting(cluster: &Cluster) -> ServiceSpec {
    ServiceSpec {
        type_: Some("ClusterIP".to_owned()),
        selector: Some(names::groups_selector(cluster)),
        ports: Some(vec![etcd_port()]),
        ..ServiceSpec::default()
    }
}

fn alias(cluster: &Cluster, domain: &str) -> ServiceSpec {
    let client = names::client(cluster);
    ServiceSpec {
        type_: Some("ExternalName".to_owned()),
        external_name: Some(format!("{client}.{}.svc.{domain}", cluster.namespace)),
        // Only for readers: the port of an alias is that of its target.
        ports: Some(vec![ServicePort {
            target_port: None,
            ..etcd_port()
        }]),
        ..ServiceSpec::default()
    }
}

/// Returns the labels. They differ from those of the cluster's own objects, which rounds of the cluster list.
fn labels(names: &Names, cluster: &Cluster) -> BTreeMap<String, String> {
    let of = |key: &str| format!("app.kubernetes.io/{key}");
    [
        (of("name"), "shardkv-keyspace".to_owned()),
        (of("instance"), names.name.clone()),
        (of("part-of"), "shardkv".to_owned()),
        (of("managed-by"), "shardkv-operator".to_owned()),
        ("shardkv.io/cluster".to_owned(), names::base(cluster)),
    ]
    .into()
}
