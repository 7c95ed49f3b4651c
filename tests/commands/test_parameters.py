"""What ``invdiff list KIND NAME`` says of parameters."""

from __future__ import annotations

import re

import pytest

from invdiff.commands.list import describe, names


@pytest.mark.parametrize(
    "kind", ["guidance", "operators", "transitions", "itineraries", "schedules"]
)
def test_a_parameter_is_explained_where_it_is_asked_for(kind: str) -> None:
    for name in names(kind):
        for parameter, said in describe(kind, name)["parameters"].items():
            assert not re.fullmatch(r"(see|of|as in) [\w.]+\.?", said["text"]), (name, parameter)
