//! The real program, with the account and the rights that the manifest gives it.
//!
//! The audit log of the API server records all requests of the program. At the end the test compares them with the granted
//! rights: every request must be granted, and every right must be used.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kube::Client;
use serde_json::{Value, json};

use crate::apiserver::{ADMIN, ApiServer};
use crate::definition::{install, namespace};
use crate::keyspaces::Orders;
use crate::objects::{documents, path_of, root};
use crate::raw;
use crate::rounds::small;
use crate::world::World;

/// Time limit of a wait. The longest wait is for a Lease that expires, 20 seconds.
const PATIENCE: Duration = Duration::from_mins(2);
const ACCOUNT: &str = "system:serviceaccount:shardkv-system:shardkv-operator";

/// Starts the program, prints its process id, and kills it when the script's standard input is closed.
const KEEPER: &str = r#"
log=$1
shift
"$@" >"$log" 2>&1 &
echo $!
read -r _ || true
kill -9 $! 2>/dev/null
"#;

/// A running operator.
struct Program {
    keeper: Child,
    id: u32,
    address: SocketAddr,
    log: PathBuf,
}

impl Program {
    fn start(server: &ApiServer, name: &str, token: &str) -> Self {
        let folder = server.folder();
        let kubeconfig = folder.join("kubeconfig");
        fs::write(&kubeconfig, kubeconfig_of(server, token)).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let log = folder.join(format!("{name}.log"));
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "keeper"])
            .args([&log, Path::new(env!("CARGO_BIN_EXE_shardkv-operator"))])
            .args(["run", "--listen", &address.to_string()])
            .env("KUBECONFIG", &kubeconfig)
            .env("POD_NAMESPACE", "shardkv-system")
            .env("POD_NAME", name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut id = String::new();
        let mut output = BufReader::new(keeper.stdout.take().unwrap());
        output.read_line(&mut id).unwrap();
        Self {
            keeper,
            id: id.trim().parse().unwrap(),
            address,
            log,
        }
    }

    /// Returns the HTTP response to a probe, or an empty text if there is none.
    fn http_get(&self, path: &str) -> String {
        let get = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(self.address)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        get().unwrap_or_default()
    }

    fn is_ready(&self) -> bool {
        self.http_get("/readyz").starts_with("HTTP/1.1 200")
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Returns the resident memory in megabytes.
    fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id)).unwrap();
        let line = status.lines().find(|it| it.starts_with("VmRSS:")).unwrap();
        let kilobytes = line.split_whitespace().nth(1).unwrap();
        kilobytes.parse::<u64>().unwrap() / 1024
    }

    /// Sends SIGTERM.
    fn terminate(&self) {
        let sent = Command::new("kill").arg(self.id.to_string()).status();
        assert!(sent.unwrap().success());
    }

    fn runs(&self) -> bool {
        // A zombie process has no command line.
        fs::read(format!("/proc/{}/cmdline", self.id)).is_ok_and(|it| !it.is_empty())
    }

    /// Kills the program by SIGKILL.
    fn kill(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.log.display(), self.log());
        }
    }
}

fn kubeconfig_of(server: &ApiServer, token: &str) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {
            "server": server.config(token).cluster_url.to_string(),
            "certificate-authority": server.certificate(),
        }}],
        "users": [{"name": "test", "user": {"token": token}}],
    });
    config.to_string()
}

/// Waits for a condition. Fails the test after [`PATIENCE`].
async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let end = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Applies `deploy/operator.yaml` without the definition and the Deployment, and returns a token of the account.
async fn granted(admin: &Client) -> String {
    for object in manifest() {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let path = format!(
            "{}?fieldManager=test&fieldValidation=Strict",
            path_of(&object, namespace)
        );
        raw::apply(admin, &path, &object).await.good();
    }
    let account = "/api/v1/namespaces/shardkv-system/serviceaccounts/shardkv-operator";
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let answer = raw::post(admin, &format!("{account}/token"), &request).await;
    answer.good()["status"]["token"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn manifest() -> Vec<Value> {
    let others = ["CustomResourceDefinition", "Deployment"];
    let all = documents(&root().join("deploy/operator.yaml")).into_iter();
    all.map(|(_, object)| object)
        .filter(|object| !others.contains(&object["kind"].as_str().unwrap()))
        .collect()
}

async fn holder(admin: &Client) -> Value {
    let path = "/apis/coordination.k8s.io/v1/namespaces/shardkv-system/leases/shardkv-operator";
    raw::get(admin, path).await.body["spec"].take()
}

#[tokio::test]
async fn the_program_needs_exactly_its_granted_rights() {
    let server = ApiServer::start();
    let admin = server.admin();
    let token = granted(&admin).await;
    starts_takes_over_and_stops(&server, &admin, &token).await;
    // No pods run here, so the remaining transitions run in this process with fake stores and the same rights.
    run_transitions(&server, &admin, &token).await;
    compare(&server, &admin).await;
}

async fn starts_takes_over_and_stops(server: &ApiServer, admin: &Client, token: &str) {
    let mut first = Program::start(server, "first", token);
    until("the first waits", async || {
        first.http_get("/readyz").contains("503") && first.log().contains("waiting: ")
    })
    .await;
    assert!(first.http_get("/livez").starts_with("HTTP/1.1 200"));
    install(admin).await;
    until("the first is ready", async || first.is_ready()).await;
    let first_holds = async || holder(admin).await["holderIdentity"] == "first";
    until("the first has the Lease", first_holds).await;

    namespace(admin, "program", &json!({})).await;
    let world = World::at(server.config(ADMIN), "program", "demo");
    let mut spec = small(1);
    spec["storage"] = json!({"onClusterDeletion": "Delete"});
    world.create(&spec).await;
    for suffix in ["controller", "group-1"] {
        let there = async || world.object("statefulsets", suffix).await.is_some();
        until(suffix, there).await;
    }
    until("the status", async || {
        world.resource().await.unwrap()["status"].is_object()
    })
    .await;
    assert_eq!(world.condition("Available").await.0, "Creating");

    let second = Program::start(server, "second", token);
    until("the second stands by", async || {
        second.is_ready() && second.log().contains("standing by")
    })
    .await;
    assert!(first_holds().await);
    first.kill();
    until("the second has the Lease", async || {
        holder(admin).await["holderIdentity"] == "second"
    })
    .await;
    world.patch_spec(&json!({"groups": 2})).await;
    let there = async || world.object("statefulsets", "group-2").await.is_some();
    until("the second acts", there).await;
    idles(server, admin, &world, &second).await;

    second.terminate();
    until("the second ends", async || !second.runs()).await;
    let free = &holder(admin).await["holderIdentity"];
    assert!(free.is_null() || free == "", "{free}");
    world.delete().await;
    let third = Program::start(server, "third", token);
    until("the third deletes", async || {
        world.resource().await.is_none()
    })
    .await;
    third.terminate();
    until("the third ends", async || !third.runs()).await;
}

/// Checks that an idle operator renews its Lease and writes nothing else.
async fn idles(server: &ApiServer, admin: &Client, world: &World, program: &Program) {
    let reported = async || {
        let resource = world.resource().await.unwrap();
        resource["status"]["observedGeneration"] == resource["metadata"]["generation"]
            && resource["status"]["groups"].as_array().map(Vec::len) == Some(2)
    };
    until("the status is written", reported).await;
    let renewals = async |number: usize| {
        for _ in 0..number {
            let last = holder(admin).await["renewTime"].clone();
            until("the Lease is renewed", async || {
                holder(admin).await["renewTime"] != last
            })
            .await;
        }
    };
    // Earlier requests complete within one renewal.
    renewals(1).await;
    let before = audited(server).len();
    renewals(2).await;
    let asked = audited(server).split_off(before);
    let verbs: BTreeSet<&str> = asked.iter().map(|it| it.verb.as_str()).collect();
    assert!(verbs.contains("list"), "it reads: {verbs:?}");
    let writes: Vec<&ApiRequest> = asked.iter().filter(|it| it.writes()).collect();
    assert!(
        writes.iter().all(|it| it.resource == "leases"),
        "{writes:?}"
    );
    // Unoptimised code is larger.
    let most = if cfg!(debug_assertions) { 60 } else { 30 };
    let memory = program.memory();
    assert!(memory < most, "{memory} MB");
}

async fn run_transitions(server: &ApiServer, admin: &Client, token: &str) {
    namespace(admin, "life", &json!({})).await;
    let mut world = World::at(server.config(ADMIN), "life", "demo");
    world.operated_by(server.config(token));
    let mut spec = small(2);
    spec["storage"] = json!({"onGroupRemoval": "Delete", "onClusterDeletion": "Delete"});
    world.create(&spec).await;
    world.settle().await;
    world
        .patch_spec(&json!({"groups": 3, "image": "other", "options": {"leaseReads": true}}))
        .await;
    world.settle().await;
    world
        .patch_spec(&json!({"groups": 1, "podDisruptionBudget": {"enabled": false}}))
        .await;
    world.settle().await;
    let orders = Orders::new(
        &world,
        &json!({"clusterRef": {"name": "demo"}, "deletionPolicy": "Delete"}),
    )
    .await;
    while orders.resource().await.unwrap()["status"]["id"].is_null() {
        orders.round(&mut world).await;
    }
    orders.delete().await;
    orders.round(&mut world).await;
    assert!(orders.resource().await.is_none());
    // The operator reads a lost object by its name.
    let options = world.options();
    for (plural, suffix) in [("configmaps", options.as_str()), ("services", "client")] {
        let path = world.path_of(plural, suffix);
        raw::delete(&world.admin, &path, &Value::Null).await.good();
    }
    world.settle().await;
    world.delete().await;
    world.settle().await;
    assert!(world.resource().await.is_none());
}

/// A request of the operator, named as in RBAC roles.
#[derive(Debug)]
struct ApiRequest {
    group: String,
    /// Resource with subresource.
    resource: String,
    verb: String,
    code: i64,
}

impl ApiRequest {
    fn writes(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }
}

/// Returns all requests of the account so far.
fn audited(server: &ApiServer) -> Vec<ApiRequest> {
    let log = File::open(server.folder().join("audit.log")).unwrap();
    let mut asked = Vec::new();
    for line in BufReader::new(log).lines() {
        // The last line may be incomplete.
        let Ok(event) = serde_json::from_str::<Value>(&line.unwrap()) else {
            continue;
        };
        let (what, text) = (&event["objectRef"], |value: &Value| {
            value.as_str().unwrap_or_default().to_owned()
        });
        if event["user"]["username"] != ACCOUNT || what.is_null() {
            continue;
        }
        let resource = match what["subresource"].as_str() {
            Some(part) => format!("{}/{part}", text(&what["resource"])),
            None => text(&what["resource"]),
        };
        asked.push(ApiRequest {
            group: text(&what["apiGroup"]),
            resource,
            verb: text(&event["verb"]),
            code: event["responseStatus"]["code"].as_i64().unwrap_or(0),
        });
    }
    asked
}

type Rights = BTreeSet<(String, String, String)>;

/// Returns the rights that the operator's roles grant.
fn rights() -> Rights {
    let own = ["shardkv-operator", "shardkv-operator-leader"];
    let texts = |list: &Value| -> Vec<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|it| it.as_str().unwrap().to_owned()).collect()
    };
    let mut rights = Rights::new();
    for object in manifest() {
        if !own.contains(&object["metadata"]["name"].as_str().unwrap()) {
            continue;
        }
        for rule in object["rules"].as_array().into_iter().flatten() {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    for verb in texts(&rule["verbs"]) {
                        rights.insert((group.clone(), resource.clone(), verb));
                    }
                }
            }
        }
    }
    assert!(rights.len() > 20, "{rights:?}");
    assert!(!format!("{rights:?}").contains('*'), "{rights:?}");
    rights
}

async fn compare(server: &ApiServer, admin: &Client) {
    // Makes a request, so that the log contains all earlier requests.
    raw::get(admin, "/version").await.good();
    let asked = audited(server);
    let denied: Vec<&ApiRequest> = asked.iter().filter(|it| it.code == 403).collect();
    assert!(denied.is_empty(), "denied: {denied:?}");
    let mut used = Rights::new();
    for it in asked {
        // Server-side apply that creates an object needs the right to create, too.
        let creates = it.verb == "patch" && it.code == 201;
        for verb in [Some(it.verb), creates.then(|| "create".to_owned())] {
            let right = verb.map(|verb| (it.group.clone(), it.resource.clone(), verb));
            used.extend(right);
        }
    }
    let rights = rights();
    let beyond: Vec<_> = used.difference(&rights).collect();
    assert!(beyond.is_empty(), "used, but not granted: {beyond:?}");
    let idle: Vec<_> = rights.difference(&used).collect();
    assert!(idle.is_empty(), "granted, but never used: {idle:?}");
}
