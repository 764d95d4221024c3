//! The way of all writes: to the API server as a layer of the client, and to the store. It counts them, and cuts the operator off
//! after the one that a test names.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use hyper::{Method, Request, Response};
use kube::client::Body;
use serde_json::Value;
use tokio::sync::watch;
use tower::{BoxError, Layer, Service, ServiceExt};

/// What happens at a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// It takes effect, and the operator dies before it hears so.
    Dies,
    /// It takes effect; the answer is lost, and nothing else gets through until the end of the round. The operator lives on.
    LosesAnswer,
    /// It doesn't take effect, nor does anything else until the end of the round. The operator lives on.
    LosesRequest,
}

/// A write that got through.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    /// The method of HTTP, or `join` or `leave`.
    pub(crate) verb: String,
    /// Where to.
    pub(crate) path: String,
    /// What.
    pub(crate) body: Value,
}

/// Counts, and cuts.
pub(crate) struct Gate {
    state: Mutex<State>,
    dead: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    writes: Vec<Write>,
    /// How many of them the API server refused.
    refused: usize,
    /// After how many writes, counted from the beginning, and how.
    cut: Option<(usize, Cut)>,
    /// It has been.
    broken: Option<Cut>,
    /// Somebody who does something just before a write with this verb, to a path that contains this.
    interferer: Option<(&'static str, String, Interference)>,
}

/// What an interferer does.
pub(crate) type Interference = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How a request fares.
enum Fate {
    Passes,
    /// It takes effect, then the gate closes.
    IsLast(Cut),
    Fails(Cut),
}

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            dead: watch::Sender::new(false),
        })
    }

    /// Cuts at the `number`th write from now on; the first is 1.
    pub(crate) fn cut_at(&self, number: usize, cut: Cut) {
        let mut state = self.state.lock().unwrap();
        state.cut = Some((state.writes.len() + number, cut));
    }

    /// Cuts no more, if it hasn't.
    pub(crate) fn forget_cut(&self) {
        self.state.lock().unwrap().cut = None;
    }

    /// Lets everything through again; says whether it had been cut.
    pub(crate) fn mend(&self) -> bool {
        self.dead.send_replace(false);
        self.state.lock().unwrap().broken.take().is_some()
    }

    /// Has something done just before a write, once.
    pub(crate) fn interfere(
        &self,
        verb: &'static str,
        path: &str,
        act: impl Future<Output = ()> + Send + 'static,
    ) {
        let interferer = (verb, path.to_owned(), Box::pin(act) as Interference);
        self.state.lock().unwrap().interferer = Some(interferer);
    }

    /// How many writes there were so far, refused ones too.
    pub(crate) fn count(&self) -> usize {
        self.state.lock().unwrap().writes.len()
    }

    /// How many writes changed something, or could have.
    pub(crate) fn accepted(&self) -> usize {
        let state = self.state.lock().unwrap();
        state.writes.len() - state.refused
    }

    /// Those that came after so many.
    pub(crate) fn writes_after(&self, count: usize) -> Vec<Write> {
        self.state.lock().unwrap().writes[count..].to_vec()
    }

    /// Waits until the operator must be dead.
    pub(crate) async fn death(&self) {
        let _ = self.dead.subscribe().wait_for(|dead| *dead).await;
    }

    /// A change of the store.
    pub(crate) async fn store<T>(
        &self,
        verb: &str,
        path: &str,
        change: impl FnOnce() -> T,
    ) -> Option<T> {
        match self.admit(verb, path, &Value::Null) {
            Fate::Passes => Some(change()),
            Fate::IsLast(cut) => {
                change();
                self.close(cut).await;
                None
            }
            Fate::Fails(cut) => {
                self.close(cut).await;
                None
            }
        }
    }

    fn admit(&self, verb: &str, path: &str, body: &Value) -> Fate {
        let mut state = self.state.lock().unwrap();
        if let Some(cut) = state.broken {
            return Fate::Fails(cut);
        }
        if verb == "GET" {
            return Fate::Passes;
        }
        let next = state.writes.len() + 1;
        let due = state.cut.take_if(|(number, _)| *number == next);
        if let Some((_, cut)) = due {
            state.broken = Some(cut);
            if cut == Cut::LosesRequest {
                return Fate::Fails(cut);
            }
        }
        state.writes.push(Write {
            verb: verb.to_owned(),
            path: path.to_owned(),
            body: body.clone(),
        });
        match due {
            Some((_, cut)) => Fate::IsLast(cut),
            None => Fate::Passes,
        }
    }

    /// The dead hear nothing any more.
    async fn close(&self, cut: Cut) {
        if cut == Cut::Dies {
            self.dead.send_replace(true);
            pending::<()>().await;
        }
    }

    async fn let_others(&self, verb: &str, path: &str) {
        let act = {
            let mut state = self.state.lock().unwrap();
            let due = |(when, part, _): &mut (&str, String, _)| {
                *when == verb && path.contains(part.as_str())
            };
            state.interferer.take_if(due)
        };
        if let Some((.., act)) = act {
            act.await;
        }
    }
}

/// The layer of a client whose writes pass a gate.
pub(crate) struct Gated(pub(crate) Arc<Gate>);

impl<S> Layer<S> for Gated {
    type Service = GatedService<S>;

    fn layer(&self, inner: S) -> GatedService<S> {
        GatedService {
            gate: Arc::clone(&self.0),
            inner: Arc::new(tokio::sync::Mutex::new(inner)),
        }
    }
}

pub(crate) struct GatedService<S> {
    gate: Arc<Gate>,
    inner: Arc<tokio::sync::Mutex<S>>,
}

impl<S, B> Service<Request<Body>> for GatedService<S>
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
        let (gate, inner) = (Arc::clone(&self.gate), Arc::clone(&self.inner));
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
            gate.let_others(verb, &path).await;
            let content = serde_json::from_slice(&bytes).unwrap_or_default();
            let fate = gate.admit(verb, &path, &content);
            let broken = || BoxError::from("the connection broke");
            if let Fate::Fails(cut) = fate {
                gate.close(cut).await;
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
                gate.state.lock().unwrap().refused += 1;
            }
            if let Fate::IsLast(cut) = fate {
                gate.close(cut).await;
                return Err(broken());
            }
            answer
        })
    }
}
