"""The types of records are those of the schema."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import pytest

from invdiff.benchmarks import schema
from invdiff.benchmarks.schema import Environment, GridCell, Measured, Record

JSON = {int: "integer", float: "number", str: "string", NoneType: "null", list: "array"}


def resolved(said: dict[str, Any]) -> dict[str, Any]:
    """A schema without references."""
    while "$ref" in said:
        said = schema.schema()["$defs"][said["$ref"].rpartition("/")[2]]
    return said


def kinds(said: dict[str, Any]) -> set[Any]:
    """The JSON types that a schema admits; of enumerations their values."""
    said = resolved(said)
    if "oneOf" in said:
        return set().union(*(kinds(each) for each in said["oneOf"]))
    if "const" in said:
        return {JSON[type(said["const"])]}
    if "enum" in said:
        return {"null" if value is None else value for value in said["enum"]}
    given = said.get("type", "string")
    return set(given) if isinstance(given, list) else {given}


def admitted(hint: Any) -> set[Any]:
    """The same of a type."""
    origin = get_origin(hint)
    if origin in (UnionType, Union):
        return set().union(*(admitted(each) for each in get_args(hint)))
    if origin is Literal:
        return set(get_args(hint))
    if is_typeddict(hint) or origin is dict:
        return {"object"}
    return {JSON[origin or hint]}


def required(hint: Any) -> set[str]:
    """The entries that a type requires."""
    hints = get_type_hints(hint, include_extras=True)
    return {name for name, inner in hints.items() if get_origin(inner) is not NotRequired}


def differences(hint: Any, said: dict[str, Any], path: str = "$") -> list[str]:
    """Where a type and a schema do not say the same."""
    said = resolved(said)
    if NoneType in get_args(hint):
        hint = next(h for h in get_args(hint) if h is not NoneType)
    said = next((resolved(s) for s in said.get("oneOf", []) if "properties" in resolved(s)), said)
    if get_origin(hint) is list:
        return differences(get_args(hint)[0], said["items"], f"{path}[]")
    if get_origin(hint) is dict and isinstance(said.get("additionalProperties"), dict):
        return differences(get_args(hint)[1], said["additionalProperties"], f"{path}.*")
    if not is_typeddict(hint):
        return []
    found = []
    if other := required(hint) ^ set(said["required"]):
        found.append(f"{path}: required {sorted(other)}")
    known = {**said.get("properties", {})}
    for name, inner in get_type_hints(hint).items():
        if name in known:
            if inner is not Any and admitted(inner) != kinds(known[name]):
                found.append(f"{path}.{name}: {admitted(inner)}, not {kinds(known[name])}")
            found += differences(inner, known.pop(name), f"{path}.{name}")
        elif said.get("additionalProperties") is False:
            found.append(f"{path}.{name}: the schema has no such entry")
    return found + [f"{path}.{name}: the type has no such entry" for name in known]


@pytest.mark.parametrize(
    "hint, name",
    [(GridCell, "cell"), (Environment, "environment"), (Measured, "measured")],
)
def test_types_and_schema_say_the_same(hint: Any, name: str) -> None:
    assert differences(hint, schema.schema()["$defs"][name]) == []


def test_a_record_has_the_entries_of_the_schema() -> None:
    said = schema.schema()
    assert set(get_type_hints(Record)) - {"file"} == set(said["properties"])
    assert required(Record) == set(said["required"])
    assert said["properties"]["format"] == {"const": schema.FORMAT}


def test_the_comparison_finds_what_differs() -> None:
    """The test above can fail."""

    class Other(Environment):
        extra: NotRequired[int]

    said = schema.schema()["$defs"]["environment"] | {"additionalProperties": False}
    assert differences(Other, said) == ["$.extra: the schema has no such entry"]
    without = dict(said, required=[*said["required"], "deepinv"])
    assert differences(Environment, without) == ["$: required ['deepinv']"]
