"""How a physics of deepinv is made from its name and arguments; see
:mod:`invdiff.operators.deepinv`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.images.arrays import is_array, read_array
from invdiff.images.read import read_image
from invdiff.noise import seed_of
from invdiff.plugins.purpose import first_sentence
from invdiff.plugins.registry import UnknownNameError, did_you_mean
from invdiff.problem import LinearOperator, Operator
from invdiff.problem.operator import Shape

SIZES: dict[str, Callable[[Shape], list[Any]]] = {
    "img_size": lambda shape: list(dict.fromkeys((shape, shape[-2:], shape[-3:]))),
    "img_width": lambda shape: [shape[-1]],
    "channels": lambda shape: [shape[0]],
}
"""Arguments that are the image's size: what each may be for images of one shape."""
SIZED = ("mask", "coil_maps", "multipliers")
"""Tensors whose last two dimensions are those of the image, or 1."""
LEFT_OUT = ("self", "device", "rng", "noise_model", "sensor_model")
"""Arguments that are no part of A, or are given by us."""
FUNCTIONS = ("A", "U", "V_adjoint", "transform_func", "solver_config", "transform")
"""Arguments that no configuration can hold."""
OWN = {
    "seed": (0, "of what the physics draws at random: masks, matrices, diagonals"),
    "check": (True, "test that A* is the adjoint of A when the operator is bound"),
    "complex_images": (False, "whether images are complex, which A* then gives, else real"),
}
"""Our arguments, which every physics has: default and meaning."""


def factory_of(member: str, known: Iterable[str]) -> Callable[..., Operator]:
    """What makes the operator of a physics.

    Args:
        member: the class's name in ``deepinv.physics``.
        known: the names that there are.

    Raises:
        UnknownNameError: there is no such class; names the nearest.
    """
    import deepinv.physics as package

    found = getattr(package, member, None)
    if not (inspect.isclass(found) and issubclass(found, package.Physics)):
        near = did_you_mean(member, [f"deepinv:{name}" for name in known])
        raise UnknownNameError(
            f"deepinv has no physics {member!r}.{near} `invdiff list operators` names all of them."
        )
    linear = issubclass(found, package.LinearPhysics)
    takes = {
        name: parameter
        for name, parameter in inspect.signature(found).parameters.items()
        if name not in LEFT_OUT and parameter.kind is not parameter.VAR_KEYWORD
    }

    parts = [name for name, p in takes.items() if p.kind is p.VAR_POSITIONAL]
    for name in parts:
        del takes[name]

    def make(
        *, shape: Shape | None = None, state: Mapping[str, Tensor] | None = None, **given: Any
    ) -> Operator:
        from invdiff.problem.physics import by_recipe

        if parts:
            raise ValueError(
                f"deepinv:{member} takes any number of {parts[0]}, which cannot be given by name; "
                "use the operator compose: operator.parts=[{name: deepinv:Blur, ...}, ...]"
            )
        own = {name: given.pop(name, default) for name, (default, _) in OWN.items()}
        recipe = Recipe(member, _arguments(f"deepinv:{member}", takes, given), int(own["seed"]))
        options = bool(own["check"]), bool(own["complex_images"])
        return by_recipe(recipe, linear, *options, shape, state or {})

    described: Any = make
    described.__signature__ = inspect.Signature([*map(_plain, takes.values()), *_ours()])
    described.__name__ = described.__qualname__ = member
    described.__doc__ = _documented(found, takes)
    described.makes = LinearOperator if linear else Operator
    return described


@dataclass(frozen=True)
class Recipe:
    """How a physics is made for images of one shape.

    Attributes:
        member: the class's name.
        arguments: those that are not the class's defaults; tensors are read already.
        seed: of what it draws at random.
    """

    member: str
    arguments: Mapping[str, Any]
    seed: int = 0

    @property
    def name(self) -> str:
        return f"deepinv:{self.member}"

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.arguments) | ({"seed": self.seed} if self.seed else {})

    def __call__(self, shape: Shape) -> Iterator[Any]:
        """The physics, once for each meaning of the size that is not said.

        Raises:
            ValueError: the class refuses its arguments.
        """
        import deepinv.physics as package

        made = getattr(package, self.member)
        takes = inspect.signature(made).parameters
        ways: list[dict[str, Any]] = [{}]
        for name, sizes in SIZES.items():
            if name in takes and name not in self.arguments:
                ways = [way | {name: size} for way in ways for size in sizes(shape)]
        errors, done = [], 0
        for way in ways:
            try:
                # Some draw from the global random numbers, which stay as they were.
                with torch.random.fork_rng(devices=[]):
                    torch.default_generator.manual_seed(seed_of("deepinv", self.seed))
                    physics = made(**self._given(takes, shape), **way)
            except Exception as error:
                errors.append(error)
                continue
            done += 1
            yield physics
        if not done:
            said = f"{type(errors[0]).__name__}: {' '.join(str(errors[0]).split())}"
            raise ValueError(
                f"{self.name} cannot be made for images of shape {shape}: "
                f"{self.misfit(shape) or said}"
            ) from errors[0]

    def misfit(self, shape: Shape) -> str:
        """Which tensor among the arguments has not the size of the images; empty where all do."""
        rows, columns = shape[-2:] if len(shape) > 1 else (1, *shape)
        for name in SIZED:
            value = self.arguments.get(name)
            if not isinstance(value, Tensor) or value.ndim == 0:
                continue
            height, width = (1, *value.shape)[-2:]
            if height not in (1, rows) or width not in (1, columns):
                return (
                    f"its {name} is for images of {height}x{width} (rows x columns), but these "
                    f"have {rows}x{columns}"
                )
        return ""

    def _given(self, takes: Mapping[str, inspect.Parameter], shape: Shape) -> dict[str, Any]:
        """The arguments as the class takes them."""
        given = {
            name: _as_taken(takes[name], value, shape) for name, value in self.arguments.items()
        }
        if "device" in takes:
            given["device"] = "cpu"
        if "rng" in takes:
            given["rng"] = torch.Generator("cpu").manual_seed(seed_of("deepinv", self.seed))
        return given


def _as_taken(parameter: inspect.Parameter, value: Any, shape: Shape) -> Any:
    if isinstance(value, Mapping) and str(value.get("name", "")).startswith("deepinv:"):
        inner = {k: v for k, v in value.items() if k not in ("name", *OWN)}
        member = value["name"].partition(":")[2]
        return next(Recipe(member, inner, int(value.get("seed", 0)))(shape))
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [_as_taken(parameter, item, shape) for item in value]
    if isinstance(value, Tensor):
        wide = value.is_floating_point() or value.is_complex()
        kind = torch.complex64 if value.is_complex() else torch.float32
        return value.to(kind) if wide else value
    if isinstance(value, list) and (
        isinstance(parameter.default, tuple) or "tuple" in str(parameter.annotation)
    ):
        return tuple(value)
    if isinstance(value, list) and _takes_tensor(parameter) and "Iter" not in _text(parameter):
        return torch.tensor(value)
    if isinstance(value, str) and (isinstance(parameter.default, torch.dtype) or _dtype(parameter)):
        return getattr(torch, value)
    return value


def _arguments(
    who: str, takes: Mapping[str, inspect.Parameter], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments that are not defaults, as plain data and tensors.

    Raises:
        ValueError: one that is missing, or of a kind that no configuration can hold.
    """
    found = {}
    for name, value in given.items():
        default = _plain(takes[name]).default
        if value is None and (name in SIZES or default is None):
            continue
        if not isinstance(value, Tensor | list | tuple | Mapping) and value == default:
            continue
        value = list(value) if isinstance(value, tuple) else value
        if isinstance(default, tuple) and value == list(default):
            continue
        found[name] = _read(who, name, takes[name], value)
    missing = [
        name
        for name, p in takes.items()
        if p.default is p.empty and name not in found and name not in SIZES
    ]
    if missing:
        named = ", ".join(f"{name} ({_text(takes[name]) or 'any'})" for name in missing)
        raise ValueError(f"{who} needs {named}; give operator.{missing[0]}=...")
    return found


def _read(who: str, name: str, parameter: inspect.Parameter, value: Any) -> Any:
    """An argument as it is recorded: files are read, and so are those of the physics in it."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, str | Path) and _takes_tensor(parameter):
        path = Path(value).expanduser()
        if path.is_file():
            return _tensor(path)
        if isinstance(value, Path) or "str" not in _text(parameter):
            raise ValueError(
                f"{name} of {who} is a tensor ({_text(parameter)}), got {str(value)!r}, and there "
                "is no file of that name; give a .npy or .pt file, or a picture"
            )
    if isinstance(value, Mapping) and str(value.get("name", "")).startswith("deepinv:"):
        inner = factory_of(value["name"].partition(":")[2], ())
        made: Any = inner(**{k: v for k, v in value.items() if k != "name"})
        return {"name": value["name"], **made.parameters}
    if isinstance(value, list):
        return [_read(who, name, parameter, item) for item in value]
    if isinstance(value, str) and (isinstance(parameter.default, torch.dtype) or _dtype(parameter)):
        if not isinstance(getattr(torch, value, None), torch.dtype):
            raise ValueError(f"{name} of {who} is a dtype such as complex64, got {value!r}")
        return value
    if name in FUNCTIONS or not isinstance(value, bool | int | float | str | Tensor | Mapping):
        raise ValueError(
            f"{name} of {who} cannot be given by name, got {type(value).__name__}; make the "
            f"object in Python, invdiff.make_operator(deepinv.physics.{who.partition(':')[2]}(...))"
        )
    return value


def _tensor(path: Path) -> Tensor:
    """The tensor in a file: arrays as they are stored; pictures in [0, 1], grey ones (H, W), others
    (1, C, H, W)."""
    if is_array(path):
        return read_array(path, "a tensor of deepinv", allow_complex=True)
    image = read_image(path)
    return image[0, 0] if bool((image == image[:, :1]).all()) else image


def _text(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return ""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return text.strip("'")


def _takes_tensor(parameter: inspect.Parameter) -> bool:
    return "Tensor" in _text(parameter) or parameter.name in ("srf", "filter", "diagonals")


def _dtype(parameter: inspect.Parameter) -> bool:
    return "torch.dtype" in _text(parameter)


def _plain(parameter: inspect.Parameter) -> inspect.Parameter:
    """A parameter of the class as ours: keyword only, the size open, types as text."""
    default = parameter.default
    if isinstance(default, torch.dtype):
        default = str(default).removeprefix("torch.")
    if parameter.name in SIZES:
        default = None
    annotation = {"int": int, "float": float}.get(_text(parameter), _text(parameter))
    annotation = parameter.empty if parameter.name in SIZES else annotation
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(parameter.name, kind, default=default, annotation=annotation)


def _ours() -> list[inspect.Parameter]:
    kind = inspect.Parameter.KEYWORD_ONLY
    defaults = {name: default for name, (default, _) in OWN.items()} | {
        "shape": None,
        "state": None,
    }
    return [inspect.Parameter(name, kind, default=value) for name, value in defaults.items()]


def _documented(found: type, takes: Mapping[str, inspect.Parameter]) -> str:
    """The purpose of a class and its arguments, in the form of our docstrings."""
    text = inspect.cleandoc(found.__doc__ or "")
    entries = re.findall(
        r"^:param (?:.*[ ])?(\w+):((?:.*)(?:\n(?!:|\s*$|\|).*)*)", text, re.MULTILINE
    )
    meant = {name: " ".join(said.split()) for name, said in entries}
    meant |= {name: said for name, (_, said) in OWN.items()}
    lines = [f"    {name}: {meant.get(name, '')}" for name in (*takes, *OWN)]
    return "\n".join([first_sentence(text) + ".", "", "Args:", *lines])
