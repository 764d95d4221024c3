//! Users, roles and permissions of a keyspace, by etcd's own messages: on each node, while a shard moves, and under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use api::etcd::{authpb, etcdserverpb as pb};
use pb::auth_client::AuthClient;
use pb::kv_client::KvClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::watch_client::WatchClient;
use pb::watch_request::RequestUnion;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::cluster::{Cluster, Setup};
use crate::keyspaces::{all, create, named, put};
use crate::wait::{holds, until};
use crate::watches::{Stream, watch};
use crate::world::{World, channel};

const NAME: &str = "tenant-a";
const EMPTY: &str = "etcdserver: user name is empty";
const DENIED: &str = "etcdserver: permission denied";
const NO_TOKEN: &str = "etcdserver: invalid auth token";

/// A client of the keyspace on one node.
#[derive(Clone)]
struct Client {
    channel: Channel,
    token: Option<String>,
}

impl Client {
    fn anonymous(channel: &Channel) -> Self {
        Self {
            channel: channel.clone(),
            token: None,
        }
    }

    /// Logs in as a user.
    async fn login(channel: &Channel, name: &str, password: &str) -> Result<Self, Status> {
        let request = pb::AuthenticateRequest {
            name: name.to_owned(),
            password: password.to_owned(),
        };
        let mut auth = AuthClient::new(channel.clone());
        let answer = auth.authenticate(named(NAME, request)).await?;
        Ok(Self {
            channel: channel.clone(),
            token: Some(answer.into_inner().token),
        })
    }

    /// The same user on another node.
    fn through(&self, channel: &Channel) -> Self {
        Self {
            channel: channel.clone(),
            token: self.token.clone(),
        }
    }

    fn to<T>(&self, message: T) -> Request<T> {
        let mut request = named(NAME, message);
        if let Some(token) = &self.token {
            let token = token.parse().unwrap();
            request.metadata_mut().insert("token", token);
        }
        request
    }

    fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(self.channel.clone())
    }

    async fn put(&self, key: &str) -> Result<(), Status> {
        let mut kv = KvClient::new(self.channel.clone());
        kv.put(self.to(put(key, "v"))).await.map(|_| ())
    }

    async fn range(&self, request: pb::RangeRequest) -> Result<i64, Status> {
        let mut kv = KvClient::new(self.channel.clone());
        let answer = kv.range(self.to(request)).await?;
        Ok(answer.into_inner().count)
    }

    async fn add_user(&self, name: &str) -> Result<(), Status> {
        let request = pb::AuthUserAddRequest {
            name: name.to_owned(),
            password: format!("{name}'s"),
            ..pb::AuthUserAddRequest::default()
        };
        self.auth().user_add(self.to(request)).await.map(|_| ())
    }

    async fn grant_role(&self, user: &str, role: &str) {
        let request = pb::AuthUserGrantRoleRequest {
            user: user.to_owned(),
            role: role.to_owned(),
        };
        let granted = self.auth().user_grant_role(self.to(request)).await;
        granted.unwrap();
    }

    async fn delete_user(&self, name: &str) {
        let name = name.to_owned();
        let request = pb::AuthUserDeleteRequest { name };
        let deleted = self.auth().user_delete(self.to(request)).await;
        deleted.unwrap();
    }

    /// Adds a user who reads and writes the keys from `a` to `b`.
    async fn add_ann(&self) {
        self.add_user("ann").await.unwrap();
        let role = pb::AuthRoleAddRequest {
            name: "some".to_owned(),
        };
        self.auth().role_add(self.to(role)).await.unwrap();
        let permission = pb::AuthRoleGrantPermissionRequest {
            name: "some".to_owned(),
            perm: Some(authpb::Permission {
                perm_type: 2,
                key: "a".into(),
                range_end: "b".into(),
            }),
        };
        let request = self.to(permission);
        let granted = self.auth().role_grant_permission(request).await;
        granted.unwrap();
        self.grant_role("ann", "some").await;
    }

    /// Opens a stream with one watch.
    async fn watch(&self, request: pb::WatchCreateRequest) -> Stream {
        let (requests, receiver) = mpsc::channel(8);
        let create = pb::WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(request)),
        };
        requests.send(create).await.unwrap();
        let mut client = WatchClient::new(self.channel.clone());
        let opened = client.watch(self.to(ReceiverStream::new(receiver))).await;
        Stream::of(requests, opened.unwrap().into_inner())
    }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, text: &str) {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, text));
}

fn one(key: &str) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.to_owned().into(),
        ..pb::RangeRequest::default()
    }
}

/// Enables authentication with `root` and `ann`, and returns `root`.
async fn enable(channel: &Channel) -> Client {
    let nobody = Client::anonymous(channel);
    nobody.add_user("root").await.unwrap();
    nobody.grant_role("root", "root").await;
    nobody.add_ann().await;
    let request = nobody.to(pb::AuthEnableRequest {});
    nobody.auth().auth_enable(request).await.unwrap();
    Client::login(channel, "root", "root's").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_have_their_rights_on_each_node_of_a_group() {
    let cluster = Cluster::start(Setup::of(3)).await;
    let mut through = Vec::new();
    for node in 0..3 {
        through.push(channel(&cluster, node).await);
    }
    create(&through[0], NAME).await;
    let root = enable(&through[1]).await;
    let ann = Client::login(&through[2], "ann", "ann's").await.unwrap();
    root.put("x").await.unwrap();
    let failed = "etcdserver: authentication failed, invalid user ID or password";
    for channel in &through {
        // A token is good on each node, whichever gave it.
        let (root, ann) = (root.through(channel), ann.through(channel));
        let nobody = Client::anonymous(channel);
        for (name, password) in [("ann", "root's"), ("bob", "bob's")] {
            let login = Client::login(channel, name, password).await;
            refused(login.map(|_| ()), Code::InvalidArgument, failed);
        }
        ann.put("a1").await.unwrap();
        refused(ann.put("b").await, Code::PermissionDenied, DENIED);
        refused(nobody.put("a1").await, Code::InvalidArgument, EMPTY);
        assert_eq!(ann.range(one("a1")).await.unwrap(), 1);
        refused(ann.range(one("x")).await, Code::PermissionDenied, DENIED);
        refused(ann.range(all()).await, Code::PermissionDenied, DENIED);
        refused(nobody.range(all()).await, Code::InvalidArgument, EMPTY);
        assert!(root.range(all()).await.unwrap() >= 2);
        let forged = Client {
            token: Some("00".repeat(50)),
            ..nobody.clone()
        };
        for answer in [
            forged.put("a1").await,
            forged.range(one("a1")).await.map(|_| ()),
        ] {
            refused(answer, Code::Unauthenticated, NO_TOKEN);
        }
        upkeep(&root, &ann, &nobody).await;
    }
    // Whoever is deleted or gets another password has no token any more.
    let change = pb::AuthUserChangePasswordRequest {
        name: "ann".to_owned(),
        password: "new".to_owned(),
        ..pb::AuthUserChangePasswordRequest::default()
    };
    let changed = root.auth().user_change_password(root.to(change)).await;
    changed.unwrap();
    refused(ann.put("a1").await, Code::Unauthenticated, NO_TOKEN);
    let ann = Client::login(&through[0], "ann", "new").await.unwrap();
    ann.put("a1").await.unwrap();
    root.delete_user("ann").await;
    refused(ann.put("a1").await, Code::Unauthenticated, NO_TOKEN);
    // Without authentication, everybody may do everything, and a token is ignored.
    let disable = root.to(pb::AuthDisableRequest {});
    root.auth().auth_disable(disable).await.unwrap();
    for client in [&root, &ann, &Client::anonymous(&through[1])] {
        client.put("b").await.unwrap();
        assert!(client.range(all()).await.unwrap() >= 3);
    }
}

/// The calls that need another right than those to keys.
async fn upkeep(root: &Client, ann: &Client, nobody: &Client) {
    let status = async |client: &Client| {
        let mut upkeep = MaintenanceClient::new(client.channel.clone());
        upkeep.status(client.to(pb::StatusRequest {})).await
    };
    status(ann).await.unwrap();
    refused(status(nobody).await, Code::InvalidArgument, EMPTY);
    let defragment = async |client: &Client| {
        let mut upkeep = MaintenanceClient::new(client.channel.clone());
        upkeep.defragment(client.to(pb::DefragmentRequest {})).await
    };
    defragment(root).await.unwrap();
    refused(defragment(ann).await, Code::PermissionDenied, DENIED);
    let compact = async |client: &Client| {
        let mut kv = KvClient::new(client.channel.clone());
        kv.compact(client.to(pb::CompactionRequest::default()))
            .await
    };
    refused(compact(ann).await, Code::PermissionDenied, DENIED);
    refused(compact(nobody).await, Code::InvalidArgument, EMPTY);
    let grant = async |client: &Client| {
        let mut leases = LeaseClient::new(client.channel.clone());
        let request = pb::LeaseGrantRequest { ttl: 60, id: 0 };
        let granted = leases.lease_grant(client.to(request)).await?;
        Ok::<_, Status>(granted.into_inner().id)
    };
    refused(grant(nobody).await, Code::InvalidArgument, EMPTY);
    let id = grant(root).await.unwrap();
    let mut kv = KvClient::new(root.channel.clone());
    let attached = pb::PutRequest {
        lease: id,
        ..put("x", "v")
    };
    kv.put(root.to(attached)).await.unwrap();
    let mut leases = LeaseClient::new(ann.channel.clone());
    let revoked = leases
        .lease_revoke(ann.to(pb::LeaseRevokeRequest { id }))
        .await;
    refused(revoked, Code::PermissionDenied, DENIED);
    let keys = pb::LeaseTimeToLiveRequest { id, keys: true };
    let told = leases.lease_time_to_live(ann.to(keys)).await;
    refused(told, Code::PermissionDenied, DENIED);
    let request = ann.to(pb::AuthUserListRequest {});
    let users = ann.auth().user_list(request).await;
    refused(users, Code::PermissionDenied, DENIED);
    let own = pb::AuthUserGetRequest {
        name: "ann".to_owned(),
    };
    let own = ann.auth().user_get(ann.to(own)).await.unwrap();
    assert_eq!(own.into_inner().roles, ["some"]);

    let mut foreign = ann.watch(watch("b", "", 0)).await;
    let answer = foreign.next().await.unwrap();
    assert!(answer.created && answer.canceled);
    let reason = format!("rpc error: code = PermissionDenied desc = {DENIED}");
    assert_eq!(answer.cancel_reason, reason);
    let mut own = ann.watch(watch("a", "b", 0)).await;
    let created = own.next().await.unwrap();
    assert!(created.created && !created.canceled);
    ann.put("a2").await.unwrap();
    assert_eq!(own.next().await.unwrap().events.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_ends_when_its_user_may_not_read_its_keys_any_more() {
    let cluster = Cluster::start(Setup::of(3)).await;
    let leader = channel(&cluster, cluster.leader().await).await;
    create(&leader, NAME).await;
    let root = enable(&leader).await;
    let follower = channel(&cluster, cluster.follower().await).await;
    let ann = Client::login(&follower, "ann", "ann's").await.unwrap();
    let mut watched = ann.watch(watch("a", "b", 0)).await;
    assert!(watched.next().await.unwrap().created);
    let revoke = pb::AuthUserRevokeRoleRequest {
        name: "ann".to_owned(),
        role: "some".to_owned(),
    };
    let revoked = root.auth().user_revoke_role(root.to(revoke)).await;
    revoked.unwrap();
    root.put("a").await.unwrap();
    let answer = watched.next().await.unwrap();
    assert!(answer.canceled && answer.events.is_empty(), "{answer:?}");
    assert!(answer.cancel_reason.contains(DENIED), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_tokens_move_with_their_shard() {
    let world = World::start(2, 1).await;
    let at_controller = channel(&world.controllers, 0).await;
    let at_one = channel(world.group(1), 0).await;
    let at_two = channel(world.group(2), 0).await;
    world.join(1, at_controller.clone()).await;
    world.settled().await;
    create(&at_controller, NAME).await;
    enable(&at_controller).await;
    let ann = Client::login(&at_one, "ann", "ann's").await.unwrap();
    let through = [at_controller.clone(), at_one, at_two];
    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let (ann, stop, through) = (ann.clone(), Arc::clone(&stop), through.clone());
        tokio::spawn(async move {
            let mut puts = 0;
            while !stop.load(Ordering::Relaxed) {
                for channel in &through {
                    let ann = ann.through(channel);
                    ann.put("a").await.unwrap();
                    refused(ann.put("b").await, Code::PermissionDenied, DENIED);
                    puts += 1;
                }
            }
            puts
        })
    };
    world.join(2, at_controller.clone()).await;
    world.settled().await;
    // Now it leaves group 1 for certain.
    world.leave(1, at_controller).await;
    world.settled().await;
    stop.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 0);
    for channel in &through {
        let ann = ann.through(channel);
        assert_eq!(ann.range(one("a")).await.unwrap(), 1);
        let nobody = Client::anonymous(channel);
        refused(nobody.range(one("a")).await, Code::InvalidArgument, EMPTY);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_of_a_deleted_user_is_carried_out_after_the_answer() {
    let cluster = Cluster::start(Setup::of(3)).await;
    let mut through = Vec::new();
    for node in 0..3 {
        through.push(channel(&cluster, node).await);
    }
    create(&through[0], NAME).await;
    let root = enable(&through[0]).await;
    let ann = Client::login(&through[0], "ann", "ann's").await.unwrap();
    let written = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for channel in &through {
        let (ann, written) = (ann.through(channel), Arc::clone(&written));
        writers.push(tokio::spawn(async move {
            loop {
                match ann.put("a").await {
                    Ok(()) => written.fetch_add(1, Ordering::Relaxed),
                    Err(status) => return status,
                };
            }
        }));
    }
    until("the user writes", async || {
        let count = written.load(Ordering::Relaxed);
        holds(count > 30, format!("{count}"))
    })
    .await;
    root.delete_user("ann").await;
    let version = async || {
        let mut kv = KvClient::new(root.channel.clone());
        let answer = kv.range(root.to(one("a"))).await.unwrap().into_inner();
        answer.kvs[0].version
    };
    let at_deletion = version().await;
    for writer in writers {
        let status = writer.await.unwrap();
        let refusals = [
            NO_TOKEN,
            DENIED,
            "etcdserver: revision of auth store is old",
        ];
        assert!(refusals.contains(&status.message()), "{status:?}");
    }
    assert_eq!(version().await, at_deletion);
}
