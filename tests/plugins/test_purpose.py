"""What something is for, in one line, without importing it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from invdiff.plugins.purpose import first_sentence, purpose
from invdiff.plugins.registry import KINDS, list_plugins


@pytest.mark.parametrize("kind", KINDS)
def test_everything_says_what_it_is_for(kind: str) -> None:
    for name in list_plugins(kind):
        assert len(purpose(kind, name)) > 3, name


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One. Two.", "One"),
        ("A (Song et al. 2021, eq. 4) method.\n\nMore.", "A (Song et al. 2021, eq. 4) method"),
        ("Of :class:`~invdiff.x.Y` and ``z``.", "Of invdiff.x.Y and z"),
        ("", ""),
    ],
)
def test_first_sentence(text: str, first: str) -> None:
    assert first_sentence(text) == first


def test_nothing_is_imported() -> None:
    code = (
        "import sys; from invdiff.plugins.purpose import purpose; purpose('guidance', 'dps'); "
        "assert not [m for m in sys.modules if m.startswith(('torch', 'invdiff.guidance'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
