"""Where models come from: loaded, built, taught the benchmark, kept."""
