"""A prepared run: every piece filled in and checked before sampling starts, then sampled."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from invdiff.device import free_memory_mb, out_of_memory, peak_memory_mb, reset_peak_memory
from invdiff.network import Denoiser, count_evaluations
from invdiff.noise import NoiseSource, seed_of
from invdiff.problem import Measurement
from invdiff.problem.wrapped import Decoded
from invdiff.sampling import Callback, Progress, Setting, sample
from invdiff.sampling.method import describe
from invdiff.sampling.unknown import LATE
from invdiff.schedules import Level, Schedule, make_schedule
from invdiff.solving.options import RunOptions
from invdiff.solving.plan import Plan, complete
from invdiff.solving.progress import ProgressBar
from invdiff.solving.ranges import encoded, from_range, into_range
from invdiff.solving.restoration import Restoration

MOST = 1_000_000
"""Chains of one run."""
Chain = tuple[int, int]
"""The sample and the image, by their positions."""


SURE = 20_000
"""Bytes for each byte of a state that surely suffice for a step of a chain: where as much is free,
nothing is measured."""

SHARE = 0.8
"""Of the free memory, for the chains that run at once."""


@dataclass(frozen=True)
class Part:
    """The outcome of some chains: their images, their estimates after each step if asked for, and
    of an unknown operator after each late step."""

    x: Tensor
    path: Tensor | None
    unknown: dict[str, Tensor]


class _Measured(Exception):
    """Ends a run whose memory is measured."""


def noise_of(seed: int, chains: Sequence[Chain], device: torch.device) -> NoiseSource:
    """The noise of chains, (sample, image id) each."""
    seeds = [seed_of("sampling", seed, image_id, j) for j, image_id in chains]
    return NoiseSource(seeds, device)


@dataclass(frozen=True)
class Run:
    """A run that is known to work, with tensors on the device and in the network's range.

    Attributes:
        plan: the method with every piece filled in, as recorded.
        bound: the plan made ready for this run.
        shape: (B, C, H, W) of the images; ids: the k of each.
        first: x_T, or alpha_T times the image that a late start noises; None for pure noise.
        noise_std: of the noise that is added to it.
        cond: conditions of the network, one entry per image; given: as they were given.
    """

    denoiser: Denoiser
    plan: Plan
    bound: Plan
    options: RunOptions
    schedule: Schedule
    levels: list[Level]
    shape: tuple[int, ...]
    ids: list[int]
    device: torch.device
    measurement: Measurement | None
    first: Tensor | None
    noise_std: float
    cond: dict[str, Any]
    given: Mapping[str, Any]

    @classmethod
    def prepare(
        cls,
        denoiser: Denoiser,
        method: Any,
        shape: tuple[int, ...],
        options: RunOptions,
        *,
        measurement: Measurement | None = None,
        x_T: Tensor | None = None,
        cond: Mapping[str, Any] = MappingProxyType({}),
    ) -> Run:
        """Checks and fills in; raises before sampling."""
        plan = complete(method, options.transition, options.itinerary)
        schedule = (
            denoiser.schedule if options.schedule is None else make_schedule(options.schedule)
        )
        schedule = schedule.sized(denoiser.state_shape(shape))
        levels = plan.itinerary(schedule, options.steps)
        ids = list(range(shape[0]) if options.image_ids is None else options.image_ids)
        if len(ids) != shape[0]:
            raise ValueError(f"image_ids must name each of the {shape[0]} images, got {len(ids)}")
        device = denoiser.device or (
            torch.device("cpu") if measurement is None else measurement.y.device
        )
        state_shape = denoiser.state_shape(shape)
        if measurement is not None:
            _check_values(denoiser, measurement)
            measurement = measurement.to(device, options.dtype).to_range(
                *(denoiser.image_range or (0.0, 1.0))
            )
            _check_range(denoiser, measurement)
        start = None
        if x_T is None:
            first = _first(denoiser, plan, options, schedule, levels, shape, ids, measurement)
            start = None if first is None else first / levels[0].alpha.to(first)
        else:
            first = x_T.to(device, options.dtype)
        if measurement is not None and denoiser.autoencoder is not None:
            operator = Decoded(measurement.operator, denoiser.autoencoder, shape=state_shape[1:])
            measurement = replace(measurement, operator=operator)
        if measurement is not None and plan.one_sigma is not None:
            measurement = measurement.whitened(plan.one_sigma)
        sets = {name for guidance in plan.chain for name in guidance.sets}
        resolved = resolve_conditions(denoiser, cond, shape[0], device, sets)
        if denoiser.cond_channels is not None and "cond" not in sets | set(cond):
            raise ValueError(
                f"{denoiser.name} is conditioned on an image; use the method 'sr3', which makes it "
                "from the measurement"
            )
        # A null label that nobody asked for is no label to guidance.
        stated = {k: v for k, v in resolved.items() if cond.get(k) is not None}
        setting = Setting(denoiser, state_shape, measurement, stated, device, options.dtype, start)
        return cls(
            denoiser=denoiser,
            plan=plan,
            bound=plan.bind(setting),
            options=options,
            schedule=schedule,
            levels=levels,
            shape=shape,
            ids=ids,
            device=device,
            measurement=measurement,
            first=first,
            noise_std=float(levels[0].sigma) if x_T is None else 0.0,
            cond=resolved,
            given=cond,
        )

    def __call__(self, num_samples: int) -> Restoration:
        """Samples all chains, ``batch_size`` at once, by default as many as fit into memory; fewer
        where it runs out all the same."""
        if not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples must be a whole number, at least 1, got {num_samples!r}")
        if num_samples * self.shape[0] > MOST:
            raise ValueError(
                f"{num_samples:.3g} samples of {self.shape[0]} images are more than {MOST:,} at "
                "once; ask for fewer"
            )
        chains = [(j, k) for j in range(num_samples) for k in range(self.shape[0])]
        # Chains that may not be parted: a particle system.
        together = num_samples if self.bound.particles else 1
        if together > 1:
            chains.sort(key=lambda chain: chain[1])
        options = self.options
        if options.batch_size is not None and options.batch_size < together:
            raise ValueError(
                f"the {num_samples} samples of an image are one particle system to this method "
                f"and share a batch: batch_size must be at least {num_samples}, got "
                f"{options.batch_size}; or ask for fewer samples"
            )
        size = options.batch_size or self._at_once(chains, together)
        begun = time.perf_counter()
        with (
            count_evaluations() as evaluations,
            ProgressBar(options.progress, len(self.levels) - 1, len(chains)) as bar,
        ):
            kept = self._batches(chains, size, together, evaluations, bar)
        seconds = time.perf_counter() - begun
        paths = [part.path for part in kept if part.path is not None]
        # Sample by sample, as they are returned.
        order = torch.tensor(sorted(range(len(chains)), key=chains.__getitem__))
        return Restoration(
            samples=torch.cat([part.x for part in kept])[order].view(num_samples, *self.shape),
            nfe=evaluations.forward / len(chains),
            nbe=evaluations.backward / len(chains),
            seconds=seconds,
            config=self.describe(num_samples),
            trajectory=torch.cat(paths, dim=1)[:, order].unflatten(1, (num_samples, self.shape[0]))
            if paths
            else None,
            unknown={
                name: torch.cat([part.unknown[name] for part in kept], dim=1)[:, order].unflatten(
                    1, (num_samples, self.shape[0])
                )
                for name in kept[0].unknown
            },
        )

    def _at_once(self, chains: Sequence[Chain], together: int) -> int:
        """How many chains surely fit into memory at once: all, unless two steps of one chain (or
        of those that may not be parted) take more at their peak than their share of what is free.
        A Linux process that asks for too much is killed before it could be told."""
        free = free_memory_mb(self.device)
        state = math.prod(self.denoiser.state_shape(self.shape)[1:])
        sure = len(chains) * state * self.options.dtype.itemsize * SURE / 2**20
        if free is None or len(chains) <= together or sure <= SHARE * free:
            return len(chains)

        def stop(progress: Progress) -> None:
            if progress.index + 1 == min(2, progress.count):
                raise _Measured

        if not reset_peak_memory(self.device):
            return len(chains)
        before = peak_memory_mb(self.device)  # a peak that has just begun
        with contextlib.suppress(_Measured):
            self._sample(chains[:together], together, stop)
        peak = peak_memory_mb(self.device)
        if peak is None or before is None or peak <= before:
            return len(chains)
        return max(1, int(SHARE * free / (peak - before))) * together

    def _batches(
        self, chains: Sequence[Chain], size: int, together: int, evaluations: Any, bar: ProgressBar
    ) -> list[Part]:
        """The results of :meth:`_sample`, one batch of ``size`` chains after the other."""
        asked, kept, done = self.options.batch_size, list[Part](), 0
        size = min(size, len(chains)) // together * together
        while done < len(chains):
            part, before = chains[done : done + size], replace(evaluations)
            try:
                watch = bar.watch(self.options.callback, len(part))
                kept.append(self._sample(part, together, watch))
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if asked is not None or size == together or not out_of_memory(error):
                    raise
                evaluations.forward, evaluations.backward = before.forward, before.backward
                size = max(1, size // together // 2) * together
                warnings.warn(f"out of memory; going on with {size} chains at once", stacklevel=4)
                continue
            done += len(part)
        return kept

    def _sample(self, part: Sequence[Chain], particles: int, callback: Callback) -> Part:
        """The outcome of some chains, of which ``particles`` in a row are one system."""
        images, options = [k for _, k in part], self.options
        chains = tuple((j, self.ids[k]) for j, k in part)
        noise = noise_of(options.seed, chains, self.device)
        shape = (len(part), *self.denoiser.state_shape(self.shape)[1:])
        # Drawn even where it is not needed, so that a run from a given state has the same noise.
        x = self.noise_std * noise.randn_like(
            torch.empty(shape, dtype=options.dtype, device=self.device)
        )
        if self.first is not None:
            x = self.first[images] + x
        path: list[Tensor] = []
        late: list[Mapping[str, Tensor]] = []

        def watch(p: Progress) -> None:
            if options.trajectory and p.x0 is not None:
                path.append(from_range(self.denoiser, p.x0).cpu())
            if p.unknown and p.index >= (1 - LATE) * p.count - 1:
                late.append(p.unknown)
            callback(replace(p, chains=chains))

        plan, measurement = self.bound.select(images), self.measurement
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
        unknown = {name: torch.stack([p[name] for p in late]) for name in (late or [{}])[0]}
        return Part(from_range(self.denoiser, x), torch.stack(path) if path else None, unknown)

    def describe(self, num_samples: int) -> dict[str, Any]:
        """What is run for so many samples of each image, as plain data."""
        named = is_dataclass(self.schedule)
        return {
            "model": self.denoiser.name,
            "method": describe(self.plan.method),
            "schedule": describe(self.schedule) if named else type(self.schedule).__name__,
            "steps": self.options.steps,
            "seed": self.options.seed,
            "dtype": str(self.denoiser.dtype).removeprefix("torch."),
            "cond": {k: describe(v) for k, v in self.given.items()},
            "num_samples": num_samples,
            "posterior": self.plan.posterior,
        }


def _check_values(denoiser: Denoiser, measurement: Measurement) -> None:
    """Refuses measurements that are not finite, and noise in units of [0, 255]."""
    y, sigma = measurement.y, measurement.sigma
    if not y.is_meta and not bool(y.isfinite().all()):
        bad = int((~y.isfinite()).sum())
        raise ValueError(
            f"{bad} of the {y.numel()} values of the measurement are not finite; mask them, or "
            "replace them"
        )
    images = denoiser.image_range is not None and y.ndim == 4 and y.shape[1] in (1, 3)
    if images and isinstance(sigma, float) and 2 < sigma <= 255:
        raise ValueError(
            f"sigma is in units of [0, 1], got {sigma:g}; did you mean {sigma:g}/255 = "
            f"{sigma / 255:.3f}?"
        )


def _check_range(denoiser: Denoiser, measurement: Measurement) -> None:
    """Warns where images are given to a network that was wrapped for data of no range."""
    shape = measurement.image_shape
    if denoiser.image_range is None and len(shape) == 3 and shape[0] in (1, 3):
        if min(shape[1:]) < 16:  # a toy of a few pixels
            return
        warnings.warn(
            f"{denoiser.name} was wrapped without data_range, so that it sees images in [0, 1] as "
            "they are; most networks of images expect data_range=(-1, 1)",
            stacklevel=4,
        )


def _first(
    denoiser: Denoiser,
    plan: Plan,
    options: RunOptions,
    schedule: Schedule,
    levels: Sequence[Level],
    shape: tuple[int, ...],
    ids: Sequence[int],
    measurement: Measurement | None,
) -> Tensor | None:
    """alpha_T times the image that a late start noises, None where a run starts from pure noise."""
    start = options.start
    if start is not None and tuple(start.shape) != shape:
        raise ValueError(
            f"start must have the shape of the images, {shape}, got {tuple(start.shape)}"
        )
    if start is None:
        # The itinerary sees the network's range, where missing pixels are grey and not black.
        image = plan.itinerary.start(measurement)
    else:
        device = denoiser.device or (start if measurement is None else measurement.y).device
        image = into_range(denoiser, start.to(device, options.dtype))
    if image is not None:
        encoding = NoiseSource([seed_of("encode", options.seed, k) for k in ids], image.device)
        return levels[0].alpha * encoded(denoiser, image, encoding)
    if not schedule.from_noise:
        raise ValueError(
            f"the schedule of {denoiser.name} ends at sigma = {float(levels[0].sigma):g}, too "
            "little to start from pure noise; give an image to start from: "
            "start=operator.pinv(measurement.y)"
        )
    return None


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
    """The conditions that a run gives to the network, on the device and with a label for each image
    unless guidance gives it.

    Refuses keyword arguments that neither we nor the network know (most are misspelt, or belong to
    the method), what is missing, labels that are none, and tensors that have neither one entry for
    each image nor one for all.
    """
    known = ("label",) if denoiser.cond_channels is None else ("label", "cond")
    for name in cond:
        if name not in known and not denoiser.takes(name):
            raise TypeError(
                f"unknown argument {name!r}: {denoiser.name} takes no condition of that "
                "name. A method's parameters go with the method: make_method('dps', "
                "zeta=0.5)"
            )
    absent = [n for n in denoiser.required if cond.get(n) is None and n not in given]
    if absent:
        how = ""
        if denoiser.text is not None:
            how += "; **denoiser.conditions_of(prompt) makes conditions of a prompt (--prompt)"
        if denoiser.image_encoder is not None:
            how += (
                "; **denoiser.conditions_of_image(image) makes conditions of an image "
                "(--image-prompt)"
            )
        raise ValueError(
            f"{denoiser.name} cannot run without {', '.join(absent)}; give "
            f"{'each' if len(absent) > 1 else 'it'} as a keyword argument, one entry for each "
            f"image or one for all (cond.{absent[0]}=NUMBER on the command line){how}"
        )
    label = {}
    if denoiser.num_classes is not None and ("label" in cond or "label" not in given):
        label = {"label": denoiser.labels(cond.get("label"), images)}
    resolved = {**cond, **label}
    for name, value in resolved.items():
        if not isinstance(value, Tensor):
            continue
        if value.shape[:1] not in ((1,), (images,)):
            raise ValueError(
                f"{name} must have one entry for each of the {images} images, or one for all, got "
                f"shape {tuple(value.shape)}"
            )
        resolved[name] = value.to(device).expand(images, *value.shape[1:])
    return resolved
