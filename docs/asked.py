"""The command line of the programs that make this site's pictures and tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def asked(doc: str | None, known: Sequence[str] = ()) -> list[str]:
    """The names that were asked for, of those that are known; none is all. ``--help`` says the
    program's docstring and starts nothing."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if known:
        parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    names = list(getattr(parser.parse_args(), "names", []))
    if unknown := [name for name in names if name not in known]:
        parser.error(f"{unknown[0]} is none of {', '.join(known)}")
    return names
