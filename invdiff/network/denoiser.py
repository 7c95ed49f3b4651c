"""The Denoiser: any pretrained diffusion network as one function ``(x_t, level) -> Prediction``."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invdiff.network.clock import Frame, Time
from invdiff.network.tiling import Tiled
from invdiff.schedules import Discrete, Level, Schedule, make_schedule

if TYPE_CHECKING:
    from invdiff.network.classifier import NoisyClassifier
from invdiff.network.conditions import check_labels, conditions_of, image_condition
from invdiff.network.evaluate import count, padded
from invdiff.network.hashing import weights_hash
from invdiff.network.latent import Autoencoder
from invdiff.network.preconditioning import ALIASES, C_NOISE, PREDICTS, c_in, reader
from invdiff.network.prediction import Prediction
from invdiff.network.protocol import facts_of, takes


class Denoiser:
    """Wraps ANY network ``net(x_t, t, **cond)`` as a prior.

    States of any schedule are accepted: x_t is rescaled to the network's own frame, and the time it
    is shown is the one with the same log-SNR. A module is switched to ``eval()`` and its parameters
    no longer require gradients.

    Args:
        net: callable ``net(x, t, **cond)``; x (B, ...), t (B,) in the schedule's own time. Its
            output has x's shape, or twice the channels with ``learned_variance``.
        predicts: ``"eps"``, ``"x0"`` (the posterior mean), ``"v"`` (Salimans & Ho 2022),
            ``"score"``, ``"edm"`` (the raw network of Karras et al. 2022, table 1: c_in, c_skip and
            c_out are applied here, and c_noise unless ``time`` is given) or ``"velocity"`` (dx_t/dt
            of the schedule).
        schedule: the schedule the network was trained on, or its name
            (:func:`~invdiff.schedules.make_schedule`).
        data_range: (low, high) of its images; ``None`` where its units are the user's (vectors,
            latents).
        clip: clip x0 to the data range, within autograd; by default wherever ``data_range`` is
            given.
        learned_variance: the output carries a second set of channels, v in [-1, 1] (Nichol &
            Dhariwal 2021, eq. 15).
        num_classes: number of labels of a class-conditional network, given to it as ``label``.
        null_label: index of the unconditional label; by default ``num_classes``. ``False``: the
            network has none.
        cond_channels: channels of the image that the network is shown beside the state, given to it
            as ``cond`` in the network's range: its input is ``[cond, x_t]`` (SR3, Palette). A
            network without it is given ``cond`` as a keyword if it takes one.
        factor: of a network trained for super-resolution, how many times larger its images are than
            what it is shown of them.
        classifier: a :class:`~invdiff.network.NoisyClassifier` of the same data, for classifier
            guidance.
        time: maps the schedule's time to what the network is shown, e.g. ``lambda t: 1000 * t``;
            or, for a network conditioned on the noise level, maps that: ``OfLevel(lambda level:
            level.alpha)`` for SR3, see :class:`~invdiff.network.OfLevel`.
        quantize: show the network integer times (nearest level), for networks that look their time
            up in a table.
        sigma_data: standard deviation of the data, of ``"edm"`` networks.
        multiple: the network needs image sides that divide by this; states are padded by reflection
            and cropped, and so are those that are smaller than the ``fixed_size`` (H, W) that
            ``net`` declares.
        dtype: ``torch.bfloat16`` or ``torch.float16`` run the network under autocast,
            ``torch.float64`` turns a module's weights to it; states stay as they are, whatever the
            network runs in.
        channels_last, compile, gradient_checkpointing: memory layout; ``torch.compile``; the
            network's own checkpointing (diffusers' ``enable_gradient_checkpointing``), which trades
            time for memory.
        autoencoder: of a latent diffusion network: its states are latents, while images and
            measurements stay what they are (:class:`~invdiff.network.Autoencoder`).
        text: ``text(prompts) -> conditions`` of a list of B prompts, tensors with B entries by the
            names under which the network takes them; see :meth:`conditions_of`.
        tile: side of the windows in which larger images are denoised, in pixels of the images also
            where states are latents, see :class:`~invdiff.network.tiling.Tiled`; None: images are
            not cut. Decoding is the autoencoder's own affair.
        tile_overlap: what neighbouring windows share, in pixels, by default a quarter of ``tile``;
            tile_batch: windows at once.
        channels, image_size: what the network was trained on, for messages and defaults.
        name: how it is called in records.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        *,
        predicts: str = "eps",
        schedule: Schedule | str | Mapping[str, Any],
        data_range: tuple[float, float] | None = None,
        clip: bool | None = None,
        learned_variance: bool = False,
        num_classes: int | None = None,
        null_label: int | bool | None = None,
        cond_channels: int | None = None,
        factor: int | None = None,
        classifier: NoisyClassifier | None = None,
        autoencoder: Autoencoder | None = None,
        text: Callable[[list[str]], dict[str, Tensor]] | None = None,
        time: Time | None = None,
        quantize: bool = False,
        sigma_data: float = 0.5,
        multiple: int = 1,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        compile: bool = False,
        gradient_checkpointing: bool = False,
        tile: int | None = None,
        tile_overlap: int | None = None,
        tile_batch: int | None = None,
        channels: int | None = None,
        image_size: int | None = None,
        name: str = "network",
    ) -> None:
        self._options = {k: v for k, v in locals().items() if k not in ("self", "net")}
        predicts = ALIASES.get(predicts, predicts)
        if predicts not in PREDICTS:
            raise ValueError(
                f"unknown predicts={predicts!r}; a network predicts one of {', '.join(PREDICTS)}"
            )
        schedule = make_schedule(schedule)
        if predicts == "velocity" and isinstance(schedule, Discrete):
            raise ValueError(
                "a velocity is dx_t/dt and needs a schedule in continuous time, e.g. "
                "schedules.flow(); give time= if the network counts in steps"
            )
        if data_range is not None and not (
            isinstance(data_range, Sequence)
            and len(data_range) == 2
            and data_range[0] < data_range[1]
        ):
            raise ValueError(f"data_range must be (low, high) with low < high, got {data_range}")
        if clip and data_range is None:
            raise ValueError("clip=True needs a data_range to clip to")
        if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            raise ValueError(f"dtype must be float32, float64, bfloat16 or float16, got {dtype}")
        self.net, self.predicts, self.schedule = net, predicts, schedule
        self.data_range = (
            None if data_range is None else (float(data_range[0]), float(data_range[1]))
        )
        self.clip = data_range is not None if clip is None else clip
        self.learned_variance, self.num_classes = learned_variance, num_classes
        self.null_label = (
            num_classes if null_label is None else None if null_label is False else int(null_label)
        )
        self.cond_channels, self.factor, self.classifier = cond_channels, factor, classifier
        self.autoencoder, self.text = autoencoder, text
        self.time, self.quantize, self.sigma_data, self.multiple = (
            time,
            quantize,
            sigma_data,
            multiple,
        )
        self.dtype, self.channels_last = dtype, channels_last
        self.channels, self.image_size, self.name = channels, image_size, name
        self.source: dict[
            str, Any
        ] = {}  # what a loader knows about the checkpoint, for people: kind, path, licence, ...
        self._frame = Frame(
            schedule, C_NOISE if time is None and predicts == "edm" else time, quantize
        )
        self.facts, self._read = facts_of(net), reader(predicts, schedule, sigma_data)
        if isinstance(net, torch.nn.Module):
            net.eval().requires_grad_(False)
            if dtype == torch.float64:
                net.double()
                if autoencoder is not None and autoencoder.net is not None:
                    autoencoder.net.double()
            if channels_last:
                net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if gradient_checkpointing:
            if not hasattr(net, "enable_gradient_checkpointing"):
                raise ValueError(
                    "gradient_checkpointing=True needs a network with "
                    "enable_gradient_checkpointing(), as diffusers' models have"
                )
            net.enable_gradient_checkpointing()
            if autoencoder is not None and hasattr(
                autoencoder.net, "enable_gradient_checkpointing"
            ):
                autoencoder.net.enable_gradient_checkpointing()  # type: ignore[union-attr, operator]
        if compile:
            self.net = torch.compile(net)  # type: ignore[assignment]
        self._call = self._evaluate if tile is None else self._tiled(tile, tile_overlap, tile_batch)
        if tile is None and (tile_overlap, tile_batch) != (None, None):
            raise ValueError(
                "tile_overlap and tile_batch say how images are cut; give tile= as well"
            )

    def _tiled(self, tile: int, overlap: int | None, batch: int | None) -> Tiled:
        """The network in windows; sizes are those of images, which a latent stands for ``factor``
        of."""
        for name, value in {"tile": tile, "tile_overlap": overlap, "tile_batch": batch}.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"{name} is a whole number, got {value!r}")
        factor = 1 if self.autoencoder is None else self.autoencoder.factor
        unit = self.multiple * factor
        if tile % unit or tile < 1:
            raise ValueError(
                f"tile must be a multiple of {unit}, which the network needs the sides of "
                f"images to be, got {tile}"
            )
        shared = tile // 4 if overlap is None else overlap
        return Tiled(
            self._evaluate,
            tile // factor,
            shared // factor,
            1 if batch is None else batch,
            self.facts.image_conditions,
        )

    def read_as(self, **options: Any) -> Denoiser:
        """The same network, read with other options: ``denoiser.read_as(predicts="v")``. Weights
        are shared, unless another dtype asks for a copy of them; this one stays as it is."""
        net, given = self.net, self._options | {"compile": False} | options  # compiled already
        if given["dtype"] == torch.float64 != self.dtype:
            net = copy.deepcopy(net)
            if self.autoencoder is not None and "autoencoder" not in options:
                given["autoencoder"] = copy.deepcopy(self.autoencoder)
        made = Denoiser(net, **given)
        made.source = dict(self.source)
        return made

    def to(self, device: torch.device | str) -> Denoiser:
        """Moves the network itself, as ``torch.nn.Module.to`` does, and returns this object."""
        if isinstance(self.net, torch.nn.Module):
            self.net.to(device)
        for beside in (self.classifier, self.autoencoder, self.text):
            if (move := getattr(beside, "to", None)) is not None:
                move(device)
        return self

    @property
    def image_range(self) -> tuple[float, float] | None:
        """(low, high) of the images: the network's own, or those of its autoencoder."""
        return self.data_range if self.autoencoder is None else self.autoencoder.data_range

    def state_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the states that make images of a shape, both with the batch."""
        return shape if self.autoencoder is None else self.autoencoder.shape(shape)

    @property
    def device(self) -> torch.device | None:
        """Where the network's parameters are; None for a network without any."""
        return None if self._weights is None else self._weights.device

    @property
    def _weights(self) -> Tensor | None:
        parameters = self.net.parameters() if isinstance(self.net, torch.nn.Module) else iter(())
        return next(parameters, None)

    @property
    def hash(self) -> str | None:
        """SHA-256 of the weights, of a module with any; which storage or dtype they are kept in
        counts. Of an exported network, of its file."""
        if self.facts.file_hash is not None:
            return self.facts.file_hash
        return weights_hash(self.net) if isinstance(self.net, torch.nn.Module) else None

    def takes(self, condition: str) -> bool:
        """Whether the network has a keyword of that name; assumed where neither its facts nor its
        signature say."""
        return takes(self.net, self.facts, condition)

    @property
    def upsampling(self) -> str:
        """How a small image that it is conditioned on is brought to the state's size."""
        return self.facts.upsampling

    @property
    def required(self) -> Sequence[str]:
        """Conditions that the network cannot run without, besides ``label`` and ``cond``."""
        return self.facts.required

    def __call__(
        self, x_t: Tensor, level: Level, *, clip_x0: bool = True, **cond: Any
    ) -> Prediction:
        """Predicts x0 and eps.

        Args:
            x_t: (B, ...), in the network's data range, noised as ``level`` of any schedule says.
            level: the noise level, see :class:`~invdiff.schedules.Level`.
            clip_x0: ``False`` leaves x0 as it is, for who combines predictions and then calls
                :meth:`Prediction.clip`.
            cond: what the network is conditioned on; ``label``: an int, a (B,) tensor, or None for
                unconditional; ``cond``: the image of ``cond_channels``, (B, cond_channels, H, W).
        """
        t, alpha, sigma, scale = self._frame(level)
        x = x_t if scale == 1.0 else x_t * scale
        out = self._run(x, self._frame.times(t, x), alpha, sigma, self._conditions(cond, x))
        fraction = None
        if self.learned_variance:
            if out.shape[1] != 2 * x.shape[1]:
                raise ValueError(
                    f"learned_variance=True expects {2 * x.shape[1]} output channels for "
                    f"{x.shape[1]} input channels, got {out.shape[1]}"
                )
            out, v = out.chunk(2, dim=1)
            fraction = (v + 1) / 2
        if out.shape != x.shape:
            hint = (
                "; a network with twice the channels needs learned_variance=True"
                if out.ndim > 1 and out.shape[1] == 2 * x.shape[1]
                else ""
            )
            raise ValueError(
                f"the network returned shape {tuple(out.shape)} for a state of shape "
                f"{tuple(x.shape)}{hint}"
            )
        x0, eps = self._read(x, out, alpha, sigma)
        prediction = Prediction(
            x_t, level, x0, eps, fraction, self.data_range if self.clip else None
        )
        return prediction.clip() if clip_x0 else prediction

    def labels(self, label: int | Sequence[int] | Tensor | None, images: int) -> Tensor:
        """The labels of a batch, (images,), from one for all, one for each, or None: the null
        label.

        Raises:
            ValueError: a network without classes or without a null class, a label it does not know,
                a wrong number of them.
        """
        if self.num_classes is None:
            raise ValueError(
                f"{self.name} is not class-conditional (num_classes is not set), but "
                f"label={label} was given"
            )
        return check_labels(
            self.null_label if label is None else label,
            images,
            self.num_classes,
            self.name,
            self.null_label,
        )

    def conditions_of(
        self, prompt: str | Sequence[str], images: int | None = None
    ) -> dict[str, Tensor]:
        """What the network is shown of prompts: ``generate(denoiser, (4, 3, 512, 512),
        **denoiser.conditions_of("a cat", 4))``.

        Args:
            prompt: one for all images, or a list with one for each; ``""`` is the null condition of
                classifier-free guidance.
            images: how many images there are, by default as many as prompts.

        Returns:
            One entry for each image, by the network's names, e.g. ``encoder_hidden_states``
            (images, L, D).

        Raises:
            ValueError: a network that came without a text encoder; a wrong number of prompts.
            TypeError: prompts that are not text.
        """
        return conditions_of(self.text, prompt, images, self.name)

    def _conditions(self, cond: dict[str, Any], x: Tensor) -> dict[str, Any]:
        label = cond.get("label")
        if self.num_classes is None:
            if label is not None:
                self.labels(label, len(x))  # raises
            return {k: v for k, v in cond.items() if k != "label"}
        if not isinstance(label, Tensor):  # the labels of a run were checked before it began
            label = self.labels(label, len(x)).to(x.device)
        return {**cond, "label": label}

    def _run(
        self, x: Tensor, t: Tensor, alpha: float, sigma: float, cond: dict[str, Any]
    ) -> Tensor:
        if self.predicts == "edm":
            x = x * c_in(alpha, sigma, self.sigma_data)
        if self.cond_channels is not None:
            image = image_condition(cond.pop("cond", None), x, self.cond_channels, self.name)
            x = torch.cat([image, x], dim=1)
        dtype, size = x.dtype, x.shape[2:]
        least = self.facts.fixed_size or (1, 1)
        if self.multiple > 1 or least != (1, 1):
            x = padded(x, self.multiple, least)
        grown = x.shape[2:] != size
        if (
            weights := self._weights
        ) is not None:  # autocast takes it from there, but leaves double alone
            x, t = x.to(weights.dtype), t.to(weights.dtype) if t.is_floating_point() else t
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with self._autocast(x.device.type):
            out = self._call(x, t, **cond)
        count(out, len(x))
        out = out.to(dtype)
        return out[..., : size[0], : size[1]] if grown else out

    def _evaluate(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The network's output; refuses what is no tensor, and to pass off one without gradient
        where a gradient is asked for."""
        asked = torch.is_grad_enabled() and x.requires_grad
        try:
            out = self.net(x, t, **cond)
        except RuntimeError as error:
            if not (asked and "numpy() on Tensor that requires grad" in str(error)):
                raise
            out = x.detach()
        if not isinstance(out, Tensor):
            raise TypeError(
                f"{self.name} returned a {type(out).__name__} instead of a tensor; wrap it, "
                "e.g. invdiff.Denoiser(lambda x, t: net(x, t).sample, ...), "
                "or load_model(folder) for a network of diffusers"
            )
        if asked and not out.requires_grad:
            raise ValueError(
                f"{self.name} gives no gradient of its output with respect to its input "
                "(NumPy, JAX, ONNX, or a detached tensor inside), which "
                "this method differentiates; use a method that needs none, such as replace "
                "or repaint, or a differentiable network"
            )
        return out

    def _autocast(self, device: str) -> contextlib.AbstractContextManager[Any]:
        if self.dtype in (torch.bfloat16, torch.float16) and device != "meta":
            return torch.autocast(device, self.dtype)
        return contextlib.nullcontext()

    def __repr__(self) -> str:
        return (
            f"Denoiser({self.name}, predicts={self.predicts!r}, "
            f"schedule={type(self.schedule).__name__}, data_range={self.data_range})"
        )
