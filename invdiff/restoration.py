"""The public way in: solve, generate and invert."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from invdiff.denoiser import Denoiser, count_evaluations
from invdiff.itineraries import Straight
from invdiff.latent import Decoded
from invdiff.measurement import Measurement
from invdiff.method import Method, describe, make_method
from invdiff.noise import NoiseSource, seed_of
from invdiff.sampling import Callback, Denoise, Itinerary, Progress, Setting, Step, Transition, out_of_memory, sample
from invdiff.schedules import Level, Schedule
from invdiff.transitions import DDIM


@dataclass(frozen=True)
class Restoration:
    """What :func:`solve` and :func:`generate` return.

    Attributes:
        samples: (num_samples, B, C, H, W), in [0, 1] for image networks.
        nfe, nbe: network evaluations per image and sample, forward and backward, counted while they happened.
        seconds: wall-clock time of the sampling.
        config: what was run, as plain data.
        trajectory: (steps, num_samples, B, C, H, W), the estimate x0 after each step, if it was asked for.
    """

    samples: Tensor
    nfe: float
    nbe: float
    seconds: float
    config: dict[str, Any]
    trajectory: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """The first sample, (B, C, H, W)."""
        return self.samples[0]

    @property
    def mean(self) -> Tensor:
        """Mean over the samples, (B, C, H, W)."""
        return self.samples.mean(0)

    @property
    def std(self) -> Tensor:
        """Standard deviation over the samples, (B, C, H, W); zero for one sample."""
        return self.samples.std(0, correction=1) if len(self.samples) > 1 else torch.zeros_like(self.x)


def solve(
    measurement: Measurement,
    denoiser: Denoiser,
    method: Any = "dps",
    *,
    steps: int = 100,
    seed: int = 0,
    num_samples: int = 1,
    transition: Transition | None = None,
    itinerary: Itinerary | None = None,
    schedule: Schedule | None = None,
    start: Tensor | None = None,
    batch_size: int | None = None,
    image_ids: Sequence[int] | None = None,
    callback: Callback | None = None,
    trajectory: bool = False,
    progress: bool = False,
    dtype: torch.dtype = torch.float32,
    **cond: Any,
) -> Restoration:
    """Restores images from a measurement with a diffusion prior.

    Args:
        measurement: ``y = A(x) + sigma n`` of B images, in [0, 1] for image networks.
        denoiser: the prior.
        method: a registered name, an object, or a list of these, the first nearest to the network.
        steps: how many levels a straight run visits.
        seed: of the sampling noise. Image k of sample j draws a stream of its own, alone or in any batch.
        num_samples: samples per image.
        transition, itinerary: take the place of the method's own.
        schedule: noise schedule to sample on; by default the network's. Any network runs on any schedule.
        start: (B, C, H, W) images that an itinerary with a late start begins from.
        batch_size: at most this many chains at once; None: all, halved (with a warning) when memory runs out.
        image_ids: the k of each image, which its noise is derived from; by default 0..B-1.
        callback: called after each step with a :class:`~invdiff.sampling.Progress`.
        trajectory: keep the estimate of each step.
        progress: show a bar with ETA on stderr.
        dtype: of the state.
        cond: what the network is conditioned on, e.g. ``label=3``; a tensor has one entry per image.

    Raises:
        ValueError: pieces that do not fit each other, named on both sides, before sampling starts; sampling that turns
            non-finite (:class:`~invdiff.sampling.NonFiniteError`).
    """
    run = _solving(
        measurement,
        denoiser,
        method,
        transition=transition,
        itinerary=itinerary,
        schedule=schedule,
        start=start,
        image_ids=image_ids,
        seed=seed,
        steps=steps,
        dtype=dtype,
        cond=cond,
    )
    return run(num_samples, batch_size, callback, trajectory, progress)


def check_solve(measurement: Measurement, denoiser: Denoiser, method: Any = "dps", **options: Any) -> None:
    """Raises what :func:`solve` would raise before it samples. No network is called; a classifier is tried on one empty image."""
    _solving(measurement, denoiser, method, **options)


def _solving(measurement: Measurement, denoiser: Denoiser, method: Any, **options: Any) -> _Run:
    if not isinstance(measurement, Measurement):
        raise TypeError(f"measurement must be an invdiff.Measurement (operator.measure(x) makes one), got {type(measurement).__name__}")
    _check_image(denoiser, measurement.image_shape)
    return _Run.prepare(denoiser, method, (len(measurement), *measurement.image_shape), measurement=measurement, **options)


def generate(
    denoiser: Denoiser,
    shape: Sequence[int] | None = None,
    method: Any = "none",
    *,
    x_T: Tensor | None = None,
    steps: int = 100,
    seed: int = 0,
    transition: Transition | None = None,
    itinerary: Itinerary | None = None,
    schedule: Schedule | None = None,
    start: Tensor | None = None,
    batch_size: int | None = None,
    image_ids: Sequence[int] | None = None,
    callback: Callback | None = None,
    trajectory: bool = False,
    progress: bool = False,
    dtype: torch.dtype = torch.float32,
    **cond: Any,
) -> Restoration:
    """Samples from the prior, under guidance that needs no measurement. Arguments as in :func:`solve`, and:

    Args:
        shape: (B, C, H, W) of the batch.
        x_T: a state to start from instead of noise, in the network's own frame and range, e.g. from :func:`invert`; the transition
            is then DDIM(eta=0) unless one is given.
    """
    if shape is None:
        if x_T is None or denoiser.autoencoder is not None:
            raise ValueError("generate needs the shape of the batch, e.g. shape=(16, 3, 32, 32), or a state x_T")
        shape = x_T.shape
    shape = tuple(int(n) for n in shape)
    _check_image(denoiser, shape[1:])
    if x_T is not None and tuple(x_T.shape) != denoiser.state_shape(shape):
        raise ValueError(f"x_T has shape {tuple(x_T.shape)}, but images of shape={shape} are made from {denoiser.state_shape(shape)}")
    if x_T is not None and transition is None and make_method(method).transition is None:
        transition = DDIM()  # as invert does by default
    run = _Run.prepare(
        denoiser,
        method,
        shape,
        transition=transition,
        itinerary=itinerary,
        schedule=schedule,
        start=start,
        x_T=x_T,
        image_ids=image_ids,
        seed=seed,
        steps=steps,
        dtype=dtype,
        cond=cond,
    )
    return run(1, batch_size, callback, trajectory, progress)


def invert(
    denoiser: Denoiser,
    x: Tensor,
    *,
    steps: int = 100,
    transition: Transition | None = None,
    schedule: Schedule | None = None,
    dtype: torch.dtype = torch.float32,
    **cond: Any,
) -> Tensor:
    """Deterministic inversion: the state x_T from which the same deterministic transition leads back to the image.

    The image is taken as the state at the least noisy level, scaled by its alpha (Song et al. 2021, DDIM, section 4.3).

    Args:
        x: (B, ...) images in [0, 1] for image networks.
        steps, transition, schedule, cond: as they will be used on the way back, ``generate(denoiser, x_T=..., ...)``.
    """
    _check_image(denoiser, tuple(x.shape[1:]))
    transition = transition or DDIM()
    if not transition.deterministic:
        raise ValueError(f"inversion needs a deterministic transition, e.g. DDIM(eta=0) or Heun(); {transition} draws noise")
    schedule = schedule or denoiser.schedule
    levels = Straight()(schedule, steps)[-2::-1]  # least noisy first, the clean end left out
    state = _encoded(denoiser, _in_range(denoiser, x.to(denoiser.device or x.device, dtype))) * levels[0].alpha
    cond = _conditions(denoiser, cond, len(x), state.device)
    noise = NoiseSource([0] * len(x), state.device)  # asked for nothing
    return sample(denoiser, state, levels, schedule=schedule, noise=noise, transition=_Upwards(transition), cond=cond)


def interpolate(
    denoiser: Denoiser,
    shape: Sequence[int],
    seeds: tuple[int, int],
    frames: int = 16,
    *,
    steps: int = 100,
    itinerary: Itinerary | None = None,
    schedule: Schedule | None = None,
    image_id: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """States x_T on the way from the noise of one seed to that of another, ``generate(denoiser, x_T=...)`` makes images of them.

    Spherical, since noise in many dimensions lies near a sphere, which a straight line would leave (Shoemake 1985; Song et al. 2021,
    DDIM, section 5.3). The first and the last state are those of ``generate(denoiser, (1, *shape), seed=...)``.

    Args:
        shape: of one image, (C, H, W).
        seeds: where the way begins and where it ends; two different ones.
        frames: how many states, both ends included; at least 2.
        steps, itinerary, schedule: as they will be used by ``generate``: they say how noisy x_T is.
        image_id: the k of the image whose noise is taken.

    Returns:
        (frames, C, H, W), in the network's own frame and range.
    """
    if frames < 2:
        raise ValueError(f"an interpolation has at least 2 frames, its two ends, got {frames}")
    if seeds[0] == seeds[1]:
        raise ValueError(f"an interpolation goes from one seed to another, got {seeds[0]} twice")
    first = (itinerary or Straight())(schedule or denoiser.schedule, steps)[0]
    device = denoiser.device or torch.device("cpu")
    a, b = (
        _noise_of(seed, [(0, image_id)], device).randn_like(torch.empty(denoiser.state_shape((1, *shape)), dtype=dtype, device=device))
        for seed in seeds
    )
    angle = torch.acos(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))
    way = torch.linspace(0, 1, frames, dtype=dtype, device=device).view(-1, *(1,) * len(shape))
    return float(first.sigma) * (torch.sin((1 - way) * angle) * a + torch.sin(way * angle) * b) / torch.sin(angle)


def _noise_of(seed: int, chains: Sequence[tuple[int, int]], device: torch.device) -> NoiseSource:
    """The noise of chains, (sample, image id) each."""
    return NoiseSource([seed_of("sampling", seed, image_id, sample_index) for sample_index, image_id in chains], device)


@dataclass(frozen=True)
class _Upwards(Transition):
    """A deterministic transition on its way up: its own formula instead of the forward process."""

    inner: Transition

    def __call__(self, predict: Denoise, x_t: Tensor, step: Step, measurement: Measurement | None) -> Tensor:
        return self.inner.down(predict, x_t, step, measurement)

    down = __call__


@dataclass(frozen=True)
class _Run:
    """A run that is known to work: every piece filled in and checked, tensors on the device in the network's range."""

    denoiser: Denoiser
    method: Method  # as given, for the record
    bound: Method
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
    ) -> _Run:
        """Checks and fills in; raises before sampling."""
        if not isinstance(steps, int):
            raise TypeError(f"steps must be a whole number, got {steps!r}")
        ids = list(range(shape[0])) if image_ids is None else list(image_ids)
        if len(ids) != shape[0]:
            raise ValueError(f"image_ids must name each of the {shape[0]} images, got {len(ids)}")
        method = make_method(method).completed(transition, itinerary)
        schedule = schedule or denoiser.schedule
        levels = method.itinerary(schedule, steps)
        device = denoiser.device or (measurement.y.device if measurement is not None else torch.device("cpu"))
        first = None if x_T is None else x_T.to(device, dtype)
        if measurement is not None:
            measurement = measurement.to(device, dtype).to_range(*(denoiser.image_range or (0.0, 1.0)))
        if first is None:
            if start is not None and tuple(start.shape) != shape:
                raise ValueError(f"start must have the shape of the images, {shape}, got {tuple(start.shape)}")
            # The itinerary sees the network's range, where missing pixels are grey and not black.
            image = method.itinerary.start(measurement) if start is None else _in_range(denoiser, start.to(device, dtype))
            if image is not None:
                encoding = NoiseSource([seed_of("encode", seed, k) for k in ids], device)
                first = levels[0].alpha * _encoded(denoiser, image, encoding)
            elif not schedule.from_noise:
                raise ValueError(
                    f"{denoiser.name} knows no noise that drowns the image (at most sigma = {float(levels[0].sigma):g}), so a run cannot start "
                    "from noise alone; give an image to start from: start=operator.pinv(measurement.y)"
                )
        if measurement is not None and denoiser.autoencoder is not None:
            operator = Decoded(measurement.operator, denoiser.autoencoder, shape=denoiser.state_shape(shape)[1:])
            measurement = replace(measurement, operator=operator)
        given = {name for guidance in method.chain for name in guidance.sets}
        resolved = _conditions(denoiser, cond, shape[0], device, given)
        if denoiser.cond_channels is not None and "cond" not in given | set(cond):
            raise ValueError(
                f"{denoiser.name} is shown an image beside the state; use the method 'sr3', which makes it from the measurement"
            )
        stated = {
            k: v for k, v in resolved.items() if cond.get(k) is not None
        }  # a null label that nobody asked for is no label to guidance
        bound = method.bind(Setting(denoiser, denoiser.state_shape(shape), measurement, stated, device, dtype))
        noise_std = 0.0 if x_T is not None else float(levels[0].sigma)
        return cls(
            denoiser, method, bound, schedule, levels, shape, measurement, first, noise_std, ids, seed, steps, dtype, device, resolved, cond
        )

    def __call__(
        self, num_samples: int, batch_size: int | None, callback: Callback | None, trajectory: bool, progress: bool
    ) -> Restoration:
        """Samples all chains, ``batch_size`` at once, fewer where memory runs out."""
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        chains = [(sample_index, k) for sample_index in range(num_samples) for k in range(self.shape[0])]
        together = 1  # chains that may not be parted
        if self.bound.particles:
            together, chains = num_samples, sorted(chains, key=lambda chain: chain[1])
            if batch_size is not None and batch_size < together:
                raise ValueError(
                    f"the {num_samples} samples of an image are one particle system to this method and share a batch: "
                    f"batch_size must be at least {num_samples}, got {batch_size}; or ask for fewer samples"
                )
        size = min(batch_size or len(chains), len(chains)) // together * together
        kept: list[tuple[Tensor, Tensor | None]] = []
        begun = time.perf_counter()
        with count_evaluations() as evaluations, _Bar(progress, len(self.levels) - 1, len(chains)) as bar:
            done = 0
            while done < len(chains):
                part, before = chains[done : done + size], replace(evaluations)
                try:
                    kept.append(self._sample(part, together, bar.watch(callback, len(part)), trajectory))
                except RuntimeError as error:  # torch.OutOfMemoryError is one
                    if batch_size is not None or size == together or not out_of_memory(error):
                        raise
                    evaluations.forward, evaluations.backward = before.forward, before.backward
                    size = max(1, size // together // 2) * together
                    warnings.warn(f"out of memory; going on with {size} chains at once", stacklevel=3)
                    continue
                done += len(part)
        seconds = time.perf_counter() - begun
        paths = [path for _, path in kept if path is not None]
        order = torch.tensor(sorted(range(len(chains)), key=chains.__getitem__))  # sample by sample, as they are returned
        return Restoration(
            samples=torch.cat([x for x, _ in kept])[order].view(num_samples, *self.shape),
            nfe=evaluations.forward / len(chains),
            nbe=evaluations.backward / len(chains),
            seconds=seconds,
            config=self._config() | {"num_samples": num_samples},
            trajectory=torch.cat(paths, dim=1)[:, order].unflatten(1, (num_samples, self.shape[0])) if paths else None,
        )

    def _sample(
        self, part: Sequence[tuple[int, int]], particles: int, callback: Callback, trajectory: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Some of the chains, (sample, image) each, of which ``particles`` in a row are one system: their final images, and their
        estimates after each step if asked for."""
        images = [k for _, k in part]
        noise = _noise_of(self.seed, [(sample_index, self.ids[k]) for sample_index, k in part], self.device)
        # Drawn even where it is not needed, so that a run from a given state has the noise of one that is not.
        x = self.noise_std * noise.randn_like(
            torch.empty(len(part), *self.denoiser.state_shape(self.shape)[1:], dtype=self.dtype, device=self.device)
        )
        if self.first is not None:
            x = self.first[images] + x
        path: list[Tensor] = []
        chains = tuple((sample_index, self.ids[k]) for sample_index, k in part)

        def watch(p: Progress) -> None:
            if trajectory and p.x0 is not None:
                path.append(from_range(self.denoiser, p.x0).cpu())
            callback(replace(p, chains=chains))

        method = self.bound.select(images)
        assert method.transition is not None
        measurement = self.measurement
        if measurement is not None and images != list(range(len(measurement))):
            measurement = measurement.select(images)
        x = sample(
            self.denoiser,
            x,
            self.levels,
            schedule=self.schedule,
            noise=noise,
            transition=method.transition,
            guidance=method.chain,
            measurement=measurement,
            callback=watch,
            cond={k: v[images] if isinstance(v, Tensor) else v for k, v in self.cond.items()},
            particles=particles,
        )
        return from_range(self.denoiser, x), torch.stack(path) if path else None

    def _config(self) -> dict[str, Any]:
        return {
            "model": self.denoiser.name,
            "method": describe(self.method),
            "schedule": describe(self.schedule) if is_dataclass(self.schedule) else type(self.schedule).__name__,
            "steps": self.steps,
            "seed": self.seed,
            "dtype": str(self.denoiser.dtype).removeprefix("torch."),
            "cond": {k: describe(v) for k, v in self.given_cond.items()},
        }


def _check_image(denoiser: Denoiser, shape: tuple[int, ...]) -> None:
    if not isinstance(denoiser, Denoiser):
        raise TypeError(
            f"denoiser must be an invdiff.Denoiser (wrap a network: Denoiser(net, predicts=..., schedule=...)), got {type(denoiser).__name__}"
        )
    if denoiser.channels is not None and shape[0] != denoiser.channels:
        raise ValueError(f"{denoiser.name} works on images with {denoiser.channels} channels, got {shape[0]} (image shape {shape})")
    trained = denoiser.image_size
    if trained is not None and len(shape) == 3 and not (trained / 2 <= min(shape[1:]) and max(shape[1:]) <= 8 * trained):
        # One call site, so Python's default filter shows it once for each network and size.
        warnings.warn(
            f"{denoiser.name} was trained on {trained}x{trained} images; {shape[1]}x{shape[2]} is far from that and quality may suffer",
            stacklevel=3,
        )


def _conditions(
    denoiser: Denoiser, cond: Mapping[str, Any], images: int, device: torch.device, given: Iterable[str] = ()
) -> dict[str, Any]:
    """What a run gives to the network, on the device and with a label for each image unless guidance gives it.

    Refuses keyword arguments that neither we nor the network know (most are misspelt, or belong to the method), what is missing,
    labels that are none, and tensors that have not one entry for each image.
    """
    known = ("label",) if denoiser.cond_channels is None else ("label", "cond")
    for name in cond:
        if name not in known and not denoiser.takes(name):
            raise TypeError(
                f"unknown argument {name!r}: {denoiser.name} takes no condition of that name. A method's parameters go with the method: make_method('dps', zeta=0.5)"
            )
    absent = [name for name in denoiser.required if cond.get(name) is None]
    if absent:
        how = "" if denoiser.text is None else "; of a prompt (--prompt), **denoiser.conditions_of(prompt) gives it"
        raise ValueError(
            f"{denoiser.name} cannot run without {', '.join(absent)}; give {'each' if len(absent) > 1 else 'it'} as a keyword argument, "
            f"one entry for each image{how}"
        )
    label = {}
    if denoiser.num_classes is not None and ("label" in cond or "label" not in given):
        label = {"label": denoiser.labels(cond.get("label"), images)}
    resolved = {**cond, **label}
    for name, value in resolved.items():
        if isinstance(value, Tensor) and value.shape[:1] != (images,):
            raise ValueError(f"{name} must have one entry for each of the {images} images, got shape {tuple(value.shape)}")
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in resolved.items()}


def _in_range(denoiser: Denoiser, x: Tensor) -> Tensor:
    """Images in the user's range as the network has them."""
    if denoiser.image_range is None:
        return x
    low, high = denoiser.image_range
    return low + (high - low) * x


def _encoded(denoiser: Denoiser, x: Tensor, noise: NoiseSource | None = None) -> Tensor:
    """Images in the network's range as clean states. With noise, an autoencoder that encodes by a draw draws."""
    if denoiser.autoencoder is None:
        return x
    with torch.no_grad():
        if noise is None or denoiser.autoencoder.posterior is None:
            return denoiser.autoencoder.encode(x)
        mean, std = denoiser.autoencoder.posterior(x)
        return mean + std * noise.randn_like(mean)


def from_range(denoiser: Denoiser, x: Tensor) -> Tensor:
    """Clean states of the network as images in the user's range, clipped to [0, 1] where the network clips, and where an
    autoencoder made them."""
    if denoiser.autoencoder is not None:
        with torch.no_grad():
            x = denoiser.autoencoder.decode(x)
    if denoiser.image_range is None:
        return x
    low, high = denoiser.image_range
    x = (x - low) / (high - low)
    return x.clamp(0, 1) if denoiser.clip or denoiser.autoencoder is not None else x


class _Bar:
    """A progress bar over all steps of all chains, on stderr."""

    def __init__(self, show: bool, steps: int, chains: int) -> None:
        from tqdm.auto import tqdm

        self.bar = tqdm(total=steps * chains, disable=not show, unit="step", smoothing=0.05)
        self.scale = chains

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def watch(self, callback: Callback | None, chains: int) -> Callback:
        """A callback that moves the bar and then calls the user's."""

        def on_step(p: Progress) -> None:
            self.bar.update(chains)
            if callback is not None:
                callback(p)

        return on_step
