"""The Denoiser: any pretrained diffusion network as one function ``(x_t, level) -> Prediction``."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invdiff.files import sha256
from invdiff.network.clock import Clock, Place, Time
from invdiff.network.conditions import check_labels, encoded_images, encoded_prompts, with_image
from invdiff.network.evaluate import Fitted, autocast, count, evaluate, split
from invdiff.network.latent import Autoencoder
from invdiff.network.preconditioning import TIMES, conversion, edm_scalings, spelled
from invdiff.network.prediction import Prediction
from invdiff.network.protocol import Movable, facts_of
from invdiff.network.tiling import tiled
from invdiff.network.weights import changes_module, first_weight, prepare, weights_hash
from invdiff.schedules import Level, Schedule, make_schedule

if TYPE_CHECKING:
    from invdiff.network.classifier import NoisyClassifier

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Denoiser:
    """Wraps ANY network ``net(x_t, t, **cond)`` as a prior.

    States of any schedule are accepted: x_t is rescaled to the network's own schedule, and its time
    input is the one with the same log-SNR. A module is switched to ``eval()`` and its parameters no
    longer require gradients.

    Args:
        net: callable ``net(x, t, **cond)``; x (B, ...), t (B,) in the schedule's own time. Its
            output has x's shape, or twice the channels with ``learned_variance``. It may state
            more about itself, see :class:`~invdiff.network.Facts`.
        predicts: ``"eps"``, ``"x0"`` (the posterior mean), ``"v"`` (Salimans & Ho 2022),
            ``"score"``, ``"edm"`` (the raw network of Karras et al. 2022, table 1: c_in, c_skip and
            c_out are applied here, and c_noise unless ``time`` is given), ``"consistency"`` (the
            raw network of Song et al. 2023, likewise) or ``"velocity"`` (dx_t/dt of the schedule);
            or diffusers' ``"epsilon"``, ``"sample"``, ``"v_prediction"``, ``"flow_prediction"``.
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
        cond_channels: channels of the image that the network is conditioned on, given to it as
            ``cond`` in the network's range: its input is ``[cond, x_t]`` (SR3, Palette). A network
            without it is given ``cond`` as a keyword if it takes one.
        cond_last: its input is ``[x_t, cond]`` instead.
        factor: of a network trained for super-resolution, how many times larger its images are than
            those that it is conditioned on.
        classifier: a :class:`~invdiff.network.NoisyClassifier` of the same data, for classifier
            guidance.
        time: maps the schedule's time to the network's time input, e.g. ``lambda t: 1000 * t``; or,
            for a network conditioned on the noise level, maps that: ``OfLevel(lambda level:
            level.alpha)`` for SR3, see :class:`~invdiff.network.OfLevel`.
        quantize: integer times only (nearest level), for networks that look their time up in a
            table.
        sigma_data: standard deviation of the data, of ``"edm"`` and ``"consistency"`` networks.
        multiple: the network needs image sides that divide by this; states are padded by reflection
            and cropped, and so are those that are smaller than the network's ``fixed_size``.
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
        image_encoder: the same of images (B, 3, H, W) in [0, 1]; see :meth:`conditions_of_image`.
        tile: side of the windows in which larger images are denoised, in pixels of the images also
            where states are latents, see :class:`~invdiff.network.tiling.Tiled`; up to a quarter
            more where fewer windows then do. None: images are not cut. The autoencoder is not
            affected.
        tile_overlap: what neighbouring windows share, in pixels, by default a quarter of ``tile``;
            tile_batch: windows at once.
        channels, image_size: what the network was trained on, for messages and defaults.
        name: its name in records and messages.

    Examples:
        >>> import torch, invdiff
        >>> net = lambda x, t: torch.zeros_like(x)  # knows nothing: eps = 0
        >>> schedule = invdiff.schedules.linear(1000)
        >>> denoiser = invdiff.Denoiser(net, predicts="eps", schedule=schedule)
        >>> denoiser(torch.ones(1, 3, 8, 8), schedule(torch.tensor(0))).x0.shape
        torch.Size([1, 3, 8, 8])
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
        cond_last: bool = False,
        factor: int | None = None,
        classifier: NoisyClassifier | None = None,
        autoencoder: Autoencoder | None = None,
        text: Callable[[list[str]], dict[str, Tensor]] | None = None,
        image_encoder: Callable[[Tensor], dict[str, Tensor]] | None = None,
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
        if isinstance(net, type) or not callable(net):
            given = f"the class {net.__name__}" if isinstance(net, type) else repr(net)[:80]
            raise TypeError(f"net must be a network, called as net(x_t, t, **cond), got {given}")
        if dtype not in DTYPES:
            raise ValueError(
                "dtype must be torch.float32, torch.float64, torch.bfloat16 or torch.float16, got "
                f"{dtype!r}"
            )
        self.predicts, self.schedule = spelled(predicts), make_schedule(schedule)
        self.data_range = _checked_range(data_range)
        if clip and data_range is None:
            raise ValueError("clip=True needs a data_range to clip to")
        self.clip = data_range is not None if clip is None else clip
        self.learned_variance, self.num_classes = learned_variance, num_classes
        self.null_label = num_classes if null_label is None else int(null_label)
        if null_label is False:
            self.null_label = None
        self.cond_channels, self.cond_last = cond_channels, cond_last
        self.factor, self.classifier = factor, classifier
        self.autoencoder, self.text, self.image_encoder = autoencoder, text, image_encoder
        self.time, self.quantize, self.sigma_data = time, quantize, sigma_data
        self.multiple, self.dtype, self.channels_last = multiple, dtype, channels_last
        self.channels, self.image_size, self.name = channels, image_size, name
        self.facts = facts_of(net)
        self.source: dict[str, Any] = {}  # facts about the checkpoint, for people
        time = TIMES.get(self.predicts) if time is None else time
        self._clock = Clock(self.schedule, time, quantize)
        self._convert = conversion(self.predicts, self.schedule, sigma_data)
        self._module = net if isinstance(net, torch.nn.Module) else None
        prepare(net, autoencoder, dtype, channels_last, gradient_checkpointing)
        self.net: Callable[..., Tensor] = torch.compile(net) if compile else net
        self._evaluate = tiled(
            partial(evaluate, self.net, name),
            tile,
            tile_overlap,
            tile_batch,
            multiple=multiple,
            factor=1 if autoencoder is None else autoencoder.factor,
            larger=self.facts.image_conditions,
            fixed=self.facts.fixed_size is not None,
        )

    def read_as(self, **options: Any) -> Denoiser:
        """The same network read with other options, ``denoiser.read_as(predicts="v")``; this
        Denoiser stays as it is. Weights are shared, unless an option changes the module itself
        (``dtype`` from or to float64, ``channels_last``, ``gradient_checkpointing``): then they are
        copied.

        Raises:
            ValueError: an option that changes the module, and an autoencoder that cannot be copied.
        """
        made, net = self._options | options, self.net
        if self._module is not None and changes_module(self._options, made):
            net, coder = copy.deepcopy(self._module), made["autoencoder"]
            if coder is not None and "autoencoder" not in options:
                made["autoencoder"] = coder.copy()
            if self.dtype == torch.float64 != made["dtype"]:
                for module in (net, made["autoencoder"] and made["autoencoder"].net):
                    if module is not None:
                        module.float()
        elif "compile" not in options:
            made["compile"] = False  # it is compiled already, where asked for
        denoiser = Denoiser(net, **made)
        denoiser.source = dict(self.source)
        return denoiser

    def to(self, device: torch.device | str) -> Denoiser:
        """Moves the network in place, with its classifier, autoencoder and text encoder, and
        returns itself. Whatever holds a network is moved as ``torch.nn.Module.to`` does it; a
        measurement or an operator is a value, which ``to`` copies as ``torch.Tensor.to`` does."""
        parts = (self._module, self.classifier, self.autoencoder, self.text, self.image_encoder)
        for part in parts:
            if isinstance(part, Movable):
                part.to(device)
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
        weight = first_weight(self.net)
        return None if weight is None else weight.device

    @property
    def hash(self) -> str | None:
        """SHA-256 of a module's weights, which depends on the dtype they are kept in, or of the
        file that identifies a network; None for a function."""
        if self.facts.file is not None:
            return self._file_hash
        return None if self._module is None else weights_hash(self._module)

    @cached_property
    def _file_hash(self) -> str:
        assert self.facts.file is not None
        return sha256(self.facts.file)

    def takes(self, condition: str) -> bool:
        """Whether the network takes a condition; assumed where neither its facts nor its signature
        show it."""
        return self.facts.takes(condition)

    @property
    def upsampling(self) -> str:
        """How the image it is conditioned on is enlarged to the state's size."""
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
        if not isinstance(x_t, Tensor) or not isinstance(level, Level):
            raise TypeError(
                "a Denoiser is called with a tensor (B, ...) and a Level, e.g. "
                f"denoiser(x_t, denoiser.schedule(500)); got {type(x_t).__name__} and "
                f"{type(level).__name__}"
            )
        at = self._clock(level)
        x = x_t if at.scale == 1.0 else x_t * at.scale
        out = self._run(x, at, self._conditions(cond, x))
        out, fraction = split(out, x, self.learned_variance)
        x0, eps = self._convert(x, out, at)
        clip_range = self.data_range if self.clip else None
        prediction = Prediction(x_t, level, x0, eps, fraction, clip_range)
        return prediction.clip() if clip_x0 else prediction

    def labels(self, label: int | Sequence[int] | Tensor | None, images: int) -> Tensor:
        """The labels of a batch, (images,), from one for all, one for each, or None: the null
        label.

        Raises:
            ValueError: a network without classes or without a null class, an unknown label, a
                wrong number of them.
        """
        if self.num_classes is None:
            raise ValueError(
                f"{self.name} is not class-conditional (num_classes is not set), but "
                f"label={label} was given"
            )
        given = self.null_label if label is None else label
        return check_labels(given, images, self.num_classes, self.name, self.null_label)

    def conditions_of(
        self, prompt: str | Sequence[str], images: int | None = None
    ) -> dict[str, Tensor]:
        """The conditions that the network's text encoder makes of prompts: ``generate(denoiser, (4,
        3, 512, 512), **denoiser.conditions_of("a cat", 4))``.

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
        if self.text is None:
            raise ValueError(
                f"{self.name} has no text encoder, so it takes no prompt; one comes with a "
                "pipeline folder (text_encoder/, tokenizer/) of a network "
                "that is conditioned on text"
            )
        return encoded_prompts(self.text, prompt, images)

    def negative_of(
        self, prompt: str | Sequence[str] | None = None, images: int = 1
    ) -> dict[str, Tensor]:
        """The conditions that classifier-free guidance compares with: ``CFG(negative=
        denoiser.negative_of("blurry"))``. Pipelines may encode what they move away from in another
        way than a prompt.

        Args:
            prompt: what images are not to show; None: what the pipeline compares with where it is
                given nothing, an empty prompt or zeros.
            images: how many entries, of one prompt for all.

        Raises:
            ValueError, TypeError: as :meth:`conditions_of`.
        """
        negative = getattr(self.text, "negative", None)
        if negative is None:
            return self.conditions_of("" if prompt is None else prompt, images)
        if prompt is None:
            return negative(None, images)
        many = images if isinstance(prompt, str) else None
        return encoded_prompts(lambda p: negative(p, len(p)), prompt, many)

    def conditions_of_image(self, image: Tensor, images: int | None = None) -> dict[str, Tensor]:
        """The conditions that the network's image encoder makes of images, where it takes them as
        prompts (an IP-Adapter): ``generate(denoiser, shape, **denoiser.conditions_of("a cat", 4),
        **denoiser.conditions_of_image(photo, 4))``.

        Args:
            image: one for all, (3, H, W) or (1, 3, H, W), or one for each, (B, 3, H, W), of any
                size, in [0, 1].
            images: how many images there are, by default as many as these.

        Raises:
            ValueError: a network without an image encoder; a wrong number of images.
        """
        return encoded_images(self._sees(), image, images)

    def negative_of_image(self, images: int = 1) -> dict[str, Tensor]:
        """The conditions that classifier-free guidance compares with, where images are prompts;
        beside :meth:`negative_of`.

        Raises:
            ValueError: a network without an image encoder, or whose encoder has nothing to compare
                with.
        """
        negative = getattr(self._sees(), "negative", None)
        if negative is None:
            raise ValueError(
                f"the image encoder of {self.name} has no negative(images); give CFG(negative=...) "
                "the conditions to compare with yourself"
            )
        return negative(images)

    def _sees(self) -> Any:
        if self.image_encoder is None:
            raise ValueError(
                f"{self.name} has no image encoder, so it takes no image as a prompt; one comes "
                "with an IP-Adapter: load_model(..., ip_adapter=FILE, image_encoder=FOLDER)"
            )
        return self.image_encoder

    def _conditions(self, cond: dict[str, Any], x: Tensor) -> dict[str, Any]:
        label = cond.get("label")
        if self.num_classes is None:
            if label is not None:
                self.labels(label, len(x))  # raises
            return {k: v for k, v in cond.items() if k != "label"}
        if not isinstance(label, Tensor):  # the labels of a run were checked before it began
            label = self.labels(label, len(x)).to(x.device)
        return {**cond, "label": label}

    def _run(self, x: Tensor, at: Place, cond: dict[str, Any]) -> Tensor:
        """The network's output for a state of its own schedule, of the state's dtype and size."""
        t = self._clock.times(at.time, x)
        if self.predicts in TIMES:
            x = x / at.alpha * edm_scalings(at, self.sigma_data)[0]
        if self.cond_channels is not None:
            image = cond.pop("cond", None)
            x = with_image(x, image, self.cond_channels, self.name, self.cond_last)
        fitted = Fitted(x, self.multiple, self.facts.fixed_size, self.channels_last)
        x, t = fitted.given(x, t, first_weight(self.net))
        with self._autocast(x.device.type):
            out = self._evaluate(x, t, **cond)
        count(out, len(x))
        return fitted.returned(out)

    def _autocast(self, device: str) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.dtype, device)

    def __repr__(self) -> str:
        return (
            f"Denoiser({self.name}, predicts={self.predicts!r}, "
            f"schedule={type(self.schedule).__name__}, data_range={self.data_range})"
        )


def _checked_range(given: tuple[float, float] | None) -> tuple[float, float] | None:
    if given is None:
        return None
    if not (isinstance(given, Sequence) and len(given) == 2 and given[0] < given[1]):
        raise ValueError(f"data_range must be (low, high) with low < high, got {given}")
    return float(given[0]), float(given[1])
