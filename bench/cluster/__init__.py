"""Ray clusters: joining one, sending a sweep to one, working together on one."""
