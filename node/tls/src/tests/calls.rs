//! Handshakes over sockets.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use access::Caller;
use hyper::Uri;
use rcgen::ExtendedKeyUsagePurpose;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tower::Service as _;
use types::Gid;

use super::{Asked, Authority, DAY, Pair, files, named};
use crate::{
    ClientCredentials, Connector, Credentials, Files, HandshakeError, Peer, Pem, Reason, Shared,
    Stream, accept,
};

/// The time in which a handshake ends, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// The authorities of a cluster, and of strangers.
struct World {
    _folder: tempfile::TempDir,
    peers: Authority,
    operator: Authority,
    clients: Authority,
    strangers: Authority,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        Self {
            peers: Authority::new(path, "peers"),
            operator: Authority::new(path, "operator"),
            clients: Authority::new(path, "clients"),
            strangers: Authority::new(path, "strangers"),
            _folder: folder,
        }
    }

    fn node(&self, uri: &'static str) -> Credentials {
        let pair = self.peers.issue("node", &named(uri));
        Credentials::load(&files(&pair, &self.peers, &self.operator, &self.clients)).unwrap()
    }
}

/// Dials a server with these credentials. Returns both sides.
async fn dial(
    server: &Credentials,
    mut connector: Connector,
    host: &str,
) -> (Result<Peer, HandshakeError>, Result<Stream, String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let uri: Uri = format!("http://{host}:{port}").parse().unwrap();
    let serving = async {
        let (socket, _) = listener.accept().await.unwrap();
        let (mut stream, peer) = accept(server, socket).await?;
        // As a server of HTTP/2 that waits for the preface.
        let mut preface = [0; 24];
        stream.read_exact(&mut preface).await.unwrap();
        stream
            .write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
            .await
            .unwrap();
        stream.flush().await.unwrap();
        Ok(peer)
    };
    let both = async { tokio::join!(serving, connector.call(uri)) };
    let (accepted, dialed) = timeout(PATIENCE, both).await.expect("a handshake ends");
    let dialed = dialed.map(hyper_util::rt::TokioIo::into_inner);
    (accepted, dialed.map_err(|error| error.to_string()))
}

fn client(ca: &Authority, pair: Option<&Pair>) -> Connector {
    let read = |path: &Path| Pem::read(path).unwrap();
    let pair = pair.map(|pair| (read(&pair.cert), read(&pair.key)));
    let identity = pair.as_ref().map(|(cert, key)| (cert, key));
    Connector::to_host(ClientCredentials::new(&read(&ca.bundle()), identity).unwrap())
}

#[tokio::test]
async fn an_authority_and_a_name_make_a_role() {
    let world = World::new();
    let server = world.node("shardkv://c1/group/3");
    let World {
        peers,
        operator,
        clients,
        ..
    } = &world;
    let member = named("shardkv://c1/group/7");
    let as_operator = named("shardkv://c1/operator");
    for (pair, expected) in [
        (None, Caller::Anonymous),
        (Some(peers.issue("a", &member)), Caller::Member(Gid(7))),
        (
            Some(peers.issue("b", &named("shardkv://c1/controllers"))),
            Caller::Member(Gid::NONE),
        ),
        (Some(operator.issue("c", &as_operator)), Caller::Operator),
    ] {
        let (accepted, dialed) = dial(&server, client(peers, pair.as_ref()), "localhost").await;
        assert_eq!(accepted.unwrap().caller(), &expected);
        dialed.unwrap();
    }
    // The authority of clients makes clients only, whatever they are called.
    for asked in [&member, &as_operator, &Asked::default()] {
        let pair = clients.issue("client", asked);
        let (accepted, _) = dial(&server, client(peers, Some(&pair)), "localhost").await;
        let peer = accepted.unwrap();
        let Caller::Client(names) = peer.caller() else {
            panic!("{}", peer.caller());
        };
        assert_eq!(names.common_name.as_deref(), Some("client"));
        assert_eq!(names.uris, asked.uris);
        assert_eq!(names.dns_names, ["localhost"]);
    }
}

#[tokio::test]
async fn a_name_or_an_authority_that_does_not_fit_is_refused_in_words() {
    let world = World::new();
    let server = world.node("shardkv://c1/group/3");
    let World {
        peers,
        operator,
        clients,
        strangers,
        ..
    } = &world;
    let member = named("shardkv://c1/group/7");
    let now = SystemTime::now();
    let expired = Asked {
        ends: now - DAY / 2,
        ..member.clone()
    };
    let early = Asked {
        begins: now + DAY / 2,
        ..member.clone()
    };
    let only_server = Asked {
        purposes: vec![ExtendedKeyUsagePurpose::ServerAuth],
        ..Asked::default()
    };
    for (pair, reason, says) in [
        (
            strangers.issue("a", &member),
            Reason::UnknownAuthority,
            "knows no authority",
        ),
        (peers.issue("b", &expired), Reason::Expired, "has expired"),
        (clients.issue("c", &expired), Reason::Expired, "has expired"),
        (
            peers.issue("d", &early),
            Reason::NotYetValid,
            "not valid yet",
        ),
        (
            peers.issue("e", &named("shardkv://c2/group/3")),
            Reason::WrongName,
            "another cluster",
        ),
        (
            operator.issue("f", &named("shardkv://c2/operator")),
            Reason::WrongName,
            "another cluster",
        ),
        (
            operator.issue("g", &member),
            Reason::WrongName,
            "a role that",
        ),
        (
            peers.issue("h", &named("shardkv://c1/operator")),
            Reason::WrongName,
            "a role that",
        ),
        (
            peers.issue("i", &Asked::default()),
            Reason::WrongName,
            "a role that",
        ),
        (
            clients.issue("j", &only_server),
            Reason::BadCertificate,
            "clientAuth",
        ),
    ] {
        let (accepted, dialed) = dial(&server, client(peers, Some(&pair)), "localhost").await;
        let refused = accepted.unwrap_err();
        assert_eq!(refused.reason, reason, "{refused}");
        let said = dialed.unwrap_err();
        assert!(said.contains(says), "{refused}: {said}");
    }
}

#[tokio::test]
async fn with_one_authority_for_all_the_name_decides() {
    let folder = tempfile::tempdir().unwrap();
    let all = Authority::new(folder.path(), "all");
    let pair = all.issue("node", &named("shardkv://c1/group/3"));
    let server = Credentials::load(&files(&pair, &all, &all, &all)).unwrap();
    let caller = async |file: &str, asked: &Asked| {
        let pair = all.issue(file, asked);
        let (accepted, _) = dial(&server, client(&all, Some(&pair)), "localhost").await;
        accepted.map(|peer| peer.caller().clone())
    };
    let member = caller("a", &named("shardkv://c1/group/7")).await;
    assert_eq!(member.unwrap(), Caller::Member(Gid(7)));
    let operator = caller("b", &named("shardkv://c1/operator")).await;
    assert_eq!(operator.unwrap(), Caller::Operator);
    let client = caller("c", &Asked::default()).await.unwrap();
    assert!(matches!(client, Caller::Client(_)), "{client}");
    let other = caller("d", &named("shardkv://c2/group/7")).await;
    assert_eq!(other.unwrap_err().reason, Reason::WrongName);
}

#[tokio::test]
async fn a_node_dials_the_group_that_it_means_and_no_other() {
    let world = World::new();
    let own = Arc::new(Shared::new(world.node("shardkv://c1/group/7")));
    // The address that is dialed is none of its host names.
    let asked = Asked {
        hosts: vec!["elsewhere.example"],
        ..named("shardkv://c1/group/3")
    };
    let pair = world.peers.issue("elsewhere", &asked);
    let server = files(&pair, &world.peers, &world.operator, &world.clients);
    let server = Credentials::load(&server).unwrap();
    let to = |gid| Connector::to_member(Arc::clone(&own), gid);
    let (accepted, dialed) = dial(&server, to(Gid(3)), "127.0.0.1").await;
    assert_eq!(accepted.unwrap().caller(), &Caller::Member(Gid(7)));
    dialed.unwrap();
    for gid in [Gid(4), Gid::NONE] {
        let (accepted, dialed) = dial(&server, to(gid), "127.0.0.1").await;
        assert_eq!(accepted.unwrap_err().reason, Reason::RefusedByCaller);
        let said = dialed.unwrap_err();
        assert!(
            said.contains("its certificate is of shardkv://c1/group/3, and"),
            "{said}"
        );
    }
    let foreign = world.node("shardkv://c2/group/3");
    let said = dial(&foreign, to(Gid(3)), "127.0.0.1").await.1.unwrap_err();
    assert!(
        said.contains("its certificate is of shardkv://c2/group/3, and"),
        "{said}"
    );
    // An authority of clients makes no nodes.
    let strange = world
        .clients
        .issue("strange", &named("shardkv://c1/group/3"));
    let strange = Credentials::load(&files(
        &strange,
        &world.clients,
        &world.operator,
        &world.peers,
    ));
    let said = dial(&strange.unwrap(), to(Gid(3)), "127.0.0.1")
        .await
        .1
        .unwrap_err();
    assert!(said.contains("signed by none of the authorities"), "{said}");
}

#[tokio::test]
async fn a_client_checks_the_host_and_the_authority() {
    let world = World::new();
    let pair = world.peers.issue(
        "named",
        &Asked {
            hosts: vec!["db.example"],
            ..named("shardkv://c1/group/3")
        },
    );
    let server = files(&pair, &world.peers, &world.operator, &world.clients);
    let server = Credentials::load(&server).unwrap();
    let said = dial(&server, client(&world.peers, None), "localhost")
        .await
        .1;
    assert!(
        said.unwrap_err()
            .contains("Dial a name that its certificate has")
    );
    let said = dial(&server, client(&world.strangers, None), "localhost")
        .await
        .1;
    assert!(
        said.unwrap_err()
            .contains("The bundle of authorities must have")
    );
}

#[tokio::test]
async fn replaced_credentials_decide_about_the_next_connection_and_the_open_ones() {
    let world = World::new();
    let own = Arc::new(Shared::new(world.node("shardkv://c1/group/7")));
    let server = world.node("shardkv://c1/group/3");
    let to = || Connector::to_member(Arc::clone(&own), Gid(3));
    let peer = dial(&server, to(), "127.0.0.1").await.0.unwrap();
    assert!(peer.is_still(&server));
    assert!(peer.expires().unwrap() > SystemTime::now());
    // The same names under other authorities.
    let World {
        strangers,
        operator,
        clients,
        ..
    } = &world;
    let issue = |file: &str, uri| {
        let pair = strangers.issue(file, &named(uri));
        Credentials::load(&files(&pair, strangers, operator, clients)).unwrap()
    };
    let replaced = issue("other", "shardkv://c1/group/3");
    assert!(!peer.is_still(&replaced));
    assert!(dial(&replaced, to(), "127.0.0.1").await.1.is_err());
    own.replace(issue("own", "shardkv://c1/group/7"));
    dial(&replaced, to(), "127.0.0.1").await.1.unwrap();
}

#[tokio::test]
async fn requests_of_http_2_pass() {
    let world = World::new();
    let server = world.node("shardkv://c1/group/3");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = async {
        let (socket, _) = listener.accept().await.unwrap();
        let (stream, _) = accept(&server, socket).await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        assert_eq!(request.uri().path(), "/asked");
        respond
            .send_response(hyper::Response::new(()), true)
            .unwrap();
        std::future::poll_fn(|cx| connection.poll_closed(cx))
            .await
            .unwrap();
    };
    let asking = async {
        let uri: Uri = format!("http://localhost:{port}").parse().unwrap();
        let stream = client(&world.peers, None)
            .call(uri)
            .await
            .unwrap()
            .into_inner();
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        let asked = hyper::Request::get("https://localhost/asked")
            .body(())
            .unwrap();
        let (answer, _) = sender.send_request(asked, true).unwrap();
        drop(sender);
        let status = async { answer.await.unwrap().status() };
        let (status, ended) = tokio::join!(status, connection);
        ended.unwrap();
        assert_eq!(status, 200);
    };
    tokio::join!(serving, asking);
}

#[tokio::test]
async fn a_server_without_tls_and_a_caller_without_tls_are_told_so() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let uri: Uri = format!("http://localhost:{}", address.port())
        .parse()
        .unwrap();
    let plain = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut hello = [0; 16];
        socket.read_exact(&mut hello).await.unwrap();
        socket
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
    };
    let mut connector = client(&world.peers, None);
    let ((), dialed) = tokio::join!(plain, connector.call(uri));
    let said = dialed.unwrap_err().to_string();
    assert!(said.contains("doesn't speak TLS"), "{said}");

    let server = world.node("shardkv://c1/group/3");
    let caller = async {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
    };
    let serving = async {
        let (socket, _) = listener.accept().await.unwrap();
        accept(&server, socket).await.err().unwrap()
    };
    let ((), refused) = tokio::join!(caller, serving);
    assert_eq!(refused.reason, Reason::Protocol, "{refused}");
    // A bundle that doesn't exist is named.
    let missing = Files {
        peers_ca: Path::new("missing.pem").to_owned(),
        ..files(
            &world.peers.issue("z", &named("shardkv://c1/group/3")),
            &world.peers,
            &world.operator,
            &world.clients,
        )
    };
    let said = Credentials::load(&missing).unwrap_err().to_string();
    assert!(said.starts_with("missing.pem: "), "{said}");
}
