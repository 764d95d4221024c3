//! The parts of a node, put together.
//!
//! This is the only file that knows all handles. Every other file takes the handles that it uses.

use std::sync::Arc;
use std::time::Duration;

use shardkv::GroupKind;
use shardkv_client::ClientOptions;
use storage::{Disk, StateReads};
use tokio::sync::oneshot;

use crate::admission::{Admission, all_pages_window_bytes, page_window_bytes};
use crate::configs::follow::Follower;
use crate::configs::kept;
use crate::convert::kv::Checks;
use crate::exit::Fatal;
use crate::forward::Forwarder;
use crate::grpc::{AllEtcdServices, Services};
use crate::identity::Identity;
use crate::inbox::Inbox;
use crate::keyspaces::Followers;
use crate::keyspaces::clearing::Clearer;
use crate::keyspaces::hub::Hub;
use crate::keyspaces::leader_tasks::{self, LeaderTasks};
use crate::keyspaces::lessor::Lessor;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::metrics::watch::ShardWatch;
use crate::mover::{self, RoomWatch, SharedMover};
use crate::options::Options;
use crate::peers::Peers;
use crate::progress::Progress;
use crate::readiness::ReadinessProbe;
use crate::reads::Readers;
use crate::replica_handle::ReplicaHandle;
use crate::replies::Deliveries;
use crate::reserve::calls::NODE;
use crate::routing::Routing;
use crate::services::admin::AdminService;
use crate::services::all_groups::AllGroups;
use crate::services::ctrl::{CtrlService, Cuts, Proofs};
use crate::services::etcd::keepalive::KeepAlives;
use crate::services::etcd::known::Known;
use crate::services::etcd::naming::Naming;
use crate::services::etcd::passwords::Passwords;
use crate::services::etcd::serve::EtcdServices;
use crate::services::etcd::store::{self, Keyspaces};
use crate::services::etcd::watch::{self, WatchServices};
use crate::services::export::Exporter;
use crate::services::handoff::{self, HandoffService};
use crate::services::items::Items;
use crate::services::kv::KvService;
use crate::services::peers::{self, PeerService};
use crate::services::scan::{self, Scanner};
use crate::services::watch::Watches;
use crate::transport::Transport;
use crate::{disk, runtime};

/// The handles of a node, each of which owns one concern.
pub(crate) struct Parts {
    pub(crate) options: Options,
    pub(crate) lifecycle: Arc<Lifecycle>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) routing: Arc<Routing>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) deliveries: Arc<Deliveries>,
    pub(crate) replica: Arc<ReplicaHandle>,
    pub(crate) readiness: Arc<ReadinessProbe>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) forwarder: Arc<Forwarder>,
    mover: Arc<SharedMover>,
    pub(crate) followers: Arc<Followers>,
    pub(crate) transport: Arc<Transport>,
}

impl Parts {
    /// Creates the handles. `address` is the node's advertised address; `failure` gets the first error that ends the process.
    pub(crate) fn new(
        options: Options,
        address: String,
        identity: Identity,
        (metrics, progress): (Arc<Metrics>, Arc<Progress>),
        failure: oneshot::Sender<Fatal>,
    ) -> Self {
        let identity = Arc::new(identity);
        let lifecycle = Arc::new(Lifecycle::new(identity.node(), failure));
        let admission = Arc::new(Admission::new(&options.limits, options.request_timeout));
        let inbox = Arc::new(Inbox::default());
        let kind = options.genesis.kind;
        let routing = Arc::new(Routing::new(
            kind,
            Arc::clone(&identity),
            Arc::clone(&metrics),
        ));
        if kind == GroupKind::Shards
            && let Some(known) = kept::read(&options.data_dir)
        {
            routing.configs().replace(known.cluster, known.config);
        }
        let peers = Arc::new(Peers::new(
            identity,
            address,
            options.peers.clone(),
            Arc::clone(&lifecycle),
        ));
        let replica = Arc::new(ReplicaHandle::new(
            Arc::clone(&lifecycle),
            Arc::clone(&peers),
            Arc::clone(&admission),
            Arc::clone(&inbox),
            options.request_timeout,
        ));
        let readiness = Arc::new(ReadinessProbe::new(
            Arc::clone(&lifecycle),
            Arc::clone(&routing),
            Arc::clone(&progress),
        ));
        let forwarder = Arc::new(Forwarder::new(
            &options,
            Arc::clone(&lifecycle),
            Arc::clone(&peers),
            Arc::clone(&routing),
            Arc::clone(&metrics),
        ));
        let transport = Arc::new(Transport::new(
            Arc::clone(&lifecycle),
            Arc::clone(&peers),
            Arc::clone(&inbox),
            Arc::clone(&metrics),
            options.network,
        ));
        let followers = Arc::new(Followers {
            hub: Arc::new(Hub::new(routing.watch_ownership())),
            lessor: Arc::new(Lessor::new(
                routing.watch_ownership(),
                election_timeout(&options),
            )),
            clearer: Arc::new(Clearer::new()),
        });
        Self {
            options,
            lifecycle,
            peers,
            routing,
            admission,
            metrics,
            inbox,
            deliveries: Arc::new(Deliveries::default()),
            replica,
            readiness,
            progress,
            forwarder,
            mover: Arc::new(SharedMover::default()),
            followers,
            transport,
        }
    }

    /// Creates the gRPC services.
    pub(crate) fn services(&self, disk: Disk, state: StateReads) -> Services {
        let readers = Arc::new(Readers::new(
            state.clone(),
            scan::read_kind(&self.options.limits),
            self.metrics.scans.read_seconds.clone(),
        ));
        Services {
            kv: self.kv_service(Arc::clone(&readers)),
            etcd: self.all_etcd_services(&state),
            ctrl: self.ctrl_service(),
            handoff: HandoffService::new(
                Arc::clone(&self.replica),
                Arc::clone(&self.routing),
                Arc::clone(&self.metrics),
                Readers::new(
                    state,
                    handoff::READ_KIND,
                    self.metrics.handoff.read_seconds.clone(),
                ),
                self.options.handoff.mover.max_bytes_per_second,
            ),
            admin: AdminService {
                replica: Arc::clone(&self.replica),
                peers: Arc::clone(&self.peers),
                routing: Arc::clone(&self.routing),
                mover: Arc::clone(&self.mover),
                readiness: Arc::clone(&self.readiness),
                metrics: Arc::clone(&self.metrics),
                readers,
                disk,
            },
            peers: PeerService::new(
                peers::Handles {
                    lifecycle: Arc::clone(&self.lifecycle),
                    peers: Arc::clone(&self.peers),
                    inbox: Arc::clone(&self.inbox),
                    metrics: Arc::clone(&self.metrics),
                },
                Arc::clone(&self.transport),
                self.options.network.handshake_timeout,
            ),
            lifecycle: Arc::clone(&self.lifecycle),
            progress: Arc::clone(&self.progress),
            metrics: Arc::clone(&self.metrics),
            limits: self.options.limits,
            network: self.options.network,
        }
    }

    fn kv_service(&self, readers: Arc<Readers>) -> KvService {
        KvService {
            lifecycle: Arc::clone(&self.lifecycle),
            replica: Arc::clone(&self.replica),
            peers: Arc::clone(&self.peers),
            routing: Arc::clone(&self.routing),
            forwarder: Arc::clone(&self.forwarder),
            items: self.items(),
            metrics: Arc::clone(&self.metrics),
            limits: self.options.limits,
            scanner: Arc::new(Scanner {
                replica: Arc::clone(&self.replica),
                routing: Arc::clone(&self.routing),
                forwarder: Arc::clone(&self.forwarder),
                admission: Arc::clone(&self.admission),
                metrics: Arc::clone(&self.metrics),
                readers,
                limits: self.options.limits,
                all_groups: AllGroups::new(self.scan_options()),
            }),
            exporter: Exporter {
                replica: Arc::clone(&self.replica),
                routing: Arc::clone(&self.routing),
                forwarder: Arc::clone(&self.forwarder),
                admission: Arc::clone(&self.admission),
                metrics: Arc::clone(&self.metrics),
            },
        }
    }

    /// Creates the services for clients of etcd, and starts the tasks of keyspaces.
    fn all_etcd_services(&self, state: &StateReads) -> AllEtcdServices {
        let etcd = self.etcd_services(state);
        let readers = |kind| {
            let seconds = self.metrics.keyspaces.state_read_seconds.clone();
            Readers::new(state.clone(), kind, seconds)
        };
        let timeout = election_timeout(&self.options);
        let watch = Arc::new(WatchServices::new(
            Arc::clone(&etcd),
            Arc::clone(&self.followers.hub),
            readers(watch::READ_KIND),
            timeout,
        ));
        let keep_alives = Arc::new(KeepAlives::new(
            Arc::clone(&etcd),
            timeout,
            self.options.request_timeout,
        ));
        tokio::spawn(Arc::clone(&watch).publish());
        if self.routing.kind() != GroupKind::Controller {
            let tasks = Arc::new(LeaderTasks {
                lessor: Arc::clone(&self.followers.lessor),
                clearer: Arc::clone(&self.followers.clearer),
                routing: Arc::clone(&self.routing),
                keyspaces: Arc::clone(&etcd.keyspaces),
                readers: readers(leader_tasks::READ_KIND),
                metrics: Arc::clone(&self.metrics),
            });
            tokio::spawn(Arc::clone(&tasks).load());
            tokio::spawn(Arc::clone(&tasks).clear());
            tokio::spawn(Arc::clone(&tasks).compact());
            tokio::spawn(tasks.expire());
        }
        AllEtcdServices {
            etcd,
            watch,
            keep_alives,
        }
    }

    /// Returns the limits of keyspaces' operations: the usual ones, unless the log's entries are so small that rows couldn't move.
    fn keyspace_limits(&self) -> keyspace::Limits {
        let usual = keyspace::Limits::default();
        let entry = self.options.replica.max_entry_bytes;
        let chunk = self.options.handoff.mover.chunk_bytes;
        let most = shardkv::max_keyspace_operation_bytes(entry, chunk);
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        keyspace::Limits {
            max_request_bytes: usual.max_request_bytes.min(most),
            ..usual
        }
    }

    /// Creates what the services for clients of etcd share.
    pub(crate) fn etcd_services(&self, state: &StateReads) -> Arc<EtcdServices> {
        let readers = |kind| {
            let seconds = self.metrics.keyspaces.state_read_seconds.clone();
            Readers::new(state.clone(), kind, seconds)
        };
        let keyspaces = Keyspaces {
            replica: Arc::clone(&self.replica),
            routing: Arc::clone(&self.routing),
            readers: readers(store::READ_KIND),
            range_readers: readers(store::RANGE_KIND),
            long_readers: readers(store::LONG_READ_KIND),
            known: Known::default(),
            admission: Arc::clone(&self.admission),
            limits: self.keyspace_limits(),
        };
        let Options {
            keyspaces: names,
            listen,
            peers,
            controllers,
            ..
        } = &self.options;
        let own = [listen.as_str(), self.peers.address()];
        let own = own.into_iter().chain(
            [peers, controllers, &names.services]
                .into_iter()
                .flatten()
                .map(String::as_str),
        );
        Arc::new(EtcdServices {
            keyspaces: Arc::new(keyspaces),
            lessor: Arc::clone(&self.followers.lessor),
            naming: Naming::new(own, names.fallback.clone()),
            lifecycle: Arc::clone(&self.lifecycle),
            forwarder: Arc::clone(&self.forwarder),
            admission: Arc::clone(&self.admission),
            metrics: Arc::clone(&self.metrics),
            passwords: Passwords::default(),
        })
    }

    /// Returns what answers requests about one key.
    pub(crate) fn items(&self) -> Arc<Items> {
        Arc::new(Items {
            lifecycle: Arc::clone(&self.lifecycle),
            replica: Arc::clone(&self.replica),
            routing: Arc::clone(&self.routing),
            forwarder: Arc::clone(&self.forwarder),
            checks: Checks::new(&self.options.limits),
        })
    }

    /// Returns the options of the client that scans all groups.
    fn scan_options(&self) -> ClientOptions {
        ClientOptions {
            request_timeout: self.options.request_timeout,
            scan_window_bytes: page_window_bytes(&self.options.limits),
            all_scans_window_bytes: all_pages_window_bytes(&self.options.limits),
            user_agent: Some(NODE.to_owned()),
            ..ClientOptions::new(Vec::<String>::new())
        }
    }

    fn ctrl_service(&self) -> CtrlService {
        CtrlService {
            lifecycle: Arc::clone(&self.lifecycle),
            replica: Arc::clone(&self.replica),
            peers: Arc::clone(&self.peers),
            routing: Arc::clone(&self.routing),
            forwarder: Arc::clone(&self.forwarder),
            metrics: Arc::clone(&self.metrics),
            watches: Watches {
                lifecycle: Arc::clone(&self.lifecycle),
                replica: Arc::clone(&self.replica),
                peers: Arc::clone(&self.peers),
                routing: Arc::clone(&self.routing),
                admission: Arc::clone(&self.admission),
            },
            cuts: Cuts::default(),
            proofs: Proofs::new(Arc::clone(&self.forwarder)),
            controllers: self.options.controllers.clone(),
        }
    }

    /// Returns the handles for the replica's thread.
    pub(crate) fn runtime_handles(&self) -> runtime::Handles {
        runtime::Handles {
            inbox: Arc::clone(&self.inbox),
            deliveries: Arc::clone(&self.deliveries),
            transport: Arc::clone(&self.transport),
            lifecycle: Arc::clone(&self.lifecycle),
            readiness: Arc::clone(&self.readiness),
            progress: Arc::clone(&self.progress),
            routing: Arc::clone(&self.routing),
            followers: Arc::clone(&self.followers),
            births: Arc::clone(&self.forwarder.births),
            admission: Arc::clone(&self.admission),
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// Starts the tasks that run beside the replica.
    pub(crate) fn start_tasks(&self, disk: Disk) {
        tokio::spawn(disk::watch(Arc::clone(&self.inbox), disk.clone()));
        tokio::spawn({
            let deliveries = Arc::clone(&self.deliveries);
            async move { deliveries.deliver().await }
        });
        tokio::spawn({
            let transport = Arc::clone(&self.transport);
            async move { transport.maintain().await }
        });
        if self.routing.kind() != GroupKind::Controller {
            let watch = ShardWatch {
                replica: Arc::clone(&self.replica),
                routing: Arc::clone(&self.routing),
                metrics: Arc::clone(&self.metrics),
            };
            tokio::spawn(watch.run());
        }
        if self.routing.kind() == GroupKind::Shards {
            let follower = Follower {
                lifecycle: Arc::clone(&self.lifecycle),
                routing: Arc::clone(&self.routing),
                forwarder: Arc::clone(&self.forwarder),
                controllers: self.options.controllers.clone(),
                patience: self.options.handoff.timeout,
            };
            tokio::spawn(follower.run());
            let directory = self.options.data_dir.clone();
            tokio::spawn(kept::keep(Arc::clone(&self.routing), directory));
            self.start_mover(disk);
        }
    }

    fn start_mover(&self, disk: Disk) {
        let room = RoomWatch {
            lifecycle: Arc::clone(&self.lifecycle),
            forwarder: Arc::clone(&self.forwarder),
            metrics: Arc::clone(&self.metrics),
            mover: Arc::clone(&self.mover),
            disk,
        };
        tokio::spawn(room.run());
        let handles = mover::Handles {
            lifecycle: Arc::clone(&self.lifecycle),
            replica: Arc::clone(&self.replica),
            routing: Arc::clone(&self.routing),
            forwarder: Arc::clone(&self.forwarder),
            metrics: Arc::clone(&self.metrics),
            mover: Arc::clone(&self.mover),
        };
        let group = mover::Group {
            node: self.peers.node(),
            gid: self.routing.gid(),
            controllers: self.options.controllers.clone(),
            timeout: self.options.handoff.timeout,
        };
        tokio::spawn(mover::drive(handles, group, self.options.handoff.mover));
    }
}

/// Returns the least time after which members of a group believe that their leader is gone.
fn election_timeout(options: &Options) -> Duration {
    let replica = &options.replica;
    let ticks = u64::from(replica.raft.election_ticks);
    Duration::from_millis(ticks * u64::from(replica.tick_ms))
}
