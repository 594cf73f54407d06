"""The suite around GRUN: benchmarks, evaluation, sweeps on Ray, Parquet, Pareto fronts."""
