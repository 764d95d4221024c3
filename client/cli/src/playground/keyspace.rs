//! The keyspace that clients of etcd get if they name none. A playground creates it, so that `etcdctl` works at once.

use std::time::Duration;

use shardkv_client::{Client, Error, KeyspaceOptions};

/// The nodes' option that names it, and its default there.
const OPTION: &str = "--fallback-keyspace";
const DEFAULT: &str = "default";

/// The time for which nodes may refuse, because they have just started.
const PATIENCE: Duration = Duration::from_secs(10);

/// Creates the keyspace that the nodes' options name, unless it exists. Says so if that fails, and goes on: all else works.
pub(super) async fn create_fallback(client: &Client, node_args: &[String]) {
    let Some(name) = fallback(node_args) else {
        return;
    };
    let keyspaces = client.with_timeout(PATIENCE).keyspaces();
    match keyspaces.create(name, KeyspaceOptions::default()).await {
        Ok(_) | Err(Error::AlreadyExists { .. }) => {}
        Err(error) => eprintln!(
            "the keyspace {name} for clients of etcd can't be created: {error}\n next: `shardkv keyspace create {name}`"
        ),
    }
}

/// Returns the keyspace that the nodes' options name.
fn fallback(node_args: &[String]) -> Option<&str> {
    let mut args = node_args.iter().map(String::as_str);
    let mut name = DEFAULT;
    while let Some(arg) = args.next() {
        match arg.strip_prefix(OPTION).map(|rest| rest.strip_prefix('=')) {
            Some(Some(value)) => name = value,
            Some(None) if arg == OPTION => name = args.next().unwrap_or_default(),
            _ => {}
        }
    }
    (name != "none").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_options_name_it() {
        let fallback = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|it| (*it).to_owned()).collect();
            fallback(&args).map(str::to_owned)
        };
        assert_eq!(fallback(&[]).as_deref(), Some("default"));
        assert_eq!(fallback(&["--fallback-keyspace=none"]), None);
        assert_eq!(fallback(&["--fallback-keyspace", "none"]), None);
        let named = fallback(&["--rpc-threads", "2", "--fallback-keyspace", "mine"]);
        assert_eq!(named.as_deref(), Some("mine"));
    }
}
