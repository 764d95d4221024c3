//! The way to the Kubernetes API: which cluster, and a count of all that is asked of it.

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

/// Why there is no way to a cluster. All of these need a person.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing says which cluster.
    #[error(
        "no Kubernetes cluster is configured: {0}. Set KUBECONFIG or --kubeconfig; in a pod, mount its service account's token"
    )]
    NoCluster(String),
    /// The file that was named can't be used.
    #[error(
        "{file}: {reason}. Check --kubeconfig and --context; `kubectl config get-contexts` lists what there is"
    )]
    Kubeconfig {
        /// Which file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The credentials can't be used.
    #[error("the credentials for {cluster} can't be used: {reason}")]
    Credentials {
        /// The cluster's address.
        cluster: String,
        /// What is wrong with them.
        reason: String,
    },
}

/// A client of the cluster that the options, or the surroundings, name. Says nothing to it yet. All requests are counted.
pub async fn connect(
    options: &ClusterOptions,
    metrics: &Arc<Metrics>,
) -> Result<Client, ConnectError> {
    let mut config = configuration(options).await?;
    config.connect_timeout = Some(Duration::from_secs(5));
    let cluster = config.cluster_url.to_string();
    let counted = Counted {
        metrics: Arc::clone(metrics),
    };
    let builder = ClientBuilder::try_from(config).map_err(|error| ConnectError::Credentials {
        cluster,
        reason: error.to_string(),
    })?;
    Ok(builder.with_layer(&counted).build())
}

async fn configuration(options: &ClusterOptions) -> Result<Config, ConnectError> {
    let ClusterOptions {
        kubeconfig,
        context,
    } = options;
    let choice = KubeConfigOptions {
        context: context.clone(),
        ..KubeConfigOptions::default()
    };
    let wrong = |reason: &dyn std::fmt::Display| ConnectError::Kubeconfig {
        file: kubeconfig.as_ref().map_or_else(
            || "the kubeconfig".to_owned(),
            |file| file.display().to_string(),
        ),
        reason: reason.to_string(),
    };
    match kubeconfig {
        Some(file) => {
            let file = Kubeconfig::read_from(file).map_err(|error| wrong(&error))?;
            let config = Config::from_custom_kubeconfig(file, &choice).await;
            config.map_err(|error| wrong(&error))
        }
        None if context.is_some() => {
            let config = Config::from_kubeconfig(&choice).await;
            config.map_err(|error| wrong(&error))
        }
        None => {
            let config = Config::infer().await;
            config.map_err(|error| ConnectError::NoCluster(error.to_string()))
        }
    }
}

/// Counts requests by what they ask for and what came of them.
struct Counted {
    metrics: Arc<Metrics>,
}

/// A service whose requests are counted.
#[derive(Clone)]
struct Counting<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S> Layer<S> for Counted {
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
        let (verb, resource) = asked(
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

/// What a request asks for, in the words of roles: a verb, and a resource with its subresource.
fn asked(method: &Method, path: &str, query: Option<&str>) -> (&'static str, String) {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    // `/api/v1/...` or `/apis/<group>/<version>/...`.
    let parts = match parts.as_slice() {
        ["apis", _, _, rest @ ..] | ["api", _, rest @ ..] => rest,
        other => other,
    };
    // A namespace is where a resource lies, or the resource itself.
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
            let named = asked(&method, path, Some(query));
            assert_eq!(named, (verb, resource.to_owned()), "{uri}");
        }
    }
}
