//! The metrics of a live run over HTTP.

use std::net::SocketAddr;

use metrics_exporter_prometheus::PrometheusBuilder;

use crate::error::{CliError, Result};

/// Serves the metrics of this process in Prometheus' text format.
pub(super) fn serve(address: SocketAddr) -> Result<()> {
    PrometheusBuilder::new()
        .with_http_listener(address)
        .install()
        .map_err(|e| CliError::usage(format!("`--prometheus {address}`: {e}")))
}
