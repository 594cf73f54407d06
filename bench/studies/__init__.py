"""Many runs: what to search, who searches it, where it runs."""
