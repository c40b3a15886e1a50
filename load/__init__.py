"""Traffic from the client's side: the smoke request, load and benchmarks. Nothing imports this package."""
