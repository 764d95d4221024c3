//! Fault injection: counts all writes of the operator, to the API server and to the store, and makes the write that a test
//! chooses fail. For the API server it is a layer of the client.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use hyper::{Method, Request, Response};
use kube::client::Body;
use serde_json::Value;
use tokio::sync::watch;
use tower::{BoxError, Layer, Service, ServiceExt};

/// Kind of failure at a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The write takes effect, and the operator crashes before the response arrives.
    Crash,
    /// The write takes effect and its response is lost. All later requests of the round fail. The operator runs on.
    LoseResponse,
    /// The write and all later requests of the round are lost. The operator runs on.
    LoseRequest,
}

/// A write that reached the API server or the store.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    /// HTTP method, or `join` or `leave`.
    pub(crate) verb: String,
    /// Path of the request, or cluster and groups.
    pub(crate) path: String,
    /// Body of the request.
    pub(crate) body: Value,
}

/// Counts writes and injects faults.
pub(crate) struct FaultInjector {
    state: Mutex<State>,
    crashed: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    writes: Vec<Write>,
    /// Number of writes that the API server refused.
    refused: usize,
    /// The planned fault, and the number of the write at which it happens, counted from the start.
    fault: Option<(usize, Fault)>,
    /// The fault that has happened, until the round ends.
    broken: Option<Fault>,
    /// Code that runs before the first write with this verb to a path that contains this text.
    interference: Option<(&'static str, String, Interference)>,
}

/// A concurrent change by another program.
pub(crate) type Interference = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Outcome of a request.
enum Outcome {
    Passes,
    /// The request takes effect, then the fault happens.
    TakesEffect(Fault),
    Fails(Fault),
}

impl FaultInjector {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            crashed: watch::Sender::new(false),
        })
    }

    /// Injects a fault at the `number`th write from now on; the next write is number 1.
    pub(crate) fn inject_at(&self, number: usize, fault: Fault) {
        let mut state = self.state.lock().unwrap();
        state.fault = Some((state.writes.len() + number, fault));
    }

    /// Cancels the planned fault if it hasn't happened.
    pub(crate) fn cancel(&self) {
        self.state.lock().unwrap().fault = None;
    }

    /// Lets all requests through again. Returns true if a fault had happened.
    pub(crate) fn heal(&self) -> bool {
        self.crashed.send_replace(false);
        self.state.lock().unwrap().broken.take().is_some()
    }

    /// Runs `act` once, just before the next matching write.
    pub(crate) fn interfere(
        &self,
        verb: &'static str,
        path: &str,
        act: impl Future<Output = ()> + Send + 'static,
    ) {
        let interference = (verb, path.to_owned(), Box::pin(act) as Interference);
        self.state.lock().unwrap().interference = Some(interference);
    }

    /// Returns the number of writes so far, with refused ones.
    pub(crate) fn count(&self) -> usize {
        self.state.lock().unwrap().writes.len()
    }

    /// Returns the number of writes that were not refused.
    pub(crate) fn accepted(&self) -> usize {
        let state = self.state.lock().unwrap();
        state.writes.len() - state.refused
    }

    /// Returns the writes after the first `count`.
    pub(crate) fn writes_after(&self, count: usize) -> Vec<Write> {
        self.state.lock().unwrap().writes[count..].to_vec()
    }

    /// Waits until a fault crashes the operator.
    pub(crate) async fn crash(&self) {
        let _ = self.crashed.subscribe().wait_for(|crashed| *crashed).await;
    }

    /// Makes a change of the store, unless a fault prevents it. Returns none if the operator doesn't see the result.
    pub(crate) async fn store<T>(
        &self,
        verb: &str,
        path: &str,
        change: impl FnOnce() -> T,
    ) -> Option<T> {
        match self.admit(verb, path, &Value::Null) {
            Outcome::Passes => Some(change()),
            Outcome::TakesEffect(fault) => {
                change();
                self.close(fault).await;
                None
            }
            Outcome::Fails(fault) => {
                self.close(fault).await;
                None
            }
        }
    }

    fn admit(&self, verb: &str, path: &str, body: &Value) -> Outcome {
        let mut state = self.state.lock().unwrap();
        if let Some(fault) = state.broken {
            return Outcome::Fails(fault);
        }
        if verb == "GET" {
            return Outcome::Passes;
        }
        let next = state.writes.len() + 1;
        let due = state.fault.take_if(|(number, _)| *number == next);
        if let Some((_, fault)) = due {
            state.broken = Some(fault);
            if fault == Fault::LoseRequest {
                return Outcome::Fails(fault);
            }
        }
        state.writes.push(Write {
            verb: verb.to_owned(),
            path: path.to_owned(),
            body: body.clone(),
        });
        match due {
            Some((_, fault)) => Outcome::TakesEffect(fault),
            None => Outcome::Passes,
        }
    }

    /// Ends the request. After a crash it never completes, because the operator must not run on.
    async fn close(&self, fault: Fault) {
        if fault == Fault::Crash {
            self.crashed.send_replace(true);
            pending::<()>().await;
        }
    }

    async fn run_interference(&self, verb: &str, path: &str) {
        let act = {
            let mut state = self.state.lock().unwrap();
            let due = |(when, part, _): &mut (&str, String, _)| {
                *when == verb && path.contains(part.as_str())
            };
            state.interference.take_if(due)
        };
        if let Some((.., act)) = act {
            act.await;
        }
    }
}

/// Layer of a client that injects faults.
pub(crate) struct FaultLayer(pub(crate) Arc<FaultInjector>);

impl<S> Layer<S> for FaultLayer {
    type Service = FaultService<S>;

    fn layer(&self, inner: S) -> FaultService<S> {
        FaultService {
            faults: Arc::clone(&self.0),
            inner: Arc::new(tokio::sync::Mutex::new(inner)),
        }
    }
}

pub(crate) struct FaultService<S> {
    faults: Arc<FaultInjector>,
    inner: Arc<tokio::sync::Mutex<S>>,
}

impl<S, B> Service<Request<Body>> for FaultService<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError> + Send + 'static,
    S::Future: Send,
    B: Send,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (faults, inner) = (Arc::clone(&self.faults), Arc::clone(&self.inner));
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect_bytes().await?;
            let verb = match parts.method {
                Method::GET => "GET",
                Method::POST => "POST",
                Method::PUT => "PUT",
                Method::PATCH => "PATCH",
                _ => "DELETE",
            };
            let path = parts.uri.to_string();
            faults.run_interference(verb, &path).await;
            let content = serde_json::from_slice(&bytes).unwrap_or_default();
            let outcome = faults.admit(verb, &path, &content);
            let broken = || BoxError::from("the connection broke");
            if let Outcome::Fails(fault) = outcome {
                faults.close(fault).await;
                return Err(broken());
            }
            let request = Request::from_parts(parts, Body::from(bytes));
            let answer = {
                let mut inner = inner.lock().await;
                inner.ready().await?.call(request)
            };
            let answer = answer.await;
            let refused = |answer: &Response<B>| answer.status().as_u16() >= 400;
            if verb != "GET" && answer.as_ref().is_ok_and(refused) {
                faults.state.lock().unwrap().refused += 1;
            }
            if let Outcome::TakesEffect(fault) = outcome {
                faults.close(fault).await;
                return Err(broken());
            }
            answer
        })
    }
}
