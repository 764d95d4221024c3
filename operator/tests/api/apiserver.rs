//! A kube-apiserver with etcd, or another program with etcd's command line, on free loopback ports.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kube::{Client, Config};

use crate::definition;

/// Time limit of the start, which takes about three seconds.
const START: Duration = Duration::from_mins(1);
/// Token of a user with all rights.
pub(crate) const ADMIN: &str = "the-admin";

/// Starts both programs. Kills them and cleans up when its standard input is closed, which also happens when the test's process
/// is killed.
const KEEPER: &str = r#"
folder=$1
"$6" --data-dir="$folder/etcd" --unsafe-no-fsync --listen-client-urls="$4" --advertise-client-urls="$4" \
    --listen-peer-urls="$5" --initial-advertise-peer-urls="$5" --initial-cluster="default=$5" --log-level=warn \
    >"$folder/etcd.log" 2>&1 &
etcd=$!
"$2/kube-apiserver" --etcd-servers="$4" --bind-address=127.0.0.1 --secure-port="$3" --cert-dir="$folder/certificates" \
    --authorization-mode=RBAC --token-auth-file="$folder/tokens" --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file="$folder/accounts.key" --service-account-signing-key-file="$folder/accounts.key" \
    --service-cluster-ip-range=10.96.0.0/16 --endpoint-reconciler-type=none --advertise-address=127.0.0.1 \
    --enable-priority-and-fairness=false \
    --audit-policy-file="$folder/audit-policy" --audit-log-path="$folder/audit.log" --audit-log-mode=blocking \
    >"$folder/kube-apiserver.log" 2>&1 &
api=$!
read -r _ || true
kill -9 "$api" "$etcd"
wait
mv "$folder"/*.log "$folder/.."
rm -rf "$folder"
"#;

/// Audits the requests of service accounts only: see the test of the operator's rights.
const AUDIT_POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- {level: Metadata, userGroups: ['system:serviceaccounts']}
- {level: None}
";

/// A running API server. It stops when the value is dropped, or the test's process ends.
pub(crate) struct ApiServer {
    port: u16,
    folder: PathBuf,
    keeper: Child,
}

impl ApiServer {
    /// Returns the server that all tests share, with the definitions installed.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<ApiServer> = OnceLock::new();
        SHARED.get_or_init(|| {
            let server = Self::start();
            let config = server.config(ADMIN);
            // Each test has its own runtime, which ends before this server.
            on_another_thread(async move {
                definition::install(&Client::try_from(config).unwrap()).await;
            });
            server
        })
    }

    /// Starts a server and waits until it is ready.
    pub(crate) fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = results().join(format!("server-{}-{count}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(
            folder.join("tokens"),
            format!("{ADMIN},admin,0,system:masters\n"),
        )
        .unwrap();
        fs::write(folder.join("audit-policy"), AUDIT_POLICY).unwrap();
        make_key(&folder.join("accounts.key"));
        let [port, etcd, peers] = free_ports();
        let url = |port| format!("http://127.0.0.1:{port}");
        let keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .args([folder.as_path(), &programs()])
            .args([port.to_string(), url(etcd), url(peers)])
            .arg(store())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C must not reach the script directly: it cleans up when its input is closed.
            .process_group(0)
            .spawn()
            .unwrap();
        let server = Self {
            port,
            folder,
            keeper,
        };
        server.wait();
        server
    }

    /// Returns the folder with logs, keys and the audit log.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the configuration of a client with this token.
    pub(crate) fn config(&self, token: &str) -> Config {
        let url = format!("https://127.0.0.1:{}", self.port);
        let mut config = Config::new(url.parse().unwrap());
        config.root_cert_file = Some(self.certificate());
        config.auth_info.token = Some(token.to_owned().into());
        config
    }

    /// Returns the path of the server's certificate, which clients trust.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join("certificates/apiserver.crt")
    }

    /// Returns a client with all rights. It belongs to the runtime in which it is created.
    pub(crate) fn admin(&self) -> Client {
        Client::try_from(self.config(ADMIN)).unwrap()
    }

    fn wait(&self) {
        let until = Instant::now() + START;
        let config = || self.certificate().exists().then(|| self.config(ADMIN));
        while !config().is_some_and(is_ready) {
            let log = || fs::read_to_string(self.folder.join("kube-apiserver.log"));
            assert!(
                Instant::now() < until,
                "no API server after {START:?}; the end of {}: {}",
                self.folder.display(),
                tail(&log().unwrap_or_default())
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn is_ready(config: Config) -> bool {
    on_another_thread(async move {
        let request = hyper::Request::get("/readyz").body(Vec::new()).unwrap();
        // The certificate may be incomplete while the server writes it.
        let Ok(client) = Client::try_from(config) else {
            return false;
        };
        let answer = client.request_text(request);
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await;
        matches!(answer, Ok(Ok(text)) if text == "ok")
    })
}

/// Runs a future to its end on a new thread. May be called within a runtime.
pub(crate) fn on_another_thread<T: Send>(work: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(work)
        });
        thread.join().unwrap()
    })
}

/// Returns the folder for the dumps of failed tests.
pub(crate) fn results() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("api")
}

/// Returns the folder with the programs of Kubernetes.
pub(crate) fn programs() -> PathBuf {
    let cache = std::env::var_os("SHARDKV_KUBE_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/shardkv-kube"),
        PathBuf::from,
    );
    let folder = cache.join("bin");
    for program in ["etcd", "kube-apiserver"] {
        let path = folder.join(program);
        assert!(
            path.exists(),
            "{} is missing: `make test-api` builds it",
            path.display()
        );
    }
    folder
}

/// Returns the program of the API server's store: etcd, or the one that the variable names.
fn store() -> PathBuf {
    std::env::var_os("SHARDKV_API_STORE").map_or_else(|| programs().join("etcd"), PathBuf::from)
}

fn make_key(path: &Path) {
    let made = Command::new("openssl")
        .args([
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
        ])
        .arg(path)
        .status();
    assert!(
        made.is_ok_and(|status| status.success()),
        "openssl, which makes the key of the accounts, failed: is it installed?"
    );
}

fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn tail(text: &str) -> &str {
    let from = text.len().saturating_sub(2_000);
    text.get(text.ceil_char_boundary(from)..)
        .unwrap_or_default()
}
