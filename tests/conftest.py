"""Makes ``import oracles`` work for every way the tests are started (pytest or python -m pytest, editable install or wheel)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
