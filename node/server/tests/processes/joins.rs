//! A group joins only if its nodes are at the addresses.

use api::v1::error_detail::Kind;
use api::v1::shardctrler_client::ShardctrlerClient;
use api::v1::{ConfigChanged, GroupAddresses, JoinRequest};
use tonic::Status;
use tonic::transport::Channel;

use crate::cluster::{Cluster, Setup};
use crate::world::{World, channel};

async fn join(
    through: &Channel,
    gid: u64,
    addresses: Vec<String>,
    force: bool,
) -> Result<ConfigChanged, Status> {
    let request = JoinRequest {
        groups: vec![GroupAddresses {
            gid,
            addresses,
            ..GroupAddresses::default()
        }],
        session: None,
        force,
    };
    let mut client = ShardctrlerClient::new(through.clone());
    client.join(request).await.map(tonic::Response::into_inner)
}

/// Asks for a Join that must be refused with a text that contains `found`, and must change nothing.
async fn refused(world: &World, through: &Channel, gid: u64, addresses: Vec<String>, found: &str) {
    let before = world.query().await.latest;
    let status = join(through, gid, addresses, false).await.unwrap_err();
    let kind = api::error_detail(&status).and_then(|detail| detail.kind);
    assert!(matches!(kind, Some(Kind::Conflict(_))), "{status:?}");
    assert!(status.message().contains(found), "{status:?}");
    assert_eq!(world.query().await.latest, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_joins_only_where_its_nodes_answer() {
    let world = World::start(2, 1).await;
    let other = World::start(1, 1).await;
    let alone = Cluster::start(Setup::of(1)).await;
    let at_controller = channel(&world.controllers, 0).await;
    let one = world.group(1).addresses();

    // Nobody listens at a port beside that of the node, and at none of a quorum.
    let typo = world.group(1).front().to_string();
    let nobody = format!("{typo}: no connection");
    refused(&world, &at_controller, 1, vec![typo.clone()], &nobody).await;
    let half = vec![one[0].clone(), typo.clone()];
    refused(&world, &at_controller, 1, half, "2 of its 2 addresses").await;
    let controller = world.controllers.addresses();
    let found = "a controller of this cluster";
    refused(&world, &at_controller, 1, controller, found).await;
    let controller = other.controllers.addresses();
    let found = "a controller of another cluster";
    refused(&world, &at_controller, 1, controller, found).await;
    let standalone = alone.addresses();
    let found = "a node of a store without controllers";
    refused(&world, &at_controller, 1, standalone, found).await;
    let theirs = other.group(1).addresses();
    let found = "a node of g1 of another cluster";
    refused(&world, &at_controller, 1, theirs, found).await;
    // A node of a replica group forwards the request, and passes the refusal on.
    let through_group = channel(world.group(2), 0).await;
    let two = world.group(2).addresses();
    let found = "a node of g2 of this cluster";
    refused(&world, &through_group, 1, two.clone(), found).await;
    // A quorum is right, and one address is another group's.
    let mixed = vec![one[0].clone(), two[0].clone()];
    refused(&world, &at_controller, 1, mixed, found).await;

    // The right addresses; then other groups may join.
    world.join(1, at_controller.clone()).await;
    world.join(2, through_group).await;
    world.settled().await;
    // A member's other addresses are asked too, and the same ones are not.
    refused(&world, &at_controller, 1, two, found).await;
    let same = join(&at_controller, 1, one, false).await.unwrap();
    assert!(!same.changed);
    // A test may do without.
    let forced = join(&at_controller, 3, vec![typo], true).await.unwrap();
    assert!(forced.changed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leaving_group_comes_back_without_a_proof_and_a_quorum_is_enough() {
    let mut world = World::start(2, 3).await;
    let through = channel(&world.controllers, 0).await;
    // One node of three is down.
    world.groups[0].kill(2);
    world.join(1, through.clone()).await;
    world.settled().await;
    // Two are down: no quorum answers.
    world.groups[1].kill(1);
    world.groups[1].kill(2);
    let two = world.group(2).addresses();
    let found = "2 of its 3 addresses must be nodes of g2";
    refused(&world, &through, 2, two.clone(), found).await;
    world.groups[1].start_node(1);
    world.join(2, through.clone()).await;
    world.settled().await;
    // It can't hand anything over, and is called back.
    world.groups[1].kill(0);
    world.groups[1].kill(1);
    world.leave(2, through.clone()).await;
    let back = join(&through, 2, two, false).await.unwrap();
    assert!(back.changed);
    world.groups[1].start_node(0);
    world.groups[1].start_node(1);
    world.settled().await;
}
