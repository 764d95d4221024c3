//! Network policy of the pods.
//!
//! Ingress: clients and peers at the client port, Prometheus and kubelets at the metrics port, from anywhere, because
//! applications run in any namespace. Egress: the cluster's own pods, and DNS servers. Nodes open no other connections.

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::meta::{matching, meta};
use super::names;
use super::ports::{CLIENT_PORT, METRICS_PORT};
use crate::validate::Cluster;

pub(super) fn build(cluster: &Cluster) -> NetworkPolicy {
    let own = names::selector(cluster);
    let to_own = NetworkPolicyEgressRule {
        ports: Some(vec![port("TCP", CLIENT_PORT)]),
        to: Some(vec![NetworkPolicyPeer {
            pod_selector: Some(matching(own.clone())),
            ..NetworkPolicyPeer::default()
        }]),
    };
    let to_names = NetworkPolicyEgressRule {
        ports: Some(vec![port("UDP", 53), port("TCP", 53)]),
        to: None,
    };
    NetworkPolicy {
        metadata: meta(cluster, names::node(cluster), own.clone()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(matching(own)),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                ports: Some(vec![port("TCP", CLIENT_PORT), port("TCP", METRICS_PORT)]),
                from: None,
            }]),
            egress: Some(vec![to_own, to_names]),
        }),
    }
}

fn port(protocol: &str, port: i32) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: Some(IntOrString::Int(port)),
        end_port: None,
    }
}
