//! Services: a headless service for each part, which gives the pods DNS names, and a service for clients.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::meta::meta;
use super::names;
use super::ports::{CLIENT_PORT, ETCD_PORT, METRICS_PORT};
use crate::parts::Component;
use crate::validate::Cluster;

/// Builds the headless service of a part. It also names pods that aren't ready: nodes must find each other to elect the first
/// leader, and become ready only after that.
pub(super) fn headless(cluster: &Cluster, part: Component) -> Service {
    let labels = names::part_selector(cluster, part);
    Service {
        metadata: meta(cluster, names::part(cluster, part), labels.clone()),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(labels),
            ports: Some(vec![
                port("grpc", CLIENT_PORT),
                port("metrics", METRICS_PORT),
            ]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Builds the service for applications. It selects the ready nodes of all groups: each serves any key, and forwards requests
/// for keys of other groups. The services of keyspaces in other namespaces are aliases of it, so it has etcd's port, too.
pub(super) fn client(cluster: &Cluster) -> Service {
    Service {
        metadata: meta(cluster, names::client(cluster), names::selector(cluster)),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: Some(names::groups_selector(cluster)),
            ports: Some(vec![port("grpc", CLIENT_PORT), etcd_port()]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Returns the port of the API of etcd. It leads to the nodes' client port.
pub(crate) fn etcd_port() -> ServicePort {
    ServicePort {
        name: Some("etcd".to_owned()),
        port: ETCD_PORT,
        ..port("grpc", CLIENT_PORT)
    }
}

fn port(name: &str, number: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: number,
        // The name of the port in the pods.
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        app_protocol: (name == "grpc").then(|| "kubernetes.io/h2c".to_owned()),
        ..ServicePort::default()
    }
}
