"""Hydra's config groups: operators, methods, models and presets."""

if __name__ != "invdiff.configs":
    raise ImportError("this folder is the package invdiff.configs; import it under that name")
