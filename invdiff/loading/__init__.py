"""Networks of other packages as Denoisers: one loader per kind of source, one module per loader."""

from invdiff.loading.classifier import load_classifier
from invdiff.loading.deepinv import from_deepinv
from invdiff.loading.folder import load_folder
from invdiff.loading.scheduler import schedule_of

__all__ = ["from_deepinv", "load_classifier", "load_folder", "schedule_of"]
