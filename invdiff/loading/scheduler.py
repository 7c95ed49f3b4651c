"""The facts about a network in the configuration of a diffusers scheduler: its noise schedule, what
it predicts, the grid it is sampled on."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from invdiff import schedules
from invdiff.network import OfLevel
from invdiff.network.preconditioning import ALIASES, TIMES, spelled
from invdiff.schedules import Discrete, Schedule, make_schedule

PREDICTION_TYPES = {name: ALIASES[name] for name in ("epsilon", "sample", "v_prediction")}
FLOW_PREDICTION_TYPES = ALIASES | {"flow": "velocity"}
BETA_SCHEDULES = {
    "linear": schedules.linear,
    "scaled_linear": schedules.scaled_linear,
    "sigmoid": schedules.sigmoid,
    "squaredcos_cap_v2": lambda T, beta_start, beta_end, zero_terminal_snr: schedules.cosine(
        T, zero_terminal_snr=zero_terminal_snr
    ),
}
SPACINGS = {"linspace": "uniform", "leading": "leading", "trailing": "trailing"}
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range")
UNHEEDED = (
    "thresholding",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "shift_terminal",
    "stochastic_sampling",
)
"""Options of diffusers' samplers, not facts about a network, that have no counterpart here."""
DISTILLED = ("LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler")
"""Schedulers of networks whose x0 is a sample instead of the mean."""

KNOWN = (
    "those with betas (DDPM, DDIM, PNDM, Euler, Heun, DPMSolver, UniPC, ...), "
    "FlowMatchEulerDiscrete, FlowMatchHeunDiscrete, "
    "EDMEuler, EDMDPMSolverMultistep, ScoreSdeVe, CMStochasticIterative"
)


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with what it leaves out filled in from the scheduler's class.

    Raises:
        ValueError: a class that diffusers does not have.
    """
    import diffusers

    name = config.get("_class_name")
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not inspect.isclass(cls):
        raise ValueError(
            f"unknown scheduler {name!r}; known: {KNOWN}. Say what it does: "
            "schedule=invdiff.schedules..., predicts=..."
        )
    defaults = {
        n: p.default
        for n, p in inspect.signature(cls.__init__).parameters.items()
        if p.default is not p.empty
    }
    return (
        defaults | {"_class_name": name} | {k: v for k, v in config.items() if k != "_class_name"}
    )


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """The noise schedule a diffusers scheduler configuration describes, with its grid as the
    default spacing."""
    return read_scheduler(config)["schedule"]


def read_scheduler(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options of :class:`~invdiff.network.Denoiser` that a diffusers scheduler configuration
    implies, and ``sign`` of the network's output where it is not ours.

    Raises:
        ValueError: what is not understood, with what is.
    """
    given = settings_of(config)
    name = given["_class_name"]
    flow = name.startswith("FlowMatch") or bool(given.get("use_flow_sigmas"))
    for option in (
        (*UNHEEDED, "use_karras_sigmas") if flow else UNHEEDED
    ):  # on a flow, which has no largest sigma / alpha
        if given.get(option):
            warnings.warn(
                f"{name} asks for {option}, which is about sampling and not done here; the "
                "network is unaffected",
                stacklevel=2,
            )
    if flow:
        return _flow(given)
    if name.startswith("EDM"):
        return _edm(given)
    if name == "CMStochasticIterativeScheduler":
        return {
            "predicts": "consistency",
            "schedule": schedules.edm(given["sigma_min"], given["sigma_max"], given["rho"]),
            "sigma_data": given["sigma_data"],
            **({} if given["clip_denoised"] else {"clip": False}),
        }
    if name == "ScoreSdeVeScheduler":
        # These networks take sigma, and their images lie in [0, 1] (diffusers'
        # ScoreSdeVePipeline).
        return {
            "predicts": "score",
            "schedule": schedules.ve(given["sigma_min"], given["sigma_max"]),
            "time": OfLevel(lambda level: level.ratio),
            "data_range": (0.0, 1.0),
        }
    if "beta_schedule" not in given:
        raise ValueError(
            f"a noise schedule cannot be read from {name}; known: {KNOWN}. Say what it "
            "does: schedule=..., predicts=..."
        )
    return {
        "predicts": _look_up(PREDICTION_TYPES, given, "prediction_type", "epsilon"),
        "schedule": _betas(given),
    }


def overridden(found: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """``found`` of a checkpoint with ``options`` on top, which are the user's; what they make
    untrue of the rest is left out, with a warning where the time input of the network may then be
    wrong.

    Args:
        found: options of a Denoiser, and ``sign``; empty, if nothing is known.
        options: of a Denoiser; with ``schedule`` and ``predicts`` where these were not found.
    """
    both = {**found, **options}
    both["predicts"] = spelled(both["predicts"])
    if both["predicts"] != found.get("predicts"):
        both.pop("sign", None)
    schedule, time = make_schedule(both["schedule"]), both.get("time")
    if (
        "time" in options
        or type(schedule) is type(found.get("schedule"))
        or isinstance(time, OfLevel)
    ):
        return both
    both.pop("time", None)
    if not isinstance(schedule, Discrete) and both["predicts"] not in TIMES:
        warnings.warn(
            f"how the network counts the time of a {type(schedule).__name__} schedule is "
            f"not known, so its time input is t from {schedule.t_min:g} to "
            f"{schedule.t_max:g}; if it counts otherwise, say so: time=lambda t: 1000 * t",
            stacklevel=2,
        )
    return both


def _betas(given: dict[str, Any]) -> Discrete:
    zero = bool(given.get("rescale_betas_zero_snr", False))
    if given.get("trained_betas") is not None:
        schedule = schedules.from_betas(given["trained_betas"], zero)
    else:
        make: Any = _look_up(BETA_SCHEDULES, given, "beta_schedule", "linear")
        schedule = make(
            int(given["num_train_timesteps"]),
            given.get("beta_start"),
            given.get("beta_end"),
            zero_terminal_snr=zero,
        )
    schedule.spacing = (
        "karras"
        if given.get("use_karras_sigmas")
        else _look_up(SPACINGS, given, "timestep_spacing", "linspace")
    )
    schedule.offset = int(given.get("steps_offset") or 0)
    return schedule


def _flow(given: dict[str, Any]) -> dict[str, Any]:
    T = int(given["num_train_timesteps"])
    predicts = _look_up(
        FLOW_PREDICTION_TYPES,
        {"prediction_type": "flow_prediction"} | given,
        "prediction_type",
        "flow_prediction",
    )
    if given.get("use_flow_sigmas"):  # DPM-Solver and UniPC go down from 1 - 1/T; here from 1
        schedule = schedules.Flow(given.get("flow_shift") or 1.0)
    elif given.get("use_dynamic_shifting"):
        schedule = schedules.SizedFlow(
            noise_first=bool(given.get("invert_sigmas")),
            spacing="uniform",
            sigma_min=1 / T,
            shifts=(given["base_shift"], given["max_shift"]),
            patches=(given["base_image_seq_len"], given["max_image_seq_len"]),
            linear=given.get("time_shift_type") == "linear",
        )
    else:  # diffusers' grid runs down to the shifted 1/T and is then shifted once more
        shift = given["shift"]
        lowest = shift / T / (1 + (shift - 1) / T)
        schedule = schedules.Flow(
            shift, bool(given.get("invert_sigmas")), spacing="uniform", sigma_min=lowest
        )
    return {"predicts": predicts, "schedule": schedule, "time": lambda t: T * t}


def _edm(given: dict[str, Any]) -> dict[str, Any]:
    kind = given["prediction_type"]
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"unknown prediction_type {kind!r} of {given['_class_name']}; known: epsilon, "
            "v_prediction"
        )
    low, high = given["sigma_min"], given["sigma_max"]
    schedule = (
        schedules.ve(low, high)
        if given.get("sigma_schedule") == "exponential"
        else schedules.edm(low, high, given["rho"])
    )
    # In diffusers the two differ in the sign of c_out.
    return {
        "predicts": "edm",
        "schedule": schedule,
        "sigma_data": given["sigma_data"],
        "sign": 1.0 if kind == "epsilon" else -1.0,
    }


def check_variance(config: Mapping[str, Any]) -> str | None:
    """The configuration's variance_type; None where it has none."""
    kind = config.get("variance_type")
    if kind is not None and kind not in VARIANCES:
        raise ValueError(
            f"variance_type {kind!r} is not understood ('learned' is a network that returns "
            f"the variance itself); known: {', '.join(VARIANCES)}"
        )
    return kind


def _look_up(known: Mapping[str, Any], given: Mapping[str, Any], key: str, default: str) -> Any:
    value = given.get(key, default)
    if value not in known:
        raise ValueError(
            f"unknown {key} {value!r}; known: "
            f"{', '.join(known)}{', or trained_betas' if key == 'beta_schedule' else ''}"
        )
    return known[value]
