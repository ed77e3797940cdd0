//! The metrics of a live run over HTTP.

use std::net::SocketAddr;

use metrics_exporter_prometheus::PrometheusBuilder;

use crate::error::{CliError, Result};

/// Serves the metrics of this process in Prometheus' text format; processes beside each other have
/// ports beside each other.
pub(super) fn serve(mut address: SocketAddr, process: usize) -> Result<()> {
    let port = u16::try_from(process)
        .ok()
        .and_then(|process| address.port().checked_add(process));
    let port = port.ok_or_else(|| {
        CliError::usage(format!(
            "`--prometheus {address}`: there is no port for process {process}"
        ))
    })?;
    address.set_port(port);
    PrometheusBuilder::new()
        .with_http_listener(address)
        .install()
        .map_err(|e| CliError::usage(format!("`--prometheus {address}`: {e}")))
}
