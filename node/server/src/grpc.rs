//! The gRPC server: all services on one port, with every bound set.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use api::etcd::etcdserverpb::auth_server::AuthServer;
use api::etcd::etcdserverpb::cluster_server::ClusterServer;
use api::etcd::etcdserverpb::kv_server::KvServer as EtcdKvServer;
use api::etcd::etcdserverpb::lease_server::LeaseServer;
use api::etcd::etcdserverpb::maintenance_server::MaintenanceServer;
use api::etcd::etcdserverpb::watch_server::WatchServer;
use api::etcd::v3electionpb::election_server::ElectionServer;
use api::etcd::v3lockpb::lock_server::LockServer;
use api::v1::admin_server::AdminServer;
use api::v1::handoff_server::HandoffServer;
use api::v1::keyspaces_server::KeyspacesServer;
use api::v1::kv_server::{KvServer, SERVICE_NAME as KV};
use api::v1::raft_server::RaftServer;
use api::v1::shardctrler_server::ShardctrlerServer;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};
use tower::util::MapResponseLayer;

use crate::files;
use crate::gateway::GatewayLayer;
use crate::lifecycle::Lifecycle;
use crate::listen::{self, Bounds, Listener};
use crate::metrics::Metrics;
use crate::options::{Limits, MAX_FRAME_BYTES, Network};
use crate::progress::Progress;
use crate::reserve::calls::ReserveLayer;
use crate::services::admin::AdminService;
use crate::services::ctrl::CtrlService;
use crate::services::etcd;
use crate::services::etcd::concurrency::Concurrency;
use crate::services::etcd::edge::EtcdLayer;
use crate::services::etcd::election::ElectionService;
use crate::services::etcd::keepalive::KeepAlives;
use crate::services::etcd::lease::LeaseService;
use crate::services::etcd::lock::LockService;
use crate::services::etcd::serve::EtcdServices;
use crate::services::etcd::watch::{WatchService, WatchServices};
use crate::services::handoff::HandoffService;
use crate::services::keyspaces::KeyspacesService;
use crate::services::kv::KvService;
use crate::services::peers::PeerService;
use crate::services::{typed, unfetched};

/// The maximum size of small requests and answers.
const SMALL_MESSAGE_BYTES: usize = 64 << 10;
/// The maximum size of a request of etcd's clients. As in etcd, there is some room above what a keyspace takes, so that the keyspace
/// refuses what is a little too large.
const ETCD_MESSAGE_BYTES: usize = 2 << 20;
/// The factor by which a server waits longer for silent callers than callers wait for a silent server.
const CALLERS_PATIENCE: u32 = 3;
/// The pause between two looks at the replica's thread.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The service names in `grpc.health.v1`: the whole process, and the service that applications use.
const HEALTH_NAMES: [&str; 2] = ["", KV];

/// The services for clients of etcd.
pub(crate) struct AllEtcdServices {
    pub(crate) etcd: Arc<EtcdServices>,
    pub(crate) watch: Arc<WatchServices>,
    pub(crate) keep_alives: Arc<KeepAlives>,
}

/// The services of a node, and the bounds of their server.
pub(crate) struct Services {
    pub(crate) kv: KvService,
    pub(crate) etcd: AllEtcdServices,
    pub(crate) ctrl: CtrlService,
    pub(crate) handoff: HandoffService,
    pub(crate) admin: AdminService,
    pub(crate) peers: PeerService,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) limits: Limits,
    pub(crate) network: Network,
}

/// Serves until `stop` resolves and all connections are closed.
pub(crate) async fn serve(
    services: Services,
    listeners: Vec<Listener>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let Services {
        kv,
        etcd,
        ctrl,
        handoff,
        admin,
        peers,
        lifecycle,
        progress,
        metrics,
        limits,
        network,
    } = services;
    let bounds = Bounds {
        most: limits.max_connections,
        reserved: files::reserved_connections(limits.max_connections),
        patience: network.handshake_timeout,
        probe_every: network.keepalive_interval,
        probe_patience: network.keepalive_timeout * CALLERS_PATIENCE,
    };
    let connections = listen::connections(listeners, bounds, Arc::clone(&metrics));
    let kv = KvServer::new(kv)
        .max_decoding_message_size(limits.max_request_bytes)
        // A page ends after the pair that reaches the size limit.
        .max_encoding_message_size(usize::MAX);
    let AllEtcdServices {
        etcd,
        watch,
        keep_alives,
    } = etcd;
    let (lock, election) = concurrency_servers(&etcd, &watch);
    let watch = watch_server(watch);
    let lease = lease_server(&etcd, keep_alives);
    let keyspaces = KeyspacesServer::new(KeyspacesService(Arc::clone(&etcd)))
        .max_decoding_message_size(SMALL_MESSAGE_BYTES);
    let etcd_kv = EtcdKvServer::new(etcd::kv::KvService(Arc::clone(&etcd)))
        .max_decoding_message_size(ETCD_MESSAGE_BYTES)
        // Reads have a budget of their own.
        .max_encoding_message_size(usize::MAX);
    let maintenance = etcd::maintenance::MaintenanceService(Arc::clone(&etcd));
    let maintenance =
        MaintenanceServer::new(maintenance).max_decoding_message_size(SMALL_MESSAGE_BYTES);
    let cluster = ClusterServer::new(etcd::cluster::ClusterService(Arc::clone(&etcd)))
        .max_decoding_message_size(SMALL_MESSAGE_BYTES);
    let auth = AuthServer::new(etcd::auth::AuthService(etcd))
        .max_decoding_message_size(SMALL_MESSAGE_BYTES);
    let admin = AdminServer::new(admin).max_decoding_message_size(SMALL_MESSAGE_BYTES);
    let ctrl = ShardctrlerServer::new(ctrl)
        .max_decoding_message_size(limits.max_request_bytes)
        .max_encoding_message_size(usize::MAX);
    let handoff = HandoffServer::new(handoff)
        .max_decoding_message_size(SMALL_MESSAGE_BYTES)
        // A chunk ends after the pair that reaches the size limit.
        .max_encoding_message_size(usize::MAX);
    let peers = RaftServer::new(peers).max_decoding_message_size(MAX_FRAME_BYTES);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(api::DESCRIPTORS)
        .register_encoded_file_descriptor_set(api::etcd::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .context("the reflection service can't be built")?;
    let (reporter, health) = health_reporter();
    let health_task = tokio::spawn(report_health(lifecycle, progress, reporter));
    let result = Server::builder()
        // For the gateway.
        .accept_http1(true)
        .max_concurrent_streams(limits.max_streams_per_connection)
        .initial_stream_window_size(network.stream_window_bytes)
        .initial_connection_window_size(network.connection_window_bytes)
        .http2_keepalive_interval(Some(network.keepalive_interval))
        // A caller must soon notice that the server is gone. For the server a silent caller only costs memory, and the
        // caller may be a program that was paused.
        .http2_keepalive_timeout(Some(network.keepalive_timeout * CALLERS_PATIENCE))
        .http2_max_header_list_size(16 << 10)
        .http2_max_pending_accept_reset_streams(Some(limits.max_pending_resets))
        // Without a number the library sets no limit.
        .http2_max_local_error_reset_streams(Some(limits.max_stream_errors))
        .layer(ReserveLayer {
            max_connections: limits.max_connections,
            metrics,
        })
        .layer(MapResponseLayer::new(unfetched::response))
        .layer(GatewayLayer)
        .layer(MapResponseLayer::new(typed::response::<Body>))
        .layer(EtcdLayer)
        .add_service(kv)
        .add_service(keyspaces)
        .add_service(etcd_kv)
        .add_service(watch)
        .add_service(lease)
        .add_service(maintenance)
        .add_service(cluster)
        .add_service(auth)
        .add_service(lock)
        .add_service(election)
        .add_service(peers)
        .add_service(ctrl)
        .add_service(handoff)
        .add_service(admin)
        .add_service(health)
        .add_service(reflection)
        .serve_with_incoming_shutdown(connections, stop)
        .await;
    health_task.abort();
    result.context("the gRPC server failed")
}

fn watch_server(services: Arc<WatchServices>) -> WatchServer<WatchService> {
    WatchServer::new(WatchService(services))
        .max_decoding_message_size(ETCD_MESSAGE_BYTES)
        // The events of one revision are one message.
        .max_encoding_message_size(usize::MAX)
}

/// Returns the services of locks and elections.
fn concurrency_servers(
    etcd: &Arc<EtcdServices>,
    watch: &Arc<WatchServices>,
) -> (LockServer<LockService>, ElectionServer<ElectionService>) {
    let concurrency = Concurrency {
        etcd: Arc::clone(etcd),
        watch: Arc::clone(watch),
    };
    let lock = LockServer::new(LockService(concurrency.clone()));
    let election = ElectionServer::new(ElectionService(concurrency));
    (
        lock.max_decoding_message_size(ETCD_MESSAGE_BYTES),
        election.max_decoding_message_size(ETCD_MESSAGE_BYTES),
    )
}

/// Returns the service of leases. A list of all leases may be long.
fn lease_server(etcd: &Arc<EtcdServices>, streams: Arc<KeepAlives>) -> LeaseServer<LeaseService> {
    let etcd = Arc::clone(etcd);
    LeaseServer::new(LeaseService { etcd, streams })
        .max_decoding_message_size(SMALL_MESSAGE_BYTES)
        .max_encoding_message_size(usize::MAX)
}

/// Reports the state of `grpc.health.v1`: serving while the node is a member of a group that has a leader, and its replica's
/// thread doesn't hang.
async fn report_health(
    lifecycle: Arc<Lifecycle>,
    progress: Arc<Progress>,
    reporter: HealthReporter,
) {
    let mut view = lifecycle.watch();
    let mut last = None;
    loop {
        let serving = view.borrow_and_update().is_serving() && progress.check_ready().is_ok();
        if last != Some(serving) {
            last = Some(serving);
            let status = if serving {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            for name in HEALTH_NAMES {
                reporter.set_service_status(name, status).await;
            }
        }
        // A thread that hangs changes nothing, so look at it now and then.
        if let Ok(Err(_)) = timeout(LOOK_EVERY, view.changed()).await {
            return;
        }
    }
}
