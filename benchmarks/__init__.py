"""Measurements, as JSON. Tests never time; benchmarks never assert."""
