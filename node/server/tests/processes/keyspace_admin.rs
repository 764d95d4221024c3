//! Keyspaces are created, listed, changed and deleted through any node, while their shards move.

use std::collections::BTreeMap;

use api::v1::error_detail::Kind;
use api::v1::keyspace_options::AutoCompaction;
use api::v1::keyspaces_client::KeyspacesClient;
use api::v1::{
    CreateKeyspaceRequest, DeleteKeyspaceRequest, GetKeyspaceRequest, Keyspace, KeyspaceOptions,
    ListKeyspacesRequest, SetKeyspaceOptionsRequest,
};
use tonic::Status;
use tonic::transport::Channel;

use crate::wait::until;
use crate::world::{World, channel};

/// The number of keyspaces, which is more than that of shards: some share one.
const KEYSPACES: u64 = 20;

fn creation(number: u64) -> CreateKeyspaceRequest {
    CreateKeyspaceRequest {
        name: format!("tenant-{number}"),
        options: None,
        cluster_id: 1_000 + number,
    }
}

/// Creates all keyspaces. A group takes them once all its members have told their level.
async fn create_all(through: &Channel) {
    for number in 0..KEYSPACES {
        let made = until("a keyspace is created", async || {
            let mut keyspaces = KeyspacesClient::new(through.clone());
            keyspaces.create(creation(number)).await
        })
        .await;
        assert_eq!(made.into_inner().cluster_id, 1_000 + number);
    }
}

fn kind(status: &Status) -> Kind {
    api::error_detail(status).unwrap().kind.unwrap()
}

/// Lists all keyspaces in pages of so many.
async fn list(through: &Channel, limit: u32) -> Vec<Keyspace> {
    let mut keyspaces = KeyspacesClient::new(through.clone());
    let mut all = Vec::new();
    let mut next = ListKeyspacesRequest {
        limit,
        ..ListKeyspacesRequest::default()
    };
    loop {
        let page = keyspaces.list(next).await.unwrap().into_inner();
        all.extend(page.keyspaces);
        if page.last {
            return all;
        }
        let place = (page.next_shard, page.next_after);
        assert!(place > (next.shard, next.after), "{place:?} after {next:?}");
        (next.shard, next.after) = place;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keyspaces_are_listed_through_any_node_while_their_shards_move() {
    let world = World::start(2, 1).await;
    let controller = channel(&world.controllers, 0).await;
    world.join(1, controller.clone()).await;
    world.settled().await;
    create_all(&controller).await;

    world.join(2, controller.clone()).await;
    let client = world.controllers.client().await;
    let keyspaces = client.keyspaces();
    let mut expected: Vec<String> = (0..KEYSPACES).map(|it| creation(it).name).collect();
    expected.sort();
    loop {
        let listed = keyspaces.list().await.unwrap();
        let names: Vec<String> = listed.into_iter().map(|it| it.name).collect();
        assert_eq!(names, expected);
        let now = world.query().await;
        let runs = now.config.unwrap().owners;
        if runs.iter().all(|run| run.gid == run.target) {
            break;
        }
    }
    world.settled().await;

    // A keyspace is found at its new owner, from each node, whatever the size of a page.
    let config = world.query().await.config.unwrap();
    let mut owners = Vec::new();
    for run in &config.owners {
        owners.extend((0..run.count).map(|_| run.gid));
    }
    let mut through = vec![controller];
    for gid in 1..=2 {
        through.push(channel(world.group(gid), 0).await);
    }
    for node in &through {
        for limit in [0, 1, 3] {
            let listed = list(node, limit).await;
            let found: BTreeMap<_, _> = listed.iter().map(|it| (&it.name, it)).collect();
            assert_eq!(listed.len(), expected.len(), "each once");
            assert!(found.keys().copied().eq(&expected));
            let here = |it: &Keyspace| it.gid == owners[usize::try_from(it.shard).unwrap()];
            assert!(listed.iter().all(here), "{listed:?} of {owners:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_a_keyspace_is_known_by_its_cluster_id() {
    let world = World::start(1, 3).await;
    let controller = channel(&world.controllers, 0).await;
    world.join(1, controller.clone()).await;
    world.settled().await;
    create_all(&controller).await;
    let mut keyspaces = KeyspacesClient::new(channel(world.group(1), 1).await);

    // The same creation finds what it has made, and another one is refused.
    let again = keyspaces.create(creation(7)).await.unwrap().into_inner();
    assert_eq!((again.cluster_id, again.revision), (1_007, 1));
    let other = CreateKeyspaceRequest {
        cluster_id: 1,
        ..creation(7)
    };
    let refused = keyspaces.create(other).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::AlreadyExists);
    assert!(matches!(kind(&refused), Kind::AlreadyExists(_)));

    // A change for another incarnation changes nothing.
    let name = creation(7).name;
    let delete = |cluster_id| DeleteKeyspaceRequest {
        name: name.clone(),
        cluster_id,
    };
    let refused = keyspaces.delete(delete(1)).await.unwrap_err();
    assert!(matches!(kind(&refused), Kind::NotFound(_)));
    let set = |cluster_id, auto_compaction| SetKeyspaceOptionsRequest {
        name: name.clone(),
        options: Some(KeyspaceOptions {
            quota_bytes: 7_000,
            auto_compaction,
        }),
        cluster_id,
    };
    let refused = keyspaces.set_options(set(1, None)).await.unwrap_err();
    assert!(matches!(kind(&refused), Kind::NotFound(_)));
    for compacting in [Some(AutoCompaction::RetainedRevisions(9)), None] {
        let changed = keyspaces.set_options(set(1_007, compacting)).await;
        let options = changed.unwrap().into_inner().options.unwrap();
        assert_eq!(
            (options.quota_bytes, options.auto_compaction),
            (7_000, compacting)
        );
    }

    // A deletion frees the name at once, and doesn't hit the next keyspace with it.
    keyspaces.delete(delete(1_007)).await.unwrap();
    let get = GetKeyspaceRequest { name: name.clone() };
    let gone = keyspaces.get(get.clone()).await.unwrap_err();
    assert_eq!(gone.code(), tonic::Code::NotFound);
    let next = CreateKeyspaceRequest {
        cluster_id: 2,
        ..creation(7)
    };
    keyspaces.create(next).await.unwrap();
    let late = keyspaces.delete(delete(1_007)).await.unwrap_err();
    assert!(matches!(kind(&late), Kind::NotFound(_)));
    let found = keyspaces.get(get).await.unwrap().into_inner();
    assert_eq!(
        (found.cluster_id, found.options.unwrap().quota_bytes),
        (2, 2 << 30)
    );

    for bad in ["", "No", "a b", &"x".repeat(200)] {
        let request = CreateKeyspaceRequest {
            name: bad.to_owned(),
            ..creation(0)
        };
        let refused = keyspaces.create(request).await.unwrap_err();
        assert!(matches!(kind(&refused), Kind::BadRequest(it) if it.field == "name"));
    }
}
