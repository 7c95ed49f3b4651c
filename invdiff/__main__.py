"""``python -m invdiff`` is the command line."""

import sys

from invdiff.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
