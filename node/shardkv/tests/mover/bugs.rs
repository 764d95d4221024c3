//! The known bugs do what they are named for.

use types::{ConfigNum, Gid, ShardId};

use crate::stage::{SHARDS, Stage, configs, delta, part, whole};
use shardkv::Bug;
use shardkv::mover::Mover;
use shardkv::{MoverOptions, Step};

fn mover(bug: Bug) -> Mover {
    Mover::with_bug(Gid(1), SHARDS, MoverOptions::default(), Some(bug))
}

#[test]
fn delete_before_install() {
    let moves = [delta(1, &[(4, 1, 2, 1)])];
    let mut stage = Stage::after(mover(Bug::DeleteBeforeInstall), &moves);
    stage.moves();
    stage.end("pull s4@1 from g2 after start", whole(4, 1));
    assert!(stage.moves().contains(&"tell g2 to delete s4@1".to_owned()));
}

#[test]
fn delete_sent_once() {
    let moves = [delta(1, &[(4, 1, 2, 1)])];
    let mut stage = Stage::after(mover(Bug::DeleteSentOnce), &moves);
    stage.apply(&Step::Install(part(4, 1, 0, 1, 10)));
    stage.moves();
    stage.fail("tell g2 to delete s4@1");
    let noted = "propose: s4@1 is deleted at its source";
    assert_eq!(stage.moves(), [noted]);
    stage.commit(noted);
    let ownership = stage.group.machine.ownership();
    assert!(
        !ownership
            .pending_deletes
            .contains_key(&(ShardId(4), ConfigNum(1)))
    );
}

#[test]
fn dead_group_freezes_all() {
    let moves = [delta(1, &[(4, 1, 2, 1)])];
    let mut stage = Stage::after(mover(Bug::DeadGroupFreezesAll), &moves);
    stage.moves();
    let latest = stage.config.clone();
    let next = [delta(2, &[(5, 1, 0, 1)])];
    let answer = configs(Some(latest), &next);
    stage.end("fetch configurations after 0", answer);
    assert_eq!(stage.moves(), [""; 0]);
}
