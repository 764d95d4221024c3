//! Command line options, with help texts and examples.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use probes::telemetry::{InvalidFilter, LogFormat};

use crate::reconcile::DEFAULT_DOMAIN;

const EXAMPLES: &str = "\
Examples:
  shardkv-operator crd | kubectl apply --server-side -f -    install the resources' definitions
  shardkv-operator                                           run against the cluster of your kubeconfig
  shardkv-operator --watch-namespace team-a --log-format human
  shardkv-operator --leader-elect=false                      a single operator on your own machine
  curl localhost:8080/readyz

Each option also has an environment variable: SHARDKV_OPERATOR_WATCH_NAMESPACE sets --watch-namespace, and so on.

Exit codes:
  0  orderly stop
  1  unexpected failure; the log names the cause
  2  the options are invalid, or no Kubernetes cluster is configured
  3  the Lease was lost: another replica may act now, and this one has stopped; start it again";

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "shardkv-operator",
    about = "Runs the stores that ShardKvCluster resources describe",
    version,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// Options of `run`, which is the default command.
    #[command(flatten)]
    pub run: RunOptions,
    /// The command.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the operator (the default command)
    #[command(after_help = EXAMPLES)]
    Run(Box<RunOptions>),
    /// Print the definitions of the resources, for `kubectl apply --server-side -f -`
    Crd,
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  source <(shardkv-operator completion bash)")]
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// Watch only these namespaces. Repeat the option or separate names by commas. By default the operator watches all
    #[arg(
        long = "watch-namespace",
        env = "SHARDKV_OPERATOR_WATCH_NAMESPACE",
        value_name = "NAME,...",
        value_delimiter = ',',
        value_parser = namespace
    )]
    watch_namespaces: Vec<String>,
    /// Address that serves /metrics, /livez and /readyz
    #[arg(
        long,
        env = "SHARDKV_OPERATOR_LISTEN",
        value_name = "ADDRESS:PORT",
        default_value = "0.0.0.0:8080"
    )]
    pub listen: SocketAddr,
    /// Maximum number of clusters that are reconciled at the same time
    #[arg(
        long,
        env = "SHARDKV_OPERATOR_CONCURRENCY",
        value_name = "NUMBER",
        default_value_t = 4,
        value_parser = clap::value_parser!(u16).range(1..=64)
    )]
    pub concurrency: u16,
    /// Leader election among replicas of the operator.
    #[command(flatten)]
    pub lease: LeaseOptions,
    /// The Kubernetes cluster.
    #[command(flatten)]
    pub cluster: ClusterOptions,
    /// Log format and filter.
    #[command(flatten)]
    pub log: LogOptions,
}

/// Options of leader election among replicas of the operator.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Leader election")]
pub struct LeaseOptions {
    /// Act only while holding a Lease, so that other replicas can stand by. An idle operator writes nothing but the
    /// Lease's renewal every 5 s
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
    /// Name of the Lease. Operators with the same Lease elect one that acts
    #[arg(
        long,
        env = "SHARDKV_OPERATOR_LEASE_NAME",
        value_name = "NAME",
        default_value = "shardkv-operator"
    )]
    pub lease_name: String,
    /// Namespace of the Lease; by default the operator's own
    #[arg(
        long,
        env = "SHARDKV_OPERATOR_LEASE_NAMESPACE",
        value_name = "NAME",
        value_parser = namespace
    )]
    pub lease_namespace: Option<String>,
    /// This replica's name in the Lease; by default the pod's name
    #[arg(long, env = "SHARDKV_OPERATOR_IDENTITY", value_name = "NAME")]
    pub identity: Option<String>,
    /// Namespace of the pod, from the downward API.
    #[arg(long, env = "POD_NAMESPACE", hide = true)]
    pod_namespace: Option<String>,
    /// Name of the pod, from the downward API.
    #[arg(long, env = "POD_NAME", hide = true)]
    pod_name: Option<String>,
}

/// Options that select the Kubernetes cluster.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Kubernetes cluster")]
pub struct ClusterOptions {
    /// File with clusters and credentials; by default $KUBECONFIG, ~/.kube/config, or the pod's service account
    #[arg(long, env = "SHARDKV_OPERATOR_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Context in the kubeconfig; by default its current context
    #[arg(long, env = "SHARDKV_OPERATOR_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// Domain of the Kubernetes cluster; by default that of /etc/resolv.conf in a pod, cluster.local elsewhere. Services of keyspaces whose
    /// cluster is in another namespace are aliases, which need the whole name
    #[arg(long, env = "SHARDKV_OPERATOR_CLUSTER_DOMAIN", value_name = "DOMAIN")]
    cluster_domain: Option<String>,
}

/// Options of the log.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Logs")]
pub struct LogOptions {
    /// Format of log lines; by default json in a pod, human elsewhere
    #[arg(long, env = "SHARDKV_OPERATOR_LOG_FORMAT", value_enum)]
    log_format: Option<Format>,
    /// Log level, or levels by module such as `info,shardkv_operator=debug`
    #[arg(
        long,
        env = "SHARDKV_OPERATOR_LOG_FILTER",
        value_name = "FILTER",
        default_value = "info",
        value_parser = filter
    )]
    pub log_filter: String,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Readable text
    Human,
    /// One JSON object per line
    Json,
}

impl RunOptions {
    /// Returns the namespaces to watch, sorted and without duplicates. An empty list means all namespaces.
    pub fn namespaces(&self) -> Vec<String> {
        let mut names = self.watch_namespaces.clone();
        // An empty environment variable names no namespace.
        names.retain(|name| !name.is_empty());
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl ClusterOptions {
    /// Returns the domain of the Kubernetes cluster.
    pub fn domain(&self) -> String {
        let resolver = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let found = service_domain(&resolver).map(str::to_owned);
        let known = first_non_empty([&self.cluster_domain, &found]);
        known.unwrap_or_else(|| DEFAULT_DOMAIN.to_owned())
    }
}

/// Returns the domain under which Kubernetes completes the names of services: pods search in `svc.<domain>`.
fn service_domain(resolver: &str) -> Option<&str> {
    let lines = resolver.lines().map(str::split_whitespace);
    let searches = lines.filter_map(|mut words| (words.next() == Some("search")).then_some(words));
    let mut domains = searches.flatten().map(|name| name.trim_end_matches('.'));
    domains.find_map(|name| name.strip_prefix("svc."))
}

impl LeaseOptions {
    /// Returns the Lease's namespace; `fallback` is the default namespace of the credentials.
    pub fn namespace(&self, fallback: &str) -> String {
        let configured = first_non_empty([&self.lease_namespace, &self.pod_namespace]);
        configured.unwrap_or_else(|| fallback.to_owned())
    }

    /// Returns this replica's name in the Lease. Two processes that run at the same time must have different names.
    pub fn identity(&self) -> String {
        first_non_empty([&self.identity, &self.pod_name]).unwrap_or_else(|| {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            format!("{}-{}", host.trim(), std::process::id())
        })
    }
}

fn first_non_empty<const N: usize>(values: [&Option<String>; N]) -> Option<String> {
    let mut values = values.into_iter().flatten().filter(|it| !it.is_empty());
    values.next().cloned()
}

impl LogOptions {
    /// Returns the format of log lines.
    pub fn format(&self) -> LogFormat {
        match self.log_format {
            Some(Format::Json) => LogFormat::Json,
            // Kubernetes sets this variable in every container.
            None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => LogFormat::Json,
            Some(Format::Human) | None => LogFormat::Human,
        }
    }
}

fn filter(text: &str) -> Result<String, InvalidFilter> {
    probes::telemetry::check_filter(text)?;
    Ok(text.to_owned())
}

/// A text that can't be the name of a namespace.
#[derive(Debug, thiserror::Error)]
#[error(
    "the name of a namespace consists of a-z, 0-9 and '-', at most 63 characters, without '-' at its ends"
)]
struct InvalidNamespace;

fn namespace(text: &str) -> Result<String, InvalidNamespace> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = text.len() <= 63
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if good {
        Ok(text.to_owned())
    } else {
        Err(InvalidNamespace)
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
    fn the_command_line_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_is_the_default_command() {
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
    fn namespaces_are_repeated_or_separated_by_commas() {
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
    fn the_domain_is_that_of_the_pods_resolver() {
        for (resolver, domain) in [
            (
                "search ns.svc.k8s.example svc.k8s.example k8s.example\n",
                Some("k8s.example"),
            ),
            ("nameserver 10.0.0.1\nsearch example.com\n", None),
            ("# search svc.a\nsearch x.\nsearch svc.b.", Some("b")),
            ("", None),
        ] {
            assert_eq!(service_domain(resolver), domain, "{resolver}");
        }
        let options = run(&["--cluster-domain", "k8s.example"]);
        assert_eq!(options.cluster.domain(), "k8s.example");
    }

    #[test]
    fn leader_election_can_be_turned_on_and_off() {
        for (args, on) in [
            (&["--leader-elect=false"][..], false),
            (&["--leader-elect"], true),
            (&["--leader-elect=true", "--concurrency", "1"], true),
        ] {
            assert_eq!(run(args).lease.leader_elect, on, "{args:?}");
        }
    }

    #[test]
    fn the_lease_is_in_the_namespace_of_the_pod_by_default() {
        let own = run(&["--pod-namespace", "own", "--pod-name", "pod-1"]).lease;
        assert_eq!(
            (own.namespace("x"), own.identity()),
            ("own".into(), "pod-1".into())
        );
        let configured = run(&[
            "--pod-namespace",
            "own",
            "--lease-namespace",
            "other",
            "--identity",
            "me",
        ])
        .lease;
        assert_eq!(
            (configured.namespace("x"), configured.identity()),
            ("other".into(), "me".into())
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
