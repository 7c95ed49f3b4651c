"""The entry point of the command line."""

from __future__ import annotations

import errno
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from invdiff.commands.arguments import make_parser, module_of


def _instead(unknown: Sequence[str]) -> str:
    """A hint for arguments of Hydra's command line."""
    for argument in unknown:
        if argument in ("-m", "--multirun"):
            return "; for many runs use invdiff bench"
        if argument.startswith("--") and "." in argument.partition("=")[0]:
            return f"; an override has no dashes: {argument.lstrip('-')[:100]}"
    return ""


LONGEST = 600
"""Characters of a message."""


def _said(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = Path(error.filename).parent if error.filename else Path.cwd()
        return f"no space is left for {where}; what was finished is kept"
    if isinstance(error, OverflowError):
        return f"a number is too large: {error}"
    if isinstance(error, RuntimeError):
        from invdiff.device import out_of_memory

        if not out_of_memory(error):
            raise error
        return "memory ran out; a smaller image or --batch-size, or model.tile=256, takes less"
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 5]} ..."


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0; 2 for what the user can mend, said in one line on stderr; 130 when
    interrupted."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and hasattr(args, "overrides") and not any(r.startswith("-") for r in rest):
        args.overrides += rest  # argparse stops collecting key=value at the first option
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)[:200]}{_instead(rest)}")
    if args.version:
        from importlib.metadata import version

        print(f"invdiff {version('invdiff')}")
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    warnings.simplefilter("ignore", FutureWarning)  # what other packages tell their developers
    warnings.showwarning = lambda message, *_, **__: print(
        f"invdiff: warning: {message}", file=sys.stderr
    )
    for name in ("SIGTERM", "SIGHUP"):  # they end a run as an interrupt does
        if hasattr(signal, name) and threading.current_thread() is threading.main_thread():
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        import_module(f"invdiff.commands.{module_of(args.command)}").run(args)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except (ValueError, TypeError, OSError, OverflowError, RuntimeError) as error:
        print(f"invdiff {args.command}: error: {_said(error)}", file=sys.stderr)
        return 2
    return 0
