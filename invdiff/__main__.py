"""``python -m invdiff`` is the command line."""

import sys

from invdiff.commands.parser import main

if __name__ == "__main__":
    sys.exit(main())
