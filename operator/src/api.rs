//! Connects to the Kubernetes API and counts all requests to it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::{Method, Request, Response};
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{Layer, Service};

use crate::metrics::Metrics;
use crate::options::ClusterOptions;

/// Reason why no client can be created. A retry doesn't help: the user must change the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Neither the options nor the environment name a cluster.
    #[error(
        "no Kubernetes cluster is configured: {0}. Set KUBECONFIG or --kubeconfig; in a pod, mount its service account's token"
    )]
    NoCluster(String),
    /// The kubeconfig can't be used.
    #[error(
        "{file}: {reason}. Check --kubeconfig and --context; `kubectl config get-contexts` lists the contexts"
    )]
    Kubeconfig {
        /// Path of the file.
        file: String,
        /// The problem.
        reason: String,
    },
    /// The credentials can't be used.
    #[error(
        "the credentials for {cluster} can't be used: {reason}. Check the user of the kubeconfig's context"
    )]
    Credentials {
        /// Address of the cluster.
        cluster: String,
        /// The problem.
        reason: String,
    },
}

/// Returns a client of the cluster that the options or the environment name. Sends no request yet. Counts all requests.
pub async fn connect(
    options: &ClusterOptions,
    metrics: &Arc<Metrics>,
) -> Result<Client, ConnectError> {
    let mut config = configuration(options).await?;
    config.connect_timeout = Some(Duration::from_secs(5));
    let cluster = config.cluster_url.to_string();
    let count = CountLayer {
        metrics: Arc::clone(metrics),
    };
    let builder = ClientBuilder::try_from(config).map_err(|error| ConnectError::Credentials {
        cluster,
        reason: error.to_string(),
    })?;
    Ok(builder.with_layer(&count).build())
}

async fn configuration(options: &ClusterOptions) -> Result<Config, ConnectError> {
    let ClusterOptions {
        kubeconfig,
        context,
        ..
    } = options;
    let choice = KubeConfigOptions {
        context: context.clone(),
        ..KubeConfigOptions::default()
    };
    let invalid = |reason: &dyn std::fmt::Display| ConnectError::Kubeconfig {
        file: kubeconfig.as_ref().map_or_else(
            || "the kubeconfig".to_owned(),
            |file| file.display().to_string(),
        ),
        reason: reason.to_string(),
    };
    match kubeconfig {
        Some(file) => {
            let file = Kubeconfig::read_from(file).map_err(|error| invalid(&error))?;
            let config = Config::from_custom_kubeconfig(file, &choice).await;
            config.map_err(|error| invalid(&error))
        }
        None if context.is_some() => {
            let config = Config::from_kubeconfig(&choice).await;
            config.map_err(|error| invalid(&error))
        }
        None => {
            let config = Config::infer().await;
            config.map_err(|error| ConnectError::NoCluster(error.to_string()))
        }
    }
}

/// A layer that counts requests by verb, resource and status.
struct CountLayer {
    metrics: Arc<Metrics>,
}

/// A service that counts its requests.
#[derive(Clone)]
struct Counting<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> Layer<S> for CountLayer {
    type Service = Counting<S>;

    fn layer(&self, inner: S) -> Counting<S> {
        Counting {
            inner,
            metrics: Arc::clone(&self.metrics),
        }
    }
}

impl<S, B> Service<Request<Body>> for Counting<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (verb, resource) = verb_and_resource(
            request.method(),
            request.uri().path(),
            request.uri().query(),
        );
        let metrics = Arc::clone(&self.metrics);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = answer.as_ref().map_or(0, |answer| answer.status().as_u16());
            metrics.request(verb, resource, code);
            answer
        })
    }
}

/// Returns a request's verb, and its resource with the subresource, as RBAC roles name them.
fn verb_and_resource(method: &Method, path: &str, query: Option<&str>) -> (&'static str, String) {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    // `/api/v1/...` or `/apis/<group>/<version>/...`.
    let parts = match parts.as_slice() {
        ["apis", _, _, rest @ ..] | ["api", _, rest @ ..] => rest,
        other => other,
    };
    // A namespace in the path contains the resource, or is the resource.
    let parts = match parts {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        other => other,
    };
    let (resource, name, sub) = match *parts {
        [] => ("", None, None),
        [resource] => (resource, None, None),
        [resource, name] => (resource, Some(name), None),
        [resource, name, sub, ..] => (resource, Some(name), Some(sub)),
    };
    let resource = match sub {
        Some(sub) => format!("{resource}/{sub}"),
        None => resource.to_owned(),
    };
    let watches = query.is_some_and(|query| query.split('&').any(|it| it == "watch=true"));
    let verb = match (method.as_str(), name) {
        ("GET", _) if watches => "watch",
        ("GET", Some(_)) => "get",
        ("GET", None) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", Some(_)) => "delete",
        ("DELETE", None) => "deletecollection",
        _ => "other",
    };
    (verb, resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_named_as_in_roles() {
        for (method, uri, verb, resource) in [
            (
                Method::GET,
                "/api/v1/namespaces/a/pods?limit=5",
                "list",
                "pods",
            ),
            (Method::GET, "/api/v1/pods?watch=true", "watch", "pods"),
            (
                Method::GET,
                "/apis/apps/v1/namespaces/a/statefulsets/x?",
                "get",
                "statefulsets",
            ),
            (Method::GET, "/api/v1/namespaces/a", "get", "namespaces"),
            (
                Method::PATCH,
                "/apis/shardkv.io/v1alpha1/namespaces/a/shardkvclusters/x/status",
                "patch",
                "shardkvclusters/status",
            ),
            (
                Method::GET,
                "/apis/shardkv.io/v1alpha1/shardkvclusters?limit=1",
                "list",
                "shardkvclusters",
            ),
            (
                Method::POST,
                "/apis/events.k8s.io/v1/namespaces/a/events",
                "create",
                "events",
            ),
            (
                Method::PUT,
                "/apis/coordination.k8s.io/v1/namespaces/a/leases/l",
                "update",
                "leases",
            ),
            (
                Method::DELETE,
                "/api/v1/namespaces/a/services/s",
                "delete",
                "services",
            ),
            (Method::GET, "/version", "list", "version"),
        ] {
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            let named = verb_and_resource(&method, path, Some(query));
            assert_eq!(named, (verb, resource.to_owned()), "{uri}");
        }
    }
}
