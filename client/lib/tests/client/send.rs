//! Applications spawn tasks: every future of the public surface can be sent to another thread.

use std::collections::BTreeMap;

use shardkv_client::{
    Client, ClientOptions, ConfigNum, ExportOptions, Gid, ScanOptions, ShardId, ShardSet,
};

fn sendable<T: Send>(future: T) -> T {
    future
}

#[tokio::test]
async fn every_future_can_be_spawned() {
    let client = Client::lazy(ClientOptions::new(["127.0.0.1:1"])).unwrap();
    let controller = client.controller();
    drop(sendable(Client::connect(ClientOptions::new([
        "127.0.0.1:1",
    ]))));
    drop(sendable(client.get("key")));
    drop(sendable(client.put("key", "value")));
    drop(sendable(client.append("key", "value")));
    drop(sendable(client.delete("key")));
    drop(sendable(client.shards(&ShardSet::all(1), false)));
    drop(sendable(client.status_all()));
    drop(sendable(client.get_many(["key"])));
    drop(sendable(client.put_many([("key", "value")])));
    drop(sendable(controller.query(None)));
    drop(sendable(controller.join(BTreeMap::new())));
    drop(sendable(controller.leave(&[Gid(1)])));
    drop(sendable(controller.move_shard(ShardId(0), Gid(1))));
    drop(sendable(controller.wait_settled(ConfigNum(0), |_| {})));
    drop(sendable(controller.watch(ConfigNum(0))));
    drop(sendable(client.scan(ScanOptions::all())));
    drop(sendable(client.export(ExportOptions::default())));
    let nested = sendable(async move {
        let set = ShardSet::all(1);
        let _ = client.shards(&set, true).await;
        let _ = client.status_all().await;
        let _ = client.get_many(["key"]).await;
        let _ = controller.leave(&[Gid(1)]).await;
        let _ = controller.join(BTreeMap::new()).await;
        let _ = controller.wait_settled(ConfigNum(0), |_| {}).await;
        let _ = client.leader_of(Gid(1)).await;
    });
    drop(nested);
}
