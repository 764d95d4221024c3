//! The command line: what can be asked, with help that teaches by examples.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use probes::telemetry::LogFormat;

const EXAMPLES: &str = "\
Examples:
  shardkv-operator crd | kubectl apply --server-side -f -    install the resource's definition
  shardkv-operator                                           run against the cluster of your kubeconfig
  shardkv-operator --watch-namespace team-a --log-format human
  shardkv-operator --leader-elect=false                      the only one, on your own machine
  curl localhost:8080/readyz

Each option can be set in the environment too: --watch-namespace is SHARDKV_OPERATOR_WATCH_NAMESPACE, and so on.

Exit codes:
  0  an orderly stop
  1  something unforeseen; the log says what
  2  the options can't be used, or no Kubernetes cluster is configured
  3  another replica leads, or may: nothing was done since; start again";

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "shardkv-operator",
    about = "Makes running stores of ShardKvCluster resources, and keeps them so",
    version,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// What is run when no command is given.
    #[command(flatten)]
    pub run: RunOptions,
    /// What is asked.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the operator; also what happens without a command
    #[command(after_help = EXAMPLES)]
    Run(Box<RunOptions>),
    /// Print the definition of the resource, for `kubectl apply --server-side -f -`
    Crd,
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  source <(shardkv-operator completion bash)")]
    Completion {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// How the operator runs.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// Look only at resources of these namespaces; give it again or separate them by commas. Without it, at all
    #[arg(
        long = "watch-namespace",
        env = "SHARDKV_OPERATOR_WATCH_NAMESPACE",
        value_name = "NAME,...",
        value_delimiter = ',',
        value_parser = namespace
    )]
    watch_namespaces: Vec<String>,
    /// Where /metrics, /livez and /readyz are served
    #[arg(
        long,
        env = "SHARDKV_OPERATOR_LISTEN",
        value_name = "ADDRESS:PORT",
        default_value = "0.0.0.0:8080"
    )]
    pub listen: SocketAddr,
    /// How many clusters are looked after at the same time
    #[arg(
        long,
        env = "SHARDKV_OPERATOR_CONCURRENCY",
        value_name = "NUMBER",
        default_value_t = 4,
        value_parser = clap::value_parser!(u16).range(1..=64)
    )]
    pub concurrency: u16,
    /// How this operator and its like agree on who acts.
    #[command(flatten)]
    pub lease: LeaseOptions,
    /// Which Kubernetes cluster.
    #[command(flatten)]
    pub cluster: ClusterOptions,
    /// What is logged.
    #[command(flatten)]
    pub log: LogOptions,
}

/// How operators agree on who acts.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Several replicas")]
pub struct LeaseOptions {
    /// Act only while holding a Lease, so that several replicas can stand by. Its renewal every 5 s is all that an operator
    /// without work writes
    #[arg(
        long,
        env = "SHARDKV_OPERATOR_LEADER_ELECT",
        value_name = "BOOL",
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = ArgAction::Set
    )]
    pub leader_elect: bool,
    /// The Lease's name: the same for all operators of which one is to act
    #[arg(
        long,
        env = "SHARDKV_OPERATOR_LEASE_NAME",
        value_name = "NAME",
        default_value = "shardkv-operator"
    )]
    pub lease_name: String,
    /// The Lease's namespace; the operator's own by default
    #[arg(
        long,
        env = "SHARDKV_OPERATOR_LEASE_NAMESPACE",
        value_name = "NAME",
        value_parser = namespace
    )]
    pub lease_namespace: Option<String>,
    /// The holder's name in the Lease; the pod's by default
    #[arg(long, env = "SHARDKV_OPERATOR_IDENTITY", value_name = "NAME")]
    pub identity: Option<String>,
    /// Set by the downward API.
    #[arg(long, env = "POD_NAMESPACE", hide = true)]
    pod_namespace: Option<String>,
    /// Set by the downward API.
    #[arg(long, env = "POD_NAME", hide = true)]
    pod_name: Option<String>,
}

/// Which Kubernetes cluster.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which Kubernetes cluster")]
pub struct ClusterOptions {
    /// The file with clusters and credentials; by default $KUBECONFIG, ~/.kube/config, or the account of the pod
    #[arg(long, env = "SHARDKV_OPERATOR_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the file; by default its current one
    #[arg(long, env = "SHARDKV_OPERATOR_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
}

/// What is logged, and how.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Logs")]
pub struct LogOptions {
    /// How log lines look; json by default in a pod, human elsewhere
    #[arg(long, env = "SHARDKV_OPERATOR_LOG_FORMAT", value_enum)]
    log_format: Option<Format>,
    /// Which log lines: a level, or levels by module such as `info,shardkv_operator=debug`
    #[arg(
        long,
        env = "SHARDKV_OPERATOR_LOG_FILTER",
        value_name = "FILTER",
        default_value = "info",
        value_parser = filter
    )]
    pub log_filter: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Human,
    /// A JSON object a line
    Json,
}

impl RunOptions {
    /// The namespaces to look at, each once; empty for all.
    pub fn namespaces(&self) -> Vec<String> {
        let mut names = self.watch_namespaces.clone();
        // An empty variable means none.
        names.retain(|name| !name.is_empty());
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl LeaseOptions {
    /// The Lease's namespace; `fallback` is the one of the credentials.
    pub fn namespace(&self, fallback: &str) -> String {
        let told = [&self.lease_namespace, &self.pod_namespace];
        let mut told = told.into_iter().flatten().filter(|name| !name.is_empty());
        told.next().cloned().unwrap_or_else(|| fallback.to_owned())
    }

    /// The holder's name in the Lease: not shared by two processes that run at the same time.
    pub fn identity(&self) -> String {
        let told = [&self.identity, &self.pod_name];
        let mut told = told.into_iter().flatten().filter(|name| !name.is_empty());
        told.next().cloned().unwrap_or_else(|| {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            format!("{}-{}", host.trim(), std::process::id())
        })
    }
}

impl LogOptions {
    /// How log lines look.
    pub fn format(&self) -> LogFormat {
        match self.log_format {
            Some(Format::Json) => LogFormat::Json,
            // Kubernetes sets this in every container.
            None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => LogFormat::Json,
            Some(Format::Human) | None => LogFormat::Human,
        }
    }
}

fn filter(text: &str) -> Result<String, String> {
    probes::telemetry::check_filter(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn namespace(text: &str) -> Result<String, String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = text.len() <= 63
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if good {
        Ok(text.to_owned())
    } else {
        Err("a namespace's name consists of a-z, 0-9 and '-', 63 at most".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn run(args: &[&str]) -> RunOptions {
        let args = [&["shardkv-operator"], args].concat();
        let cli = Cli::try_parse_from(args).unwrap();
        match cli.command {
            None => cli.run,
            Some(Command::Run(options)) => *options,
            Some(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_is_what_happens_without_a_command() {
        for args in [&[][..], &["run"]] {
            let options = run(args);
            assert_eq!(options.listen.port(), 8080);
            assert_eq!(options.concurrency, 4);
            assert!(options.lease.leader_elect);
            assert_eq!(options.lease.lease_name, "shardkv-operator");
            assert!(options.namespaces().is_empty());
        }
        for args in [&["--concurrency", "9"][..], &["run", "--concurrency", "9"]] {
            assert_eq!(run(args).concurrency, 9);
        }
    }

    #[test]
    fn namespaces_may_be_given_in_any_way() {
        for args in [
            &["--watch-namespace", "b,a"][..],
            &[
                "--watch-namespace=b",
                "--watch-namespace=a",
                "--watch-namespace=b",
            ],
        ] {
            assert_eq!(run(args).namespaces(), ["a", "b"]);
        }
        assert!(run(&["--watch-namespace="]).namespaces().is_empty());
        assert!(Cli::try_parse_from(["x", "--watch-namespace", "A_b"]).is_err());
    }

    #[test]
    fn the_election_can_be_switched() {
        for (args, on) in [
            (&["--leader-elect=false"][..], false),
            (&["--leader-elect"], true),
            (&["--leader-elect=true", "--concurrency", "1"], true),
        ] {
            assert_eq!(run(args).lease.leader_elect, on, "{args:?}");
        }
    }

    #[test]
    fn the_lease_lies_where_the_operator_does_unless_told() {
        let own = run(&["--pod-namespace", "own", "--pod-name", "pod-1"]).lease;
        assert_eq!(
            (own.namespace("x"), own.identity()),
            ("own".into(), "pod-1".into())
        );
        let told = run(&[
            "--pod-namespace",
            "own",
            "--lease-namespace",
            "told",
            "--identity",
            "me",
        ])
        .lease;
        assert_eq!(
            (told.namespace("x"), told.identity()),
            ("told".into(), "me".into())
        );
        let outside = run(&["--pod-namespace", "", "--pod-name", ""]).lease;
        assert_eq!(outside.namespace("x"), "x");
        assert!(
            outside
                .identity()
                .ends_with(&std::process::id().to_string())
        );
    }
}
