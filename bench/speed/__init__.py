"""`grun-bench benchmark`: what GRUN costs on this machine, side by side with what it is compared to."""
