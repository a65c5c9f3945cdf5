"""The report page of a finished batch: outcome, cost, failures, latency and throughput."""
