"""Hydra configuration: config groups, presets and ``key=value`` overrides composed to plain data,
and objects made of it."""
