//! The gateway before services that the tests make up.

use api::etcd::etcdserverpb as pb;
use api::etcd::mvccpb::KeyValue;
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use prost::Message;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response};
use tower::{Layer as _, ServiceExt as _, service_fn};

use super::frames::{Frames, framed};
use super::{GatewayLayer, Grpc};
use crate::page_budget::PageBudget;
use crate::services::unfetched::{self, Unfetched};

/// Returns a response of gRPC with these messages and this end.
fn grpc(messages: &[Bytes], end: &Status) -> Response<Body> {
    let frames: Vec<_> = messages.iter().map(|it| framed(it)).collect();
    let mut trailers = HeaderMap::new();
    end.add_header(&mut trailers).unwrap();
    let data = frames.into_iter().map(Frame::data);
    let all = data.chain([Frame::trailers(trailers)]);
    let all: Vec<_> = all.map(Ok::<_, Infallible>).collect();
    Response::new(Body::new(StreamBody::new(futures::stream::iter(all))))
}

fn encoded(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

async fn messages(request: Request<Body>) -> Vec<Bytes> {
    let mut frames = Frames::new(Response::new(request.into_body()));
    let mut all = Vec::new();
    while let Some(message) = frames.next().await {
        all.push(message);
    }
    all
}

/// Services that know the key "k" only. A watch tells the keys of all its requests.
async fn services(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let name = request.headers().get("shardkv-keyspace").cloned();
    let all = messages(request).await;
    let first = all.first().cloned().unwrap_or_default();
    Ok(match path.as_str() {
        "/etcdserverpb.KV/Range" => {
            let asked = pb::RangeRequest::decode(first).unwrap();
            if asked.key.is_empty() {
                return Ok(Status::invalid_argument("etcdserver: key is not provided").into_http());
            }
            let kv = KeyValue {
                key: asked.key,
                value: Bytes::from_static(b"v"),
                mod_revision: 2,
                ..KeyValue::default()
            };
            let answer = pb::RangeResponse {
                kvs: vec![kv],
                count: 1,
                ..pb::RangeResponse::default()
            };
            grpc(&[encoded(&answer)], &Status::ok(""))
        }
        "/etcdserverpb.Watch/Watch" => {
            let answers: Vec<_> = (0i64..)
                .zip(&all)
                .map(|(watch_id, _)| {
                    encoded(&pb::WatchResponse {
                        watch_id,
                        created: true,
                        ..pb::WatchResponse::default()
                    })
                })
                .collect();
            grpc(&answers, &Status::unavailable("moved"))
        }
        "/etcdserverpb.Maintenance/Alarm" => match name.as_ref().map(HeaderValue::as_bytes) {
            Some(b"full") => {
                let alarm = pb::AlarmMember {
                    member_id: 1,
                    alarm: pb::AlarmType::Nospace.into(),
                };
                let answer = pb::AlarmResponse {
                    alarms: vec![alarm],
                    ..pb::AlarmResponse::default()
                };
                grpc(&[encoded(&answer)], &Status::ok(""))
            }
            Some(b"away") => Status::unavailable("no leader").into_http(),
            _ => grpc(&[Bytes::new()], &Status::ok("")),
        },
        "/etcdserverpb.Maintenance/Status" => grpc(&[Bytes::new()], &Status::ok("")),
        "/plain" => Response::new(Body::new("passed".to_owned())),
        _ => Status::unimplemented("nope").into_http(),
    })
}

fn gateway() -> impl Grpc<Error = Infallible> {
    GatewayLayer.layer(service_fn(services))
}

async fn ask(method: &str, path: &str, keyspace: &str, body: Body) -> (u16, String) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("shardkv-keyspace", keyspace)
        .body(body)
        .unwrap();
    let response = gateway().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(text.to_vec()).unwrap())
}

async fn post(path: &str, text: &'static str) -> (u16, String) {
    ask("POST", path, "a", Body::new(Full::new(Bytes::from(text)))).await
}

async fn get(path: &str, keyspace: &str) -> (u16, String) {
    ask("GET", path, keyspace, Body::default()).await
}

#[tokio::test]
async fn one_answer_is_json_or_an_error_with_its_code() {
    for (path, text, status, expected) in [
        (
            "/v3/kv/range",
            r#"{"key":"aw=="}"#,
            200,
            r#"{"kvs":[{"key":"aw==","mod_revision":"2","value":"dg=="}],"count":"1"}"#,
        ),
        (
            "/v3/kv/range",
            "",
            400,
            r#"{"code":3,"message":"etcdserver: key is not provided"}"#,
        ),
        (
            "/v3/kv/range",
            "{",
            400,
            r#"{"code":3,"message":"unexpected EOF"}"#,
        ),
        ("/v3/kv/put", "{}", 501, r#"{"code":12,"message":"nope"}"#),
        (
            "/v3/kv/none",
            "{}",
            404,
            r#"{"code":5,"message":"Not Found"}"#,
        ),
    ] {
        assert_eq!(
            post(path, text).await,
            (status, expected.to_owned()),
            "{path} {text}"
        );
    }
    let (status, text) = post("/v3/kv/range", r#"{"key":7}"#).await;
    assert!(status == 400 && text.contains("bad JSON"), "{text}");
    let large = Body::new(Full::new(Bytes::from(vec![b' '; (4 << 20) + 1])));
    let (status, text) = ask("POST", "/v3/kv/range", "a", large).await;
    assert!(status == 429 && text.contains("at most"), "{text}");
    assert_eq!(get("/plain", "a").await, (200, "passed".to_owned()));
}

#[tokio::test]
async fn a_stream_is_a_line_for_each_answer_and_one_for_its_error() {
    let error = r#"{"error":{"code":14,"message":"moved"}}"#;
    let created = r#"{"result":{"created":true}}"#;
    let second = r#"{"result":{"watch_id":"1","created":true}}"#;
    let (status, text) = post(
        "/v3/watch",
        r#"{"create_request":{}} {"create_request":{}}"#,
    )
    .await;
    assert_eq!(
        (status, text),
        (200, format!("{created}\n{second}\n{error}\n"))
    );
    let (status, text) = post("/v3/lease/keepalive", "{}").await;
    let refused = r#"{"error":{"code":12,"message":"nope"}}"#;
    assert_eq!((status, text), (501, refused.to_owned()));
}

/// What the answers of a stream have taken of a budget is given back as their lines go, not when the stream ends.
#[tokio::test]
async fn a_stream_gives_its_shares_back_as_its_lines_are_taken() {
    let budget = PageBudget::new(1 << 20, Duration::from_secs(1));
    let unfetched = Arc::new(Unfetched::default());
    unfetched.keep(budget.take(1 << 20).await.ok());
    // The stream that makes the answers holds it, too.
    let held = Arc::clone(&unfetched);
    let service = service_fn(move |_: Request<Body>| {
        let held = Arc::clone(&held);
        async move {
            let mut response = grpc(&[Bytes::new()], &Status::ok(""));
            response.extensions_mut().insert(held);
            Ok::<_, Infallible>(response)
        }
    });
    let request = Request::post("/v3/watch").body(Body::default()).unwrap();
    let response = GatewayLayer.layer(service).oneshot(request).await.unwrap();
    assert_eq!(budget.used(), 1 << 20);
    let body = unfetched::response(response).into_body();
    let text = body.collect().await.unwrap().to_bytes();
    assert_eq!(text, "{\"result\":{}}\n");
    assert_eq!(budget.used(), 0);
}

/// JSON that is cut at any place is read as a whole, and a fault in it is told although the services see only a broken stream.
#[tokio::test]
async fn requests_of_a_stream_may_come_in_pieces() {
    let text = r#"{"create_request":{"key":"aw=="}}{"progress_request":{}}"#;
    for cut in 0..text.len() {
        let (sender, receiver) = mpsc::unbounded_channel();
        for part in [&text[..cut], &text[cut..]] {
            let frame = Frame::data(Bytes::copy_from_slice(part.as_bytes()));
            sender.send(Ok::<_, Infallible>(frame)).unwrap();
        }
        drop(sender);
        let frames = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
        let body = Body::new(StreamBody::new(frames.boxed()));
        let (status, answers) = ask("POST", "/v3/watch", "a", body).await;
        assert_eq!(
            (status, answers.lines().count()),
            (200, 3),
            "{cut}: {answers}"
        );
    }
    for text in [
        "{",
        r#"{"create_request":{}}nonsense"#,
        r#"{"create_request":7}"#,
    ] {
        let (_, answers) = post("/v3/watch", text).await;
        let last = answers.lines().last().unwrap();
        assert!(
            last.starts_with(r#"{"error":{"code":3"#),
            "{text}: {answers}"
        );
    }
}

#[tokio::test]
async fn health_is_that_of_the_keyspace() {
    let healthy = (200, r#"{"health":"true","reason":""}"#.to_owned());
    for path in ["/health", "/health?serializable=true"] {
        assert_eq!(get(path, "a").await, healthy);
    }
    let full = r#"{"health":"false","reason":"ALARM NOSPACE"}"#;
    assert_eq!(get("/health", "full").await, (503, full.to_owned()));
    let away = r#"{"health":"false","reason":"no leader"}"#;
    assert_eq!(get("/health", "away").await, (503, away.to_owned()));
    assert_eq!(get("/health?serializable=true", "away").await, healthy);
    let ok = |text: &str| (200, text.to_owned());
    assert_eq!(get("/readyz", "full").await, ok("ok\n"));
    assert_eq!(
        get("/readyz?verbose", "a").await,
        ok("[+]linearizable_read ok\nok\n")
    );
    assert_eq!(get("/livez", "away").await, ok("ok\n"));
    let failed = "[-]linearizable_read failed: no leader\n";
    assert_eq!(get("/readyz", "away").await, (503, failed.to_owned()));
    let (status, text) = get("/version", "a").await;
    assert!(
        status == 200 && text.contains(r#""etcdserver":"3.7"#),
        "{text}"
    );
}
