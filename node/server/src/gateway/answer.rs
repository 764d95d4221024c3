//! Calls of methods with JSON, and their answers.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt as _};
use http_body_util::{BodyExt as _, LengthLimitError, Limited, StreamBody};
use hyper::body::Frame;
use serde_json::json;
use tonic::body::Body;
use tonic::codegen::http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TE, TRANSFER_ENCODING,
};
use tonic::codegen::http::{HeaderValue, Request, Response, StatusCode, Uri, Version, request};
use tonic::{Code, Status};

use super::frames::{Frames, framed};
use super::routes::Method;
use super::{Grpc, json};
use crate::services::unfetched::Unfetched;

/// The most bytes of JSON of one message. The largest request of etcd has 1.5 MiB, which base64 makes a third longer.
const MAX_JSON_BYTES: usize = 4 << 20;

/// Answers a call that has one request and one answer.
pub(super) async fn one<S: Grpc>(
    mut inner: S,
    method: Method,
    request: Request<Body>,
) -> Result<Response<Body>, S::Error> {
    let (head, body) = request.into_parts();
    let message = match read_one(&method, body).await {
        Ok(message) => message,
        Err(status) => return Ok(refusal(&status)),
    };
    let body = Body::new(http_body_util::Full::new(framed(&message)));
    let mut response = inner.call(grpc_request(&method, &head, body)).await?;
    // What the answer has taken of a budget is given back when the network has taken the JSON.
    let unfetched = response.extensions_mut().remove::<Arc<Unfetched>>();
    let mut answer = match only(Frames::new(response)).await {
        Ok(message) => match json::write_apart(method.answer(), message).await {
            Ok(text) => json_response(StatusCode::OK, text),
            Err(error) => refusal(&Status::resource_exhausted(error)),
        },
        Err(status) => refusal(&status),
    };
    if let Some(unfetched) = unfetched {
        answer.extensions_mut().insert(unfetched);
    }
    Ok(answer)
}

/// Calls a method that has one request and one answer, both encoded.
pub(super) async fn call<S: Grpc>(
    mut inner: S,
    method: &Method,
    head: &request::Parts,
    message: &[u8],
) -> Result<Result<Bytes, Status>, S::Error> {
    let body = Body::new(http_body_util::Full::new(framed(message)));
    let response = inner.call(grpc_request(method, head, body)).await?;
    Ok(only(Frames::new(response)).await)
}

/// Answers a call with a stream: a line with a result for each answer, and one with the error if it ends with one.
pub(super) async fn many<S: Grpc>(
    mut inner: S,
    method: Method,
    request: Request<Body>,
) -> Result<Response<Body>, S::Error> {
    let (head, body) = request.into_parts();
    let wrong = Wrong::default();
    let body = if method.streams_requests() {
        requests(method.clone(), body, wrong.clone())
    } else {
        match read_one(&method, body).await {
            Ok(message) => Body::new(http_body_util::Full::new(framed(&message))),
            Err(status) => return Ok(stream_refusal(&status)),
        }
    };
    let mut response = inner.call(grpc_request(&method, &head, body)).await?;
    // As for one answer: shares of the budget are given back as the network takes the lines.
    let unfetched = response.extensions_mut().remove::<Arc<Unfetched>>();
    let frames = Frames::new(response);
    if frames.is_refused() {
        return Ok(stream_refusal(&wrong.or(frames.status())));
    }
    let lines = stream::unfold(Some((frames, method, wrong)), next_line);
    let frames = lines.map(|line| Ok::<_, Infallible>(Frame::data(line)));
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    if let Some(unfetched) = unfetched {
        response.extensions_mut().insert(unfetched);
    }
    set_type(&mut response);
    Ok(response)
}

type Answers = (Frames, Method, Wrong);

/// Returns the next line of a stream.
async fn next_line(answers: Option<Answers>) -> Option<(Bytes, Option<Answers>)> {
    let (mut frames, method, wrong) = answers?;
    let Some(message) = frames.next().await else {
        let status = wrong.or(frames.status());
        let error = (status.code() != Code::Ok).then(|| stream_error(&status))?;
        return Some((line(error), None));
    };
    match json::write_apart(method.answer(), message).await {
        Ok(text) => {
            let text = [b"{\"result\":", text.as_slice(), b"}"].concat();
            Some((line(text), Some((frames, method, wrong))))
        }
        Err(error) => {
            let status = Status::resource_exhausted(error);
            Some((line(stream_error(&status)), None))
        }
    }
}

fn line(mut text: Vec<u8>) -> Bytes {
    text.push(b'\n');
    text.into()
}

/// The fault of a stream's JSON. The gRPC services see only that the stream of requests broke.
#[derive(Clone, Default)]
struct Wrong(Arc<Mutex<Option<Status>>>);

impl Wrong {
    fn set(&self, status: &Status) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(status.clone());
    }

    /// Returns the fault, or else the status that the call ended with.
    fn or(&self, status: Status) -> Status {
        let mut wrong = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.take().unwrap_or(status)
    }
}

/// The part of a stream of requests that was read.
struct Reading {
    method: Method,
    body: Body,
    text: BytesMut,
    objects: json::Objects,
    wrong: Wrong,
}

/// Returns the frames of the JSON values that a body has, one after the other.
fn requests(method: Method, body: Body, wrong: Wrong) -> Body {
    let reading = Reading {
        method,
        body,
        text: BytesMut::new(),
        objects: json::Objects::default(),
        wrong,
    };
    let frames = stream::unfold(Some(reading), |reading| async {
        let mut reading = reading?;
        match reading.next().await {
            Ok(message) => Some((Ok(Frame::data(framed(&message?))), Some(reading))),
            Err(status) => {
                reading.wrong.set(&status);
                Some((Err(status), None))
            }
        }
    });
    Body::new(StreamBody::new(frames))
}

impl Reading {
    /// Returns the next message; `None` at the end of the body.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(length) = self.objects.end(&self.text) {
                let value = self.text.split_to(length);
                let message = json::read(self.method.request(), &value);
                return message.map(Some).map_err(|error| bad(&error));
            }
            if self.text.len() > MAX_JSON_BYTES {
                return Err(too_large());
            }
            match self.body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.text.extend_from_slice(&data);
                    }
                }
                None if self.text.trim_ascii().is_empty() => return Ok(None),
                None => return Err(Status::invalid_argument("unexpected EOF")),
            }
        }
    }
}

async fn read_one(method: &Method, body: Body) -> Result<Bytes, Status> {
    let text = Limited::new(body, MAX_JSON_BYTES).collect().await;
    let text = text.map_err(|error| {
        if error.is::<LengthLimitError>() {
            too_large()
        } else {
            Status::invalid_argument(format!("the body can't be read: {error}"))
        }
    })?;
    json::read(method.request(), &text.to_bytes()).map_err(|error| bad(&error))
}

fn bad(error: &serde_json::Error) -> Status {
    if error.is_eof() {
        return Status::invalid_argument("unexpected EOF");
    }
    Status::invalid_argument(format!("bad JSON: {error}"))
}

fn too_large() -> Status {
    Status::resource_exhausted(format!(
        "a message of JSON has at most {MAX_JSON_BYTES} bytes"
    ))
}

/// Returns the gRPC request of a method. All headers of the HTTP request but those of its body go along, so the keyspace, the
/// deadline and the token may be among them.
fn grpc_request(method: &Method, head: &request::Parts, body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    let path = method.path();
    let uri = Uri::builder().path_and_query(path);
    let uri = match (head.uri.scheme(), head.uri.authority()) {
        (Some(scheme), Some(authority)) => uri
            .scheme(scheme.clone())
            .authority(authority.clone())
            .build(),
        _ => uri.build(),
    };
    *request.uri_mut() = uri.unwrap_or_default();
    *request.method_mut() = tonic::codegen::http::Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.extensions_mut() = head.extensions.clone();
    let headers = request.headers_mut();
    *headers = head.headers.clone();
    for name in [
        CONTENT_LENGTH,
        TRANSFER_ENCODING,
        CONNECTION,
        ACCEPT_ENCODING,
    ] {
        headers.remove(name);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    request
}

/// Returns the only message of an answer.
async fn only(mut frames: Frames) -> Result<Bytes, Status> {
    let mut only = None;
    while let Some(message) = frames.next().await {
        only = Some(message);
    }
    match frames.status() {
        status if status.code() != Code::Ok => Err(status),
        _ => only.ok_or_else(|| Status::internal("the call has no answer")),
    }
}

/// Returns the answer to a call that failed.
pub(super) fn refusal(status: &Status) -> Response<Body> {
    let text = json!({"code": i32::from(status.code()), "message": status.message()});
    json_response(http_status(status.code()), text.to_string().into_bytes())
}

fn stream_refusal(status: &Status) -> Response<Body> {
    json_response(http_status(status.code()), stream_error(status))
}

fn stream_error(status: &Status) -> Vec<u8> {
    let error = json!({"code": i32::from(status.code()), "message": status.message()});
    json!({"error": error}).to_string().into_bytes()
}

pub(super) fn json_response(status: StatusCode, text: Vec<u8>) -> Response<Body> {
    let body = Body::new(http_body_util::Full::new(Bytes::from(text)));
    let mut response = Response::new(body);
    *response.status_mut() = status;
    set_type(&mut response);
    response
}

fn set_type(response: &mut Response<Body>) {
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
}

/// Returns the HTTP status of a gRPC code, as etcd's gateway has it.
pub(super) fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::REQUEST_TIMEOUT),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
