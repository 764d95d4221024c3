//! Raw HTTP requests to the API server, with access to warnings, tables and errors.

use http_body_util::BodyExt;
use hyper::Request;
use kube::Client;
use kube::client::Body;
use serde_json::Value;

/// A response.
#[derive(Debug)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    /// Warnings, which `kubectl` prints.
    pub(crate) warnings: Vec<String>,
    /// The object, or the error.
    pub(crate) body: Value,
}

impl Answer {
    /// Returns the message of an error.
    pub(crate) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    /// Returns the object. Fails the test after an error or a warning.
    #[track_caller]
    pub(crate) fn good(self) -> Value {
        assert!((200..300).contains(&self.status), "{self:?}");
        assert!(self.warnings.is_empty(), "{:?}", self.warnings);
        self.body
    }

    /// Returns the message of an error. Fails the test after a success.
    #[track_caller]
    pub(crate) fn refused(&self) -> &str {
        assert!((400..600).contains(&self.status), "{self:?}");
        self.message()
    }
}

/// Sends a request. The content is JSON for every kind of patch.
pub(crate) async fn send(
    client: &Client,
    method: &str,
    path: &str,
    kind: &str,
    accept: &str,
    content: &Value,
) -> Answer {
    let bytes = match content {
        Value::Null => Vec::new(),
        content => serde_json::to_vec(content).unwrap(),
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .header("accept", accept)
        .body(Body::from(bytes))
        .unwrap();
    let response = client.send(request).await.unwrap();
    let status = response.status().as_u16();
    let warnings = response.headers().get_all("warning").iter();
    let warnings = warnings.map(|it| it.to_str().unwrap().to_owned()).collect();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
    Answer {
        status,
        warnings,
        body: serde_json::from_slice(&bytes).unwrap_or_else(|_| text()),
    }
}

const JSON: &str = "application/json";

/// Reads an object or a list.
pub(crate) async fn get(client: &Client, path: &str) -> Answer {
    send(client, "GET", path, JSON, JSON, &Value::Null).await
}

/// Reads the table that `kubectl get` prints.
pub(crate) async fn table(client: &Client, path: &str) -> Answer {
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
    send(client, "GET", path, JSON, accept, &Value::Null).await
}

/// Creates an object.
pub(crate) async fn post(client: &Client, path: &str, content: &Value) -> Answer {
    send(client, "POST", path, JSON, JSON, content).await
}

/// Replaces an object.
pub(crate) async fn put(client: &Client, path: &str, content: &Value) -> Answer {
    send(client, "PUT", path, JSON, JSON, content).await
}

/// Changes the fields in `content`, by a merge patch.
pub(crate) async fn merge(client: &Client, path: &str, content: &Value) -> Answer {
    let kind = "application/merge-patch+json";
    send(client, "PATCH", path, kind, JSON, content).await
}

/// Applies an object on the server side; the path names the field manager.
pub(crate) async fn apply(client: &Client, path: &str, content: &Value) -> Answer {
    let kind = "application/apply-patch+yaml";
    send(client, "PATCH", path, kind, JSON, content).await
}

/// Deletes an object.
pub(crate) async fn delete(client: &Client, path: &str, options: &Value) -> Answer {
    send(client, "DELETE", path, JSON, JSON, options).await
}
