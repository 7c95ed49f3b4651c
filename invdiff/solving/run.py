"""A run that is known to work: every piece filled in and checked before sampling starts."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from invdiff.device import out_of_memory
from invdiff.network import Denoiser, count_evaluations
from invdiff.noise import NoiseSource, seed_of
from invdiff.problem import Measurement
from invdiff.problem.wrapped import Decoded
from invdiff.sampling import (
    Callback,
    Itinerary,
    Progress,
    Setting,
    Transition,
    sample,
)
from invdiff.sampling.method import describe
from invdiff.schedules import Level, Schedule
from invdiff.solving.plan import Plan, complete
from invdiff.solving.progress import ProgressBar
from invdiff.solving.ranges import encoded, from_range, into_range
from invdiff.solving.restoration import Restoration


def noise_of(seed: int, chains: Sequence[tuple[int, int]], device: torch.device) -> NoiseSource:
    """The noise of chains, (sample, image id) each."""
    return NoiseSource(
        [seed_of("sampling", seed, image_id, sample_index) for sample_index, image_id in chains],
        device,
    )


@dataclass(frozen=True)
class Run:
    """A run that is known to work: every piece filled in and checked, tensors on the device in the
    network's range."""

    denoiser: Denoiser
    plan: Plan  # as given, for the record
    bound: Plan
    schedule: Schedule
    levels: list[Level]
    shape: tuple[int, ...]
    measurement: Measurement | None
    first: Tensor | None  # x_T, or alpha_T times the image that a late start noises
    noise_std: float  # of what is added to it
    ids: list[int]
    seed: int
    steps: int
    dtype: torch.dtype
    device: torch.device
    cond: dict[str, Any]
    given_cond: Mapping[str, Any]  # as given, for the record

    @classmethod
    def prepare(
        cls,
        denoiser: Denoiser,
        method: Any,
        shape: tuple[int, ...],
        *,
        measurement: Measurement | None = None,
        transition: Transition | None = None,
        itinerary: Itinerary | None = None,
        schedule: Schedule | None = None,
        start: Tensor | None = None,
        x_T: Tensor | None = None,
        image_ids: Sequence[int] | None = None,
        seed: int = 0,
        steps: int = 100,
        dtype: torch.dtype = torch.float32,
        cond: Mapping[str, Any] = MappingProxyType({}),
    ) -> Run:
        """Checks and fills in; raises before sampling."""
        if not isinstance(steps, int):
            raise TypeError(f"steps must be a whole number, got {steps!r}")
        ids = list(range(shape[0])) if image_ids is None else list(image_ids)
        if len(ids) != shape[0]:
            raise ValueError(f"image_ids must name each of the {shape[0]} images, got {len(ids)}")
        plan = complete(method, transition, itinerary)
        schedule = schedule or denoiser.schedule
        levels = plan.itinerary(schedule, steps)
        device = denoiser.device or (
            measurement.y.device if measurement is not None else torch.device("cpu")
        )
        first = None if x_T is None else x_T.to(device, dtype)
        if measurement is not None:
            measurement = measurement.to(device, dtype).to_range(
                *(denoiser.image_range or (0.0, 1.0))
            )
        if first is None:
            if start is not None and tuple(start.shape) != shape:
                raise ValueError(
                    f"start must have the shape of the images, {shape}, got {tuple(start.shape)}"
                )
            # The itinerary sees the network's range, where missing pixels are grey and not black.
            image = (
                plan.itinerary.start(measurement)
                if start is None
                else into_range(denoiser, start.to(device, dtype))
            )
            if image is not None:
                encoding = NoiseSource([seed_of("encode", seed, k) for k in ids], device)
                first = levels[0].alpha * encoded(denoiser, image, encoding)
            elif not schedule.from_noise:
                raise ValueError(
                    f"{denoiser.name} knows no noise that drowns the image (at most sigma = "
                    f"{float(levels[0].sigma):g}), so a run cannot start "
                    "from noise alone; give an image to start from: "
                    "start=operator.pinv(measurement.y)"
                )
        if measurement is not None and denoiser.autoencoder is not None:
            operator = Decoded(
                measurement.operator, denoiser.autoencoder, shape=denoiser.state_shape(shape)[1:]
            )
            measurement = replace(measurement, operator=operator)
        given = {name for guidance in plan.chain for name in guidance.sets}
        resolved = resolve_conditions(denoiser, cond, shape[0], device, given)
        if denoiser.cond_channels is not None and "cond" not in given | set(cond):
            raise ValueError(
                f"{denoiser.name} is shown an image beside the state; use the method 'sr3', "
                "which makes it from the measurement"
            )
        stated = {
            k: v for k, v in resolved.items() if cond.get(k) is not None
        }  # a null label that nobody asked for is no label to guidance
        bound = plan.bind(
            Setting(denoiser, denoiser.state_shape(shape), measurement, stated, device, dtype)
        )
        noise_std = 0.0 if x_T is not None else float(levels[0].sigma)
        return cls(
            denoiser,
            plan,
            bound,
            schedule,
            levels,
            shape,
            measurement,
            first,
            noise_std,
            ids,
            seed,
            steps,
            dtype,
            device,
            resolved,
            cond,
        )

    def __call__(
        self,
        num_samples: int,
        batch_size: int | None,
        callback: Callback | None,
        trajectory: bool,
        progress: bool,
    ) -> Restoration:
        """Samples all chains, ``batch_size`` at once, fewer where memory runs out."""
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        chains = [
            (sample_index, k) for sample_index in range(num_samples) for k in range(self.shape[0])
        ]
        together = 1  # chains that may not be parted
        if self.bound.particles:
            together, chains = num_samples, sorted(chains, key=lambda chain: chain[1])
            if batch_size is not None and batch_size < together:
                raise ValueError(
                    f"the {num_samples} samples of an image are one particle system to this "
                    "method and share a batch: "
                    f"batch_size must be at least {num_samples}, got {batch_size}; or ask "
                    "for fewer samples"
                )
        size = min(batch_size or len(chains), len(chains)) // together * together
        kept: list[tuple[Tensor, Tensor | None]] = []
        begun = time.perf_counter()
        with (
            count_evaluations() as evaluations,
            ProgressBar(progress, len(self.levels) - 1, len(chains)) as bar,
        ):
            done = 0
            while done < len(chains):
                part, before = chains[done : done + size], replace(evaluations)
                try:
                    kept.append(
                        self._sample(part, together, bar.watch(callback, len(part)), trajectory)
                    )
                except RuntimeError as error:  # torch.OutOfMemoryError is one
                    if batch_size is not None or size == together or not out_of_memory(error):
                        raise
                    evaluations.forward, evaluations.backward = before.forward, before.backward
                    size = max(1, size // together // 2) * together
                    warnings.warn(
                        f"out of memory; going on with {size} chains at once", stacklevel=3
                    )
                    continue
                done += len(part)
        seconds = time.perf_counter() - begun
        paths = [path for _, path in kept if path is not None]
        order = torch.tensor(
            sorted(range(len(chains)), key=chains.__getitem__)
        )  # sample by sample, as they are returned
        return Restoration(
            samples=torch.cat([x for x, _ in kept])[order].view(num_samples, *self.shape),
            nfe=evaluations.forward / len(chains),
            nbe=evaluations.backward / len(chains),
            seconds=seconds,
            config=self._config() | {"num_samples": num_samples},
            trajectory=torch.cat(paths, dim=1)[:, order].unflatten(1, (num_samples, self.shape[0]))
            if paths
            else None,
        )

    def _sample(
        self, part: Sequence[tuple[int, int]], particles: int, callback: Callback, trajectory: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Some of the chains, (sample, image) each, of which ``particles`` in a row are one system:
        their final images, and their estimates after each step if asked for."""
        images = [k for _, k in part]
        noise = noise_of(
            self.seed, [(sample_index, self.ids[k]) for sample_index, k in part], self.device
        )
        # Drawn even where it is not needed, so that a run from a given state has the noise of one
        # that is not.
        x = self.noise_std * noise.randn_like(
            torch.empty(
                len(part),
                *self.denoiser.state_shape(self.shape)[1:],
                dtype=self.dtype,
                device=self.device,
            )
        )
        if self.first is not None:
            x = self.first[images] + x
        path: list[Tensor] = []
        chains = tuple((sample_index, self.ids[k]) for sample_index, k in part)

        def watch(p: Progress) -> None:
            if trajectory and p.x0 is not None:
                path.append(from_range(self.denoiser, p.x0).cpu())
            callback(replace(p, chains=chains))

        plan = self.bound.select(images)
        measurement = self.measurement
        if measurement is not None and images != list(range(len(measurement))):
            measurement = measurement.select(images)
        x = sample(
            self.denoiser,
            x,
            self.levels,
            schedule=self.schedule,
            noise=noise,
            transition=plan.transition,
            guidance=plan.chain,
            measurement=measurement,
            callback=watch,
            cond={k: v[images] if isinstance(v, Tensor) else v for k, v in self.cond.items()},
            particles=particles,
        )
        return from_range(self.denoiser, x), torch.stack(path) if path else None

    def _config(self) -> dict[str, Any]:
        return {
            "model": self.denoiser.name,
            "method": describe(self.plan.method),
            "schedule": describe(self.schedule)
            if is_dataclass(self.schedule)
            else type(self.schedule).__name__,
            "steps": self.steps,
            "seed": self.seed,
            "dtype": str(self.denoiser.dtype).removeprefix("torch."),
            "cond": {k: describe(v) for k, v in self.given_cond.items()},
        }


def check_image(denoiser: Denoiser, shape: tuple[int, ...]) -> None:
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            "denoiser must be an invdiff.Denoiser (wrap a network: Denoiser(net, "
            f"predicts=..., schedule=...)), got {type(denoiser).__name__}"
        )
    if denoiser.channels is not None and shape[0] != denoiser.channels:
        raise ValueError(
            f"{denoiser.name} works on images with {denoiser.channels} channels, got "
            f"{shape[0]} (image shape {shape})"
        )
    trained = denoiser.image_size
    if (
        trained is not None
        and len(shape) == 3
        and not (trained / 2 <= min(shape[1:]) and max(shape[1:]) <= 8 * trained)
    ):
        # One call site, so Python's default filter shows it once for each network and size.
        warnings.warn(
            f"{denoiser.name} was trained on {trained}x{trained} images; "
            f"{shape[1]}x{shape[2]} is far from that and quality may suffer",
            stacklevel=3,
        )


def resolve_conditions(
    denoiser: Denoiser,
    cond: Mapping[str, Any],
    images: int,
    device: torch.device,
    given: Iterable[str] = (),
) -> dict[str, Any]:
    """What a run gives to the network, on the device and with a label for each image unless
    guidance gives it.

    Refuses keyword arguments that neither we nor the network know (most are misspelt, or belong to
    the method), what is missing, labels that are none, and tensors that have not one entry for each
    image.
    """
    known = ("label",) if denoiser.cond_channels is None else ("label", "cond")
    for name in cond:
        if name not in known and not denoiser.takes(name):
            raise TypeError(
                f"unknown argument {name!r}: {denoiser.name} takes no condition of that "
                "name. A method's parameters go with the method: make_method('dps', "
                "zeta=0.5)"
            )
    absent = [name for name in denoiser.required if cond.get(name) is None]
    if absent:
        how = (
            ""
            if denoiser.text is None
            else "; of a prompt (--prompt), **denoiser.conditions_of(prompt) gives it"
        )
        raise ValueError(
            f"{denoiser.name} cannot run without {', '.join(absent)}; give "
            f"{'each' if len(absent) > 1 else 'it'} as a keyword argument, "
            f"one entry for each image{how}"
        )
    label = {}
    if denoiser.num_classes is not None and ("label" in cond or "label" not in given):
        label = {"label": denoiser.labels(cond.get("label"), images)}
    resolved = {**cond, **label}
    for name, value in resolved.items():
        if isinstance(value, Tensor) and value.shape[:1] != (images,):
            raise ValueError(
                f"{name} must have one entry for each of the {images} images, got shape "
                f"{tuple(value.shape)}"
            )
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in resolved.items()}
