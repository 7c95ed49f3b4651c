"""Builds the site: runs the examples, writes the pages, calls Sphinx and checks what came out.

    python docs/build.py                 # site/html
    python docs/build.py --output FOLDER

Warnings are errors. What the examples made is kept in site/cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import narrow  # noqa: E402
import remote  # noqa: E402
from generate import write  # noqa: E402
from notebooks import run_all  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=DOCS.parent / "site" / "html")
    parser.add_argument("--cache", type=Path, default=DOCS.parent / "site" / "cache")
    args = parser.parse_args()
    start = time.perf_counter()
    ran = run_all(args.cache)
    print(f"examples: {time.perf_counter() - start:.0f} s")
    source = args.cache / "source"
    write(source, ran)
    print(f"pages: {time.perf_counter() - start:.0f} s")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet"]
    command += ["--jobs", "auto", "-c", str(DOCS), "-d", str(args.cache / "doctrees")]
    status = subprocess.run([*command, str(source), str(args.output)]).returncode
    print(f"site: {time.perf_counter() - start:.0f} s")
    if status:
        sys.exit(status)
    if found := remote.check(args.output):
        sys.exit("\n".join(found) + "\nthe site must work without a network")
    if found := narrow.check(args.output):
        sys.exit("\n".join(found) + "\nwide things must scroll by themselves on a phone")


if __name__ == "__main__":
    main()
