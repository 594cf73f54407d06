"""The `grun-bench` command."""
