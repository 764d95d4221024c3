//! The options that every command takes, and the client that they describe.

use std::time::Duration;

use clap::Args;
use shardkv_client::{Client, ClientOptions, ClusterId, Mode};

use crate::client_error::connect_failure;
use crate::encoding::Encoding;
use crate::exit::Failure;
use crate::output::{Format, Style};

/// The global options: where the cluster is, how long a request may take, and how results are written.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// Addresses of nodes; one reachable node is enough, the client finds the others from there
    #[arg(
        long,
        global = true,
        env = "SHARDKV_ENDPOINTS",
        hide_env_values = true,
        value_name = "HOST:PORT,...",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400"
    )]
    pub(crate) endpoints: Vec<String>,
    /// Time limit of one request with all its retries, in milliseconds
    #[arg(
        long,
        global = true,
        value_name = "MS",
        default_value_t = 10_000,
        value_parser = clap::value_parser!(u64).range(1..=86_400_000)
    )]
    pub(crate) timeout_ms: u64,
    /// The format of results
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// The encoding of keys and values in arguments, tables and JSON
    #[arg(long, global = true, value_enum, default_value_t = Encoding::Utf8)]
    pub(crate) encoding: Encoding,
}

impl GlobalArgs {
    /// Makes a client for these endpoints. It opens no connection before its first call.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        self.client_with(Mode::Batch, 1)
    }

    /// Makes a client as [`Self::client`] does, that takes only nodes of `cluster`, if it is given.
    pub(crate) fn client_of(&self, cluster: Option<ClusterId>) -> Result<Client, Failure> {
        let options = ClientOptions {
            cluster,
            ..self.options()
        };
        Client::lazy(options).map_err(|error| connect_failure(&error))
    }

    /// Makes a client as [`Self::client`] does, with the given transport mode and number of streams.
    pub(crate) fn client_with(&self, mode: Mode, connections: usize) -> Result<Client, Failure> {
        let options = ClientOptions {
            mode,
            connections,
            ..self.options()
        };
        Client::lazy(options).map_err(|error| connect_failure(&error))
    }

    fn options(&self) -> ClientOptions {
        ClientOptions {
            request_timeout: Duration::from_millis(self.timeout_ms),
            ..ClientOptions::new(self.addresses())
        }
    }

    /// Returns the addresses without the empty ones, which a comma at the end leaves.
    fn addresses(&self) -> impl Iterator<Item = &str> {
        let trimmed = self.endpoints.iter().map(|address| address.trim());
        trimmed.filter(|address| !address.is_empty())
    }

    /// The style in which results are written.
    pub(crate) fn style(&self) -> Style {
        Style {
            format: self.output,
            encoding: self.encoding,
        }
    }
}
