"""Stands in for dask-kubernetes 2026.3.0."""
