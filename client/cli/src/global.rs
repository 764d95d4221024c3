//! The options that every command takes, and the client that they describe.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, ValueHint};
use shardkv_client::{Client, ClientOptions, ClusterId, Mode, TlsOptions};

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
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
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

/// The files of TLS. None of them: no connection has TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct TlsArgs {
    /// File with the authorities of the cluster's certificates (PEM). With it all connections have TLS, without it none has
    #[arg(
        id = "tls-ca",
        long = "ca",
        global = true,
        env = "SHARDKV_CA",
        hide_env_values = true,
        value_name = "FILE",
        value_hint = ValueHint::FilePath
    )]
    pub(crate) ca: Option<OsString>,
    /// File with your certificate (PEM), by which the nodes know who you are; needs --key and --ca
    #[arg(
        id = "tls-cert",
        long = "cert",
        global = true,
        env = "SHARDKV_CERT",
        hide_env_values = true,
        value_name = "FILE",
        value_hint = ValueHint::FilePath
    )]
    pub(crate) cert: Option<OsString>,
    /// File with the private key of --cert (PEM)
    #[arg(
        id = "tls-key",
        long = "key",
        global = true,
        env = "SHARDKV_KEY",
        hide_env_values = true,
        value_name = "FILE",
        value_hint = ValueHint::FilePath
    )]
    pub(crate) key: Option<OsString>,
}

impl TlsArgs {
    /// Returns the options of TLS; `None` for connections without it.
    pub(crate) fn options(&self) -> Result<Option<TlsOptions>, Failure> {
        // An empty variable is like none.
        let given = |file: &Option<OsString>| file.clone().filter(|it| !it.is_empty());
        match (given(&self.ca), given(&self.cert), given(&self.key)) {
            (None, None, None) => Ok(None),
            (Some(ca), None, None) => Ok(Some(TlsOptions::ca_file(ca))),
            (Some(ca), Some(cert), Some(key)) => {
                Ok(Some(TlsOptions::ca_file(ca).identity_files(cert, key)))
            }
            (None, ..) => Err(Failure::usage(
                "--cert and --key are given without --ca",
                "give --ca (or SHARDKV_CA): the file with the authorities of the cluster's certificates",
            )),
            (Some(_), ..) => Err(Failure::usage(
                "of --cert and --key only one is given",
                "give both files (or SHARDKV_CERT and SHARDKV_KEY): a certificate is of use only with its private key",
            )),
        }
    }
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
            ..self.options()?
        };
        Client::lazy(options).map_err(|error| connect_failure(&error))
    }

    /// Makes a client as [`Self::client`] does, with the given transport mode and number of streams.
    pub(crate) fn client_with(&self, mode: Mode, connections: usize) -> Result<Client, Failure> {
        let options = ClientOptions {
            mode,
            connections,
            ..self.options()?
        };
        Client::lazy(options).map_err(|error| connect_failure(&error))
    }

    fn options(&self) -> Result<ClientOptions, Failure> {
        Ok(ClientOptions {
            request_timeout: Duration::from_millis(self.timeout_ms),
            tls: self.tls.options()?,
            ..ClientOptions::new(self.addresses())
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_is_like_none() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            tls: TlsArgs,
        }
        let line = <Line as clap::Parser>::try_parse_from(["shardkv", "--ca", ""]).unwrap();
        assert_eq!(line.tls.options().unwrap(), None);
    }

    #[test]
    fn a_certificate_needs_its_key_and_an_authority() {
        let args = |files: [&str; 3]| {
            let [ca, cert, key] = files.map(|it| (it != "-").then(|| OsString::from(it)));
            TlsArgs { ca, cert, key }.options()
        };
        let ca = TlsOptions::ca_file("ca");
        assert_eq!(args(["-", "-", "-"]).unwrap(), None);
        assert_eq!(args(["", "", ""]).unwrap(), None, "empty variables");
        assert_eq!(args(["ca", "-", "-"]).unwrap(), Some(ca.clone()));
        let identity = ca.identity_files("cert", "key");
        assert_eq!(args(["ca", "cert", "key"]).unwrap(), Some(identity));
        for (files, words) in [
            (["-", "cert", "key"], "without --ca"),
            (["ca", "cert", "-"], "only one"),
            (["ca", "", "key"], "only one"),
        ] {
            let refused = args(files).unwrap_err().to_string();
            assert!(refused.contains(words), "{refused}");
        }
    }
}
