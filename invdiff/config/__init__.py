"""Configurations: Hydra's groups, presets and overrides as plain data, and the objects made from
them through the registries."""

from invdiff.config.build import build_method, build_operator, make_piece
from invdiff.config.overrides import override_value
from invdiff.config.packages import config_files, protocols
from invdiff.config.presets import method_of_preset, preset_values
from invdiff.config.run import PROMPTS, compose
from invdiff.config.suite import compose_suite

__all__ = [
    "PROMPTS",
    "build_method",
    "build_operator",
    "compose",
    "compose_suite",
    "config_files",
    "make_piece",
    "method_of_preset",
    "override_value",
    "preset_values",
    "protocols",
]
