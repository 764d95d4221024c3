//! The health of the keyspace that a request names, as etcd tells it over HTTP.
//!
//! A check asks the keyspace for its alarms, which is a linearizable read, or for its status, which any replica answers from its
//! own state. So a check fails while the keyspace doesn't exist or its group has no leader.

use api::etcd::etcdserverpb::{AlarmRequest, AlarmResponse, AlarmType};
use bytes::Bytes;
use keyspace::Refusal;
use prost::Message as _;
use serde_json::json;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::header::CONTENT_TYPE;
use tonic::codegen::http::{HeaderValue, Request, Response, StatusCode, request};

use super::Grpc;
use super::answer::{call, json_response};
use super::routes::{Check, Method};
use crate::services::etcd::maintenance::{API_VERSION, STORAGE_VERSION};

/// The reason of a keyspace whose quota is used up.
const FULL: &str = "ALARM NOSPACE";

/// The names of the two reads in verbose answers.
const LINEARIZABLE: &str = "linearizable_read";
const SERIALIZABLE: &str = "serializable_read";

/// Returns the answer to `/version`.
pub(super) fn version() -> Response<Body> {
    let text = json!({
        "etcdserver": API_VERSION,
        "etcdcluster": STORAGE_VERSION,
        "storage": STORAGE_VERSION,
    });
    json_response(StatusCode::OK, text.to_string().into_bytes())
}

/// Answers a health check.
pub(super) async fn check<S: Grpc>(
    inner: S,
    check: Check,
    request: Request<Body>,
) -> Result<Response<Body>, S::Error> {
    let (head, _) = request.into_parts();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let has = |wanted: &str| query.split('&').any(|it| it == wanted);
    let local = check == Check::Live || (check == Check::Health && has("serializable=true"));
    let found = if local {
        read_status(inner, &head).await?
    } else {
        read_alarms(inner, &head).await?
    };
    Ok(match check {
        Check::Health => health(found),
        // A keyspace without space can still be read, and deleted from.
        Check::Ready => probe(LINEARIZABLE, found.filter(|it| it != FULL), has("verbose")),
        Check::Live => probe(SERIALIZABLE, found, has("verbose")),
    })
}

/// Returns the reason for which the keyspace isn't healthy.
async fn read_alarms<S: Grpc>(inner: S, head: &request::Parts) -> Result<Option<String>, S::Error> {
    let Some(method) = Method::named("etcdserverpb.Maintenance", "Alarm") else {
        return Ok(Some("no such check".to_owned()));
    };
    let request = AlarmRequest::default().encode_to_vec();
    let answer = call(inner, &method, head, &request).await?;
    Ok(match answer {
        Err(status) => wrong(&status),
        Ok(answer) => alarm(answer),
    })
}

fn alarm(answer: Bytes) -> Option<String> {
    let answer = match AlarmResponse::decode(answer) {
        Ok(answer) => answer,
        Err(error) => return Some(error.to_string()),
    };
    let full = AlarmType::Nospace as i32;
    let is_full = answer.alarms.iter().any(|alarm| alarm.alarm == full);
    is_full.then(|| FULL.to_owned())
}

async fn read_status<S: Grpc>(inner: S, head: &request::Parts) -> Result<Option<String>, S::Error> {
    let Some(method) = Method::named("etcdserverpb.Maintenance", "Status") else {
        return Ok(Some("no such check".to_owned()));
    };
    let answer = call(inner, &method, head, &[]).await?;
    Ok(answer.err().and_then(|status: Status| wrong(&status)))
}

/// Returns the reason that a refusal gives. A keyspace that asks for users has answered: probes have no token.
fn wrong(status: &Status) -> Option<String> {
    let anonymous = status.message() == Refusal::UserEmpty.to_string();
    (!anonymous).then(|| status.message().to_owned())
}

fn health(wrong: Option<String>) -> Response<Body> {
    let status = match wrong {
        None => StatusCode::OK,
        Some(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let health = if wrong.is_none() { "true" } else { "false" };
    let text = json!({"health": health, "reason": wrong.unwrap_or_default()});
    json_response(status, text.to_string().into_bytes())
}

fn probe(name: &str, wrong: Option<String>, verbose: bool) -> Response<Body> {
    let (status, text) = match wrong {
        None if verbose => (StatusCode::OK, format!("[+]{name} ok\nok\n")),
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => {
            let text = format!("[-]{name} failed: {why}\n");
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    };
    let mut response = Response::new(Body::new(text));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
