"""The arguments of every command, one module each; only the standard library is imported for them,
so that help and listings answer at once."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import NoReturn

COMMANDS = (
    *("solve", "generate", "tune", "calibrate", "bench", "leaderboard"),
    *("list", "info", "cite", "check", "new-plugin"),
)
"""Each has its arguments in the module of its name here, and ``run(args)`` in the one of
:mod:`invdiff.commands`."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def module_of(command: str) -> str:
    """The name of the modules of a command."""
    return command.replace("-", "_")


def make_parser() -> Parser:
    """The parser of the command line."""
    parser = Parser(
        prog="invdiff",
        description="Any diffusion network, any forward operator, any guidance method.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in COMMANDS:
        import_module(f"invdiff.commands.arguments.{module_of(command)}").add(commands)
    return parser
