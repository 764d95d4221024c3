//! What those that watch a node are told.

use std::fmt;

use probes::scrape::Watched;

use crate::hub::Hub;

impl Watched for Hub {
    fn metrics(&self) -> Result<String, fmt::Error> {
        self.metrics.render()
    }

    fn ready(&self) -> Result<(), String> {
        Hub::ready(self).map_err(|why| why.to_string())
    }
}
