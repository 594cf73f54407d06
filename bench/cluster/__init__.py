"""Ray clusters: joining one, and sending a sweep to one."""
