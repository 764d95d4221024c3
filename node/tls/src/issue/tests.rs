use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, Error, RootCertStore};

use super::*;

const DAY: Duration = Duration::from_hours(24);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_hours(500_000)
}

fn authority() -> Authority {
    Authority::make("peers of c1", Validity::root(now())).unwrap()
}

fn member() -> Request {
    Request {
        dns_names: vec!["*.store.team-a.svc".into(), "localhost".into()],
        addresses: vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
        ..Request::member(&"shardkv://c1/group/1".parse().unwrap())
    }
}

fn issue(authority: &Authority, request: &Request) -> CertificateDer<'static> {
    let issued = authority.issue(request, Validity::starting(now(), 90 * DAY));
    certificate(&issued.unwrap().certificate)
}

fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn anchors(authority: &Authority) -> Arc<RootCertStore> {
    let mut anchors = RootCertStore::empty();
    anchors.add(certificate(authority.certificate())).unwrap();
    Arc::new(anchors)
}

fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(SystemTime::UNIX_EPOCH).unwrap())
}

/// Verifies a certificate as a server does.
fn as_client(
    authority: &Authority,
    certificate: &CertificateDer<'_>,
    at: SystemTime,
) -> Result<(), Error> {
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(anchors(authority), provider);
    let verifier = verifier.build().unwrap();
    let result = verifier.verify_client_cert(certificate, &[], unix(at));
    result.map(drop)
}

/// Verifies a certificate as a client does.
fn as_server(
    authority: &Authority,
    certificate: &CertificateDer<'_>,
    name: &str,
) -> Result<(), Error> {
    let provider = Arc::new(default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(anchors(authority), provider);
    let name = ServerName::try_from(name).unwrap();
    let verifier = verifier.build().unwrap();
    let result = verifier.verify_server_cert(certificate, &[], &name, &[], unix(now()));
    result.map(drop)
}

#[test]
fn a_member_serves_and_dials() {
    let authority = authority();
    let member = issue(&authority, &member());
    assert_eq!(as_client(&authority, &member, now()), Ok(()));
    for name in ["a-0.store.team-a.svc", "localhost", "127.0.0.1", "::1"] {
        assert_eq!(as_server(&authority, &member, name), Ok(()), "{name}");
    }
    for name in ["a-0.other.team-a.svc", "store.team-a.svc", "127.0.0.2"] {
        assert!(as_server(&authority, &member, name).is_err(), "{name}");
    }
}

#[test]
fn operators_and_clients_only_dial() {
    let authority = authority();
    let client = Request {
        uris: vec!["spiffe://example/team-a".into()],
        dns_names: vec!["localhost".into()],
        ..Request::client("team-a")
    };
    for request in [Request::operator("c1"), client] {
        let certificate = issue(&authority, &request);
        assert_eq!(as_client(&authority, &certificate, now()), Ok(()));
        assert!(as_server(&authority, &certificate, "localhost").is_err());
    }
    assert_eq!(Request::operator("c1").uris, ["shardkv://c1/operator"]);
}

#[test]
fn a_certificate_is_valid_in_its_time_only() {
    let authority = authority();
    let member = issue(&authority, &member());
    let minute = Duration::from_mins(1);
    let hour = 60 * minute;
    for (at, expected) in [
        (now() - hour, None),
        (now() - hour - minute, Some(CertificateError::NotValidYet)),
        (now() + 90 * DAY, None),
        (now() + 90 * DAY + minute, Some(CertificateError::Expired)),
    ] {
        let refused = match as_client(&authority, &member, at) {
            Err(Error::InvalidCertificate(why)) => Some(why),
            other => {
                assert_eq!(other, Ok(()));
                None
            }
        };
        // rustls adds the times to the reason.
        let kind = |why: &CertificateError| match why {
            CertificateError::ExpiredContext { .. } => CertificateError::Expired,
            CertificateError::NotValidYetContext { .. } => CertificateError::NotValidYet,
            other => other.clone(),
        };
        assert_eq!(refused.as_ref().map(kind), expected, "{at:?}");
    }
}

#[test]
fn an_authority_is_read_as_it_was_written() {
    let made = authority();
    let read = Authority::from_pem(made.certificate(), &made.key()).unwrap();
    assert_eq!(read.certificate(), made.certificate());
    assert_eq!(read.key(), made.key());
    let member = issue(&read, &member());
    assert_eq!(as_client(&made, &member, now()), Ok(()));
    assert!(
        as_client(&authority(), &member, now()).is_err(),
        "another key"
    );
}

#[test]
fn what_is_no_authority_is_refused() {
    let (one, other) = (authority(), authority());
    for (certificate, key, expected) in [
        (one.certificate(), other.key(), IssueError::OtherKey),
        ("", one.key(), IssueError::Certificate),
        (&one.key(), one.key(), IssueError::Certificate),
        (one.certificate(), String::new(), IssueError::Key),
        (
            one.certificate(),
            one.certificate().to_owned(),
            IssueError::Key,
        ),
    ] {
        let refused = Authority::from_pem(certificate, &key).unwrap_err();
        assert_eq!(refused, expected);
    }
}

#[test]
fn names_that_cant_stand_in_a_certificate_are_refused() {
    let authority = authority();
    let validity = Validity::starting(now(), DAY);
    let one = |name: &str| vec![name.to_owned()];
    let long = "n".repeat(65);
    for request in [
        Request::client(""),
        Request::client("k\u{f6}ln"),
        Request::client(&long),
        Request {
            uris: one("https://k\u{f6}ln"),
            ..Request::client("a")
        },
        Request {
            dns_names: one("k\u{f6}ln"),
            ..Request::client("a")
        },
        Request {
            dns_names: one("a..b"),
            ..Request::client("a")
        },
    ] {
        let refused = authority.issue(&request, validity);
        assert!(matches!(refused, Err(IssueError::Name(_))), "{request:?}");
    }
    let backwards = Validity {
        not_before: now(),
        not_after: now(),
    };
    let refused = authority.issue(&Request::client("a"), backwards);
    assert_eq!(refused, Err(IssueError::Validity));
}

#[test]
fn keys_are_for_rustls_and_never_shown() {
    let authority = authority();
    let issued = authority.issue(&Request::client("a"), Validity::starting(now(), DAY));
    let issued = issued.unwrap();
    for key in [&issued.key, &authority.key()] {
        let der = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        assert!(
            default_provider()
                .key_provider
                .load_private_key(der)
                .is_ok()
        );
    }
    for shown in [format!("{issued:?}"), format!("{authority:?}")] {
        assert!(!shown.contains("PRIVATE KEY"), "{shown}");
    }
}
