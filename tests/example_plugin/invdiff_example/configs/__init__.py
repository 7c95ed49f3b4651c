"""Hydra's config groups of the example."""
