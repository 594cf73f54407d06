"""How a sweep scales, on simulated nodes and with a no-op in place of a run: `python -m bench.speed.scaling`."""
