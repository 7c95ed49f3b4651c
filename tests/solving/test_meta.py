"""No GPU here: every operator, method and transition runs on the ``meta`` device, where a stray CPU
tensor, a read of the data or a data-dependent branch fails. Inside the loop a copy between host and
device fails, too, backward passes included: on a GPU it waits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Set
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import invdiff
from invdiff import itineraries, schedules
from invdiff.guidance.ddnm import DDNM
from invdiff.network import Denoiser, NoisyClassifier
from invdiff.noise import NoiseSource
from invdiff.plugins.registry import list_plugins, load
from invdiff.problem import Measurement, SpectralOperator, make_operator
from invdiff.sampling import Method, StatefulGuidance, Transition, make_method, sample
from invdiff.solving import generate, solve
from invdiff.solving.plan import complete
from invdiff.transitions import DDIM, DPMSolver, Euler, Heun, PredictorCorrector, Replace

SHAPE = (2, 3, 24, 16)
TRANSITIONS: dict[str, Callable[[], Transition]] = {
    **{name: load("transitions", name) for name in list_plugins("transitions")},
    "ddim_eta": lambda: DDIM(0.5),
    "heun_churn": lambda: Heun(s_churn=10),
    "predictor_corrector_euler": lambda: PredictorCorrector(Euler(), steps=2),
    "replace_dpm_solver": lambda: Replace(DPMSolver()),
}


class Unhindered(TorchDispatchMode):
    """Refuses what makes the host wait for a device: copies from one to the other, indices on the
    host, and decompositions that read their own error code. Numbers (0-d host tensors in
    arithmetic) travel with the kernel's arguments and are free."""

    READS = ("aten::_linalg_eigh", "aten::_linalg_svd", "aten::_linalg_check_errors")
    COPIES = ("aten::_to_copy", "aten::copy_", "aten::index", "aten::index_put", "aten::index_put_")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.name().split(".")[0]
        result = func(*args, **kwargs)
        given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        made = [v for v in tree_leaves(result) if isinstance(v, Tensor)]
        devices = {v.device.type for v in (*given, *made)}
        if len(devices) > 1 and name in self.COPIES and not kwargs.get("non_blocking"):
            raise RuntimeError(f"{name} between {' and '.join(sorted(devices))} waits")
        if name in self.READS and devices != {"cpu"}:
            raise RuntimeError(f"{name} waits")
        return result


class Made(TorchFunctionMode):
    """Refuses what copies numbers from the host to a device unseen by the dispatcher: tensors made
    of them there, and lists of indices."""

    MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        numbers = func in self.MAKERS and not isinstance(args[0], Tensor)
        listed = func is Tensor.__getitem__ and any(
            isinstance(index, list)
            for index in (args[1] if isinstance(args[1], tuple) else (args[1],))
        )
        if (numbers or listed or func is Tensor.new_tensor) and result.device.type != "cpu":
            raise RuntimeError(f"{func.__name__} on {result.device} waits")
        return result


@pytest.fixture(autouse=True)
def unhindered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run's loop, once the run is bound."""

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        with Unhindered(), Made():
            return sample(*args, **kwargs)

    monkeypatch.setattr("invdiff.solving.run.sample", watched)


class Backward(torch.autograd.Function):
    """The identity, whose backward pass waits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * torch.ones(16).to(grad.device)


class Attention(torch.nn.Module):
    """Of an image's places to each other."""

    def forward(self, x: Tensor) -> Tensor:
        places = x.flatten(2).mT[:, None]
        seen = torch.nn.functional.scaled_dot_product_attention(places, places, places)
        return x + seen[:, 0].mT.reshape(x.shape)


class Net(torch.nn.Module):
    """A convolution and attention with learned variance and labels, parameters on meta."""

    def __init__(self, cond_channels: int = 0) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3 + cond_channels, 6, 3, padding=1, device="meta")
        self.mid = Attention()
        self.embed = torch.nn.Embedding(11, 3, device="meta")

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return (
            self.mid(self.layer(x))
            + self.embed(label).repeat(1, 2)[..., None, None]
            + t.view(-1, 1, 1, 1)
        )


class Classifier(torch.nn.Module):
    """Logits of ten classes, parameters on meta."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 10, 3, device="meta")

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(x).mean(dim=(2, 3)) * t[:, None]


def registered(name: str) -> Method:
    """A method as a user would make it: with a label where it has one, and few of the inner steps,
    which are all alike."""
    takes = inspect.signature(load("guidance", name)).parameters
    given = {"label": [3, 5], "langevin_steps": 2, "n": 2, "K": 2, "weak": network()}
    return make_method(name, **{k: v for k, v in given.items() if k in takes})


def network(
    schedule: schedules.Schedule | None = None, cond_channels: int | None = None
) -> Denoiser:
    schedule = schedule or schedules.linear()
    return Denoiser(
        Net(cond_channels or 0),
        schedule=schedule,
        cond_channels=cond_channels,
        data_range=(-1, 1),
        learned_variance=True,
        num_classes=10,
        multiple=5,
        classifier=NoisyClassifier(Classifier(), schedule=schedule),
    )


def refusal(method: Method, measurement: Measurement) -> str | None:
    """What must be said instead of sampling, from the pieces' own declarations."""
    assert method.transition is not None
    shown = (
        isinstance(measurement.operator, invdiff.LinearOperator)
        or measurement.y.shape[1:] == measurement.image_shape
    )
    if isinstance(method.itinerary, itineraries.LateStart) and not shown:
        return "needs an image to start from"
    if (
        any(isinstance(g, StatefulGuidance) for g in method.chain)
        and method.transition.predictions > 1
    ):
        return "predicts more than once"
    for piece in (*method.chain, method.transition):
        if piece.requires is not None and not isinstance(measurement.operator, piece.requires):
            return f"requires {piece.requires.wanted()}"
    if any(isinstance(g, DDNM) for g in method.chain) and not isinstance(
        measurement.operator, SpectralOperator
    ):
        return "where the measurement has noise"
    if any("cond" in g.sets for g in method.chain) and (
        measurement.y.ndim != 4 or measurement.y.is_complex()
    ):
        return "needs a measurement that is an image"
    return None


def check(measurement: Measurement, method: Method, steps: int = 3) -> None:
    says = refusal(complete(method).method, measurement)
    if says is not None:
        with pytest.raises(ValueError, match=says):
            solve(measurement, network(), method, steps=steps)
        return
    shown = measurement.y.shape[1] if any("cond" in g.sets for g in method.chain) else None
    denoiser = network(cond_channels=shown)
    result = solve(measurement, denoiser, method, steps=steps, num_samples=2, batch_size=3)
    assert result.samples.device.type == "meta"
    assert result.samples.shape == (2, *SHAPE)


@pytest.fixture(scope="module")
def measurements() -> dict[str, Measurement]:
    """One of every registered operator with its defaults; per-image sigma, so that this travels
    too, and a number for every other."""
    x = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    return {
        name: make_operator(name).measure(x, sigma=0.03 if k % 2 else [0.02, 0.05])
        for k, name in enumerate(invdiff.list_plugins("operators"))
    }


def pairs(names: Iterable[str], others: Iterable[str], few: Set[str]) -> list[Any]:
    """Of every name with every other. The default suite takes those that have one of ``few``, the
    slow one all."""
    return [
        pytest.param(name, other, marks=[] if few & {name, other} else pytest.mark.slow)
        for name, other in product(names, others)
    ]


GUIDANCE = [name for name in list_plugins("guidance") if registered(name).chain or name == "none"]


@pytest.mark.parametrize(
    ("method", "transition"),
    pairs(GUIDANCE, TRANSITIONS, {"dps", "ddim", "predictor_corrector_euler"}),
)
def test_every_guidance_under_every_transition(
    method: str, transition: str, measurements: dict[str, Measurement]
) -> None:
    made = registered(method)
    check(measurements["sr"], Method(made.chain, TRANSITIONS[transition](), made.itinerary))


# Of operators a diagonal one, one with an SVD, one that is linear and one that is not; of methods
# one that needs a gradient, an SVD, a proximal step and many evaluations.
FEW = {"inpaint", "sr", "varying_blur", "jpeg", "dps", "ddrm", "diffpir", "daps"}


@pytest.mark.parametrize(
    ("method", "operator"), pairs(list_plugins("guidance"), list_plugins("operators"), FEW)
)
def test_every_method_as_it_is(
    method: str, operator: str, measurements: dict[str, Measurement]
) -> None:
    check(measurements[operator], registered(method), steps=2)


def test_a_classifier_as_a_shift_of_the_mean(measurements: dict[str, Measurement]) -> None:
    check(measurements["inpaint"], make_method("classifier", label=3, mean_shift=True))


@pytest.mark.parametrize("itinerary", list_plugins("itineraries"))
@pytest.mark.parametrize("operator", invdiff.list_plugins("operators"))
def test_every_itinerary(
    operator: str, itinerary: str, measurements: dict[str, Measurement]
) -> None:
    made = load("itineraries", itinerary)(
        **({"length": 1, "resamplings": 2} if itinerary == "jumps" else {})
    )
    check(measurements[operator], Method(make_method("dps").guidance, itinerary=made))


@pytest.mark.parametrize("operator", invdiff.list_plugins("operators"))
def test_every_operators_own_functions_and_a_measurement_made_there(operator: str) -> None:
    x = torch.empty(SHAPE, device="meta")
    measurement = make_operator(operator).measure(x, sigma=0.02)
    bound, y = measurement.operator, measurement.y
    assert y.device.type == "meta"
    assert measurement.log_likelihood(x).shape == (2,)
    images = [bound(x)]
    for name in ("adjoint", "pinv"):
        if hasattr(bound, name):
            back = getattr(bound, name)(y)
            assert back.shape == SHAPE
            images.append(back)
    if hasattr(bound, "prox"):
        images += [bound.prox(x, y, 0.3), bound.prox(x, y, torch.empty(2, device="meta"))]
    if isinstance(bound, invdiff.SpectralOperator):
        images += [bound.V(bound.Vt(x)), bound.U(bound.Ut(y))]
    assert {image.device.type for image in images} == {"meta"}


@pytest.mark.parametrize("schedule", ["linear", "vp", "subvp", "ve", "edm", "flow", "brownian"])
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_every_schedule(
    transition: str, schedule: str, measurements: dict[str, Measurement]
) -> None:
    chosen = getattr(schedules, schedule)()
    levels = [level for level in itineraries.Straight()(chosen, 4) if level.alpha > 0]
    x = torch.empty(SHAPE, device="meta")
    out = sample(
        network(),
        x,
        levels,
        schedule=chosen,
        noise=NoiseSource([0, 1], "meta"),
        transition=TRANSITIONS[transition](),
        measurement=measurements["inpaint"].to("meta"),
        guidance=make_method("dps").chain,
        cond={"label": torch.empty(2, dtype=torch.long, device="meta")},
    )
    assert out.device.type == "meta"


def test_generation_and_half_precision() -> None:
    denoiser = Denoiser(
        Net(),
        schedule=schedules.linear(),
        learned_variance=True,
        num_classes=10,
        dtype=torch.bfloat16,
    )
    result = generate(denoiser, SHAPE, steps=3, label=torch.tensor([1, 2]))
    assert result.x.device.type == "meta"
    assert result.x.dtype == torch.float32


@pytest.mark.parametrize(
    "stray",
    [
        lambda x: x + torch.ones(16),
        lambda x: x * x.sum().item(),
        lambda x: x if bool(x.sum() > 0) else -x,
        lambda x: x * torch.as_tensor(0.5, device=x.device),
        lambda x: x * x.new_tensor([0.5]),
        lambda x: x + torch.ones(16).to(x.device),
        lambda x: x[[0]],
        lambda x: x[torch.tensor([0])],
        lambda x: x[x > 0].sum() + x,
        lambda x: torch.linalg.eigh(x @ x.mT)[1] @ x,
        Backward.apply,
    ],
)
def test_meta_does_catch_what_it_should(stray: Callable[[Tensor], Tensor]) -> None:
    denoiser = Denoiser(lambda x, t: stray(x), schedule=schedules.linear())
    x = torch.rand(1, 3, 16, 16)
    measurement = make_operator("inpaint").measure(x, sigma=0.02).to("meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        solve(measurement, denoiser, "dps", steps=2)


def test_numbers_are_free(measurements: dict[str, Measurement]) -> None:
    x = torch.empty(2, 3, device="meta")
    with Unhindered(), Made():
        x = x * torch.tensor(0.5, dtype=torch.float64) + torch.zeros_like(x)
        assert torch.where(x > 0, x, 0.0).device.type == "meta"
