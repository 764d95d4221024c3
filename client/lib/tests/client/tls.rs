//! The client over TLS: nodes behind fronts that terminate it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ::tls::issue::{Authority, Issued, Request, Validity};
use ::tls::{Credentials, Files, Shared};
use futures::TryStreamExt as _;
use shardkv_client::{Client, ClientOptions, ConnectError, Error, Mode, ScanOptions, TlsOptions};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::double::Cluster;

const DAY: Duration = Duration::from_hours(24);

/// A cluster behind fronts, and the authorities of its certificates.
struct Secure {
    cluster: Cluster,
    folder: TempDir,
    clients: Authority,
    fronts: Vec<Front>,
}

struct Front {
    address: String,
    /// The callers of all connections so far.
    callers: Arc<Mutex<Vec<String>>>,
    /// Dropping it ends all connections.
    connections: Arc<Mutex<JoinSet<()>>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn authority(name: &str) -> Authority {
    Authority::make(name, Validity::root(SystemTime::now())).unwrap()
}

fn issue(authority: &Authority, request: &Request) -> Issued {
    let validity = Validity::starting(SystemTime::now(), DAY);
    authority.issue(request, validity).unwrap()
}

impl Secure {
    async fn start(nodes: usize) -> Self {
        let cluster = Cluster::start(nodes);
        let folder = tempfile::tempdir().unwrap();
        let (peers, clients) = (authority("peers"), authority("clients"));
        let member = Request {
            addresses: vec!["127.0.0.1".parse().unwrap()],
            ..Request::member(&"shardkv://c1/group/1".parse().unwrap())
        };
        let member = issue(&peers, &member);
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let files = Files {
            cert: write("node.crt", &member.certificate),
            key: write("node.key", &member.key),
            peers_ca: write("peers.crt", peers.certificate()),
            operator_ca: None,
            clients_ca: Some(write("clients.crt", clients.certificate())),
        };
        let shared = Arc::new(Shared::new(Credentials::load(&files).unwrap()));
        let mut fronts = Vec::new();
        for node in &cluster.addresses {
            fronts.push(Front::start(node.clone(), Arc::clone(&shared)).await);
        }
        let addresses: Vec<String> = fronts.iter().map(|it| it.address.clone()).collect();
        cluster.advertise(&addresses);
        Self {
            cluster,
            folder,
            clients,
            fronts,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn options(&self, tls: TlsOptions) -> ClientOptions {
        let addresses = self.fronts.iter().map(|it| it.address.clone());
        ClientOptions {
            tls: Some(tls),
            request_timeout: Duration::from_secs(20),
            ..ClientOptions::new(addresses)
        }
    }

    fn ca(&self) -> TlsOptions {
        TlsOptions::ca_file(self.path("peers.crt"))
    }

    /// Writes a certificate of a client and its key.
    fn write_client(&self, name: &str) {
        let client = issue(&self.clients, &Request::client(name));
        fs::write(self.path("tls.crt"), client.certificate).unwrap();
        fs::write(self.path("tls.key"), client.key).unwrap();
    }

    fn with_files(&self) -> TlsOptions {
        self.ca()
            .identity_files(self.path("tls.crt"), self.path("tls.key"))
    }

    /// Returns the callers of all connections since the last time.
    fn callers(&self) -> Vec<String> {
        let callers = self.fronts.iter().map(|it| &it.callers);
        callers
            .flat_map(|it| std::mem::take(&mut *it.lock().unwrap()))
            .collect()
    }

    fn break_connections(&self) {
        for front in &self.fronts {
            front.connections.lock().unwrap().abort_all();
        }
    }
}

impl Front {
    async fn start(node: String, credentials: Arc<Shared>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let callers: Arc<Mutex<Vec<String>>> = Arc::default();
        let connections: Arc<Mutex<JoinSet<()>>> = Arc::default();
        let (seen, open) = (Arc::clone(&callers), Arc::clone(&connections));
        let accepting = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (node, seen) = (node.clone(), Arc::clone(&seen));
                let credentials = credentials.current();
                open.lock().unwrap().spawn(async move {
                    let Ok((mut secure, peer)) = ::tls::accept(&credentials, tcp).await else {
                        return;
                    };
                    seen.lock().unwrap().push(peer.caller().to_string());
                    let mut plain = TcpStream::connect(node).await.unwrap();
                    // The connection ends like that of the client.
                    let _ = copy_bidirectional(&mut secure, &mut plain).await;
                });
            }
        });
        Self {
            address,
            callers,
            connections,
            accepting,
        }
    }
}

async fn everything_works(mode: Mode) {
    let secure = Secure::start(3).await;
    secure.write_client("team-a");
    let options = ClientOptions {
        mode,
        ..secure.options(secure.with_files())
    };
    let client = Client::connect(options).await.unwrap();
    client.put("a", "1").await.unwrap();
    assert_eq!(client.get("a").await.unwrap().as_deref(), Some(&b"1"[..]));
    let pairs: Vec<_> = client
        .scan(ScanOptions::default())
        .try_collect()
        .await
        .unwrap();
    assert_eq!(pairs.len(), 1);
    client.controller().query(None).await.unwrap();
    let statuses = client.status_all().await;
    assert_eq!(statuses.len(), 3);
    assert!(
        statuses.iter().all(|(_, status)| status.is_ok()),
        "{statuses:?}"
    );
    let leader = client.leader().await.unwrap();
    client
        .admin(&format!("https://{leader}"))
        .unwrap()
        .status()
        .await
        .unwrap();
    let callers = secure.callers();
    assert!(
        callers.iter().all(|it| it == "the client \"team-a\""),
        "{callers:?}"
    );
    assert!(callers.len() >= 3, "{callers:?}");
    secure.cluster.check();
}

#[tokio::test]
async fn everything_works_over_tls_by_batch() {
    everything_works(Mode::Batch).await;
}

#[tokio::test]
async fn everything_works_over_tls_by_unary() {
    everything_works(Mode::Unary).await;
}

#[tokio::test]
async fn a_client_without_a_certificate_is_anonymous() {
    let secure = Secure::start(1).await;
    let ca = fs::read_to_string(secure.path("peers.crt")).unwrap();
    let options = secure.options(TlsOptions::ca_pem(&ca));
    let addresses = options.addresses.iter();
    let addresses = addresses.map(|it| format!("https://{it}/")).collect();
    let client = Client::connect(ClientOptions {
        addresses,
        ..options
    });
    client.await.unwrap().put("a", "1").await.unwrap();
    let anonymous = "a connection without a certificate";
    assert!(secure.callers().iter().all(|it| it == anonymous));
}

/// Returns the errors of connecting and of a call.
async fn refused(options: ClientOptions) -> (ConnectError, Error) {
    let refused = Client::connect(options.clone()).await.unwrap_err();
    let options = ClientOptions {
        request_timeout: Duration::from_millis(200),
        ..options
    };
    let client = Client::lazy(options).unwrap();
    (refused, client.put("a", "1").await.unwrap_err())
}

async fn is_refused_with(options: ClientOptions, words: &str) {
    let (connect, call) = refused(options).await;
    for text in [connect.to_string(), call.to_string()] {
        assert!(text.contains(words), "{text}");
    }
    assert!(matches!(connect, ConnectError::Tls(_)), "{connect:?}");
    assert!(
        matches!(
            call,
            Error::Tls {
                maybe_applied: false,
                ..
            }
        ),
        "{call:?}"
    );
    assert!(!call.is_retryable());
}

#[tokio::test]
async fn a_node_of_another_authority_is_refused() {
    let secure = Secure::start(1).await;
    let other = TlsOptions::ca_pem(authority("other").certificate());
    is_refused_with(secure.options(other), "none of the authorities").await;
    assert_eq!(secure.cluster.world().applied, 0);
}

#[tokio::test]
async fn a_client_of_another_authority_is_told() {
    let secure = Secure::start(1).await;
    let mine = issue(&authority("other"), &Request::client("me"));
    let tls = secure.ca().identity_pem(&mine.certificate, &mine.key);
    is_refused_with(secure.options(tls), "the server refused this certificate").await;
}

#[tokio::test]
async fn a_node_without_tls_is_never_asked_without_it() {
    let secure = Secure::start(1).await;
    let options = ClientOptions {
        addresses: secure.cluster.addresses.clone(),
        ..secure.options(secure.ca())
    };
    is_refused_with(options, "doesn't speak TLS").await;
    assert_eq!(secure.cluster.world().watches, 0);
}

#[tokio::test]
async fn a_rotated_certificate_is_used_without_a_restart() {
    let secure = Secure::start(1).await;
    secure.write_client("before");
    let client = Client::connect(secure.options(secure.with_files()))
        .await
        .unwrap();
    client.put("a", "1").await.unwrap();
    assert!(
        secure
            .callers()
            .contains(&"the client \"before\"".to_owned())
    );

    // Half of a rotation: a certificate without its key is not used.
    let key = fs::read(secure.path("tls.key")).unwrap();
    secure.write_client("after");
    let new_key = fs::read(secure.path("tls.key")).unwrap();
    fs::write(secure.path("tls.key"), key).unwrap();
    secure.break_connections();
    client.put("a", "2").await.unwrap();
    let callers = secure.callers();
    assert!(
        callers.contains(&"the client \"before\"".to_owned()),
        "{callers:?}"
    );
    assert!(
        !callers.contains(&"the client \"after\"".to_owned()),
        "{callers:?}"
    );

    fs::write(secure.path("tls.key"), new_key).unwrap();
    secure.break_connections();
    client.put("a", "3").await.unwrap();
    let callers = secure.callers();
    assert!(
        callers.contains(&"the client \"after\"".to_owned()),
        "{callers:?}"
    );
}

#[tokio::test]
async fn files_that_cant_be_used_are_named() {
    let secure = Secure::start(1).await;
    secure.write_client("me");
    let missing = Path::new("/does/not/exist");
    let other = issue(&secure.clients, &Request::client("other"));
    fs::write(secure.path("other.key"), other.key).unwrap();
    for (tls, words) in [
        (TlsOptions::ca_file(missing), "/does/not/exist"),
        (
            TlsOptions::ca_file(secure.path("tls.key")),
            "no certificate",
        ),
        (TlsOptions::ca_pem("nonsense"), "the authorities"),
        (
            secure
                .ca()
                .identity_files(secure.path("tls.crt"), secure.path("other.key")),
            "not the private key",
        ),
    ] {
        let refused = Client::lazy(secure.options(tls)).unwrap_err();
        assert!(
            matches!(refused, ConnectError::Certificates(_)),
            "{refused:?}"
        );
        assert!(refused.to_string().contains(words), "{refused}");
    }
}
