"""Metrics, speed and quality measurements."""

if __name__ != "invdiff.benchmarks":
    raise ImportError("this folder is the package invdiff.benchmarks; import it under that name")
