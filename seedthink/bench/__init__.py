"""The microbenchmark suite of the kernels: what `seedthink bench` runs (docs/kernels.md, "Measuring")."""
