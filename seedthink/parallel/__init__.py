"""Many processes as one: launch, mesh, collectives. The only package that names ranks, groups and backends."""
