"""Overrides: what is read, and what each that cannot be read says to write instead."""

from __future__ import annotations

import pytest

from invdiff.commands.main import main
from invdiff.config import build_method, compose, compose_suite


def guidance(*overrides: str) -> dict[str, object]:
    return compose("inpaint", ["dps"], "photo64", "none", overrides)["guidance"][0]


@pytest.mark.parametrize(
    "override",
    [
        "guidance.zeta=0.7",
        " guidance.zeta = 0.7 ",
        "guidance.zeta=0.7\r\n",
        "guidance.dps.zeta=0.7",
    ],
)
def test_one_value_however_it_was_typed(override: str) -> None:
    assert guidance(override)["zeta"] == 0.7


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("operator.position=3,4", "operator.position=[3,4]"),
        ("operator.position=(3,4)", "operator.position=[3,4]"),
        ("guidance.zeta=0,7", "guidance.zeta=0.7"),
        ("guidance.zeta", "key=value, without spaces"),
        ("=", "key=value"),
        ("guidance.zeta=", "guidance.zeta=null for none"),
        ("operator.file=a=b.png", "\"operator.file='a=b.png'\""),
        ("operator.file=it's.png", "'it\\'s.png'"),
        ("guidance.ddim.zeta=1", "dps"),
        ("zeta=3", "guidance.zeta=3"),
        ("~guidance", "--method"),
    ],
)
def test_what_to_write_instead(override: str, instead: str) -> None:
    with pytest.raises(ValueError) as caught:
        guidance(override)
    assert instead in str(caught.value)


@pytest.mark.parametrize("value", ["9" * 5000 + "]", "[" * 900, "{" * 900, "'" * 3000, "a=" * 999])
@pytest.mark.parametrize("compose_it", [guidance, lambda o: compose_suite("quick", [o])])
def test_long_input_is_not_echoed(value: str, compose_it: object) -> None:
    with pytest.raises(ValueError, match="cannot be read") as caught:
        compose_it(f"guidance.zeta={value}")  # type: ignore[operator]
    assert len(str(caught.value)) < 300


def test_a_quoted_path_is_read_as_the_message_says() -> None:
    config = compose("inpaint", ["dps"], "photo64", "none", [r"operator.file='it\'s=a.png'"])
    assert config["operator"]["file"] == "it's=a.png"


@pytest.mark.parametrize("piece", ["transition", "itinerary"])
@pytest.mark.parametrize("value", ["[heun]", "3", "true"])
def test_a_piece_is_a_name(piece: str, value: str) -> None:
    config = compose("inpaint", ["dps"], "photo64", "none", [f"{piece}={value}"])
    with pytest.raises(ValueError, match=f"{piece}=NAME"):
        build_method(config)


@pytest.mark.parametrize(
    ("argument", "says"),
    [("--guidance.eta=3", "no dashes: guidance.eta=3"), ("-m", "invdiff bench")],
)
def test_arguments_of_hydras_command_line(
    argument: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["solve", argument])
    assert says in capsys.readouterr().err
