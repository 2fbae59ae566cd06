"""A page of runs on the dashboard that a Dask scheduler has anyway."""
