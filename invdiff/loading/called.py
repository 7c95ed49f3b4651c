"""Prompts of pipelines that have no ``encode_prompt``: their own call is made, with a network that
takes note of its conditions in the place of theirs, and ends there. What comes before the network
is diffusers' own: LDM's BERT, unCLIP's prior and projection, Kandinsky's prior."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.loading.diffusers_class import read_network
from invdiff.loading.diffusers_log import no_bars, silent
from invdiff.loading.folder_files import read_json, refuse_code
from invdiff.loading.prompts import pipeline_of
from invdiff.loading.text_parts import class_of, is_text, read_part

CALLED = (
    "LDMTextToImagePipeline",
    "UnCLIPPipeline",
    "KandinskyPipeline",
    "KandinskyV22Pipeline",
)
"""Pipelines of diffusers whose call makes the conditions itself."""
PRIORED = ("KandinskyPipeline", "KandinskyV22Pipeline")
"""Those that take an image embedding, which another pipeline makes of a prompt."""
ENCODING = ("bert", "prior", "text_proj", "image_encoder")
"""Parts, beside tokenizers and text encoders, that make the conditions."""
TAKEN = ("encoder_hidden_states", "class_labels", "attention_mask")


class Called:
    """Prompts as conditions, as the call of a pipeline gives them to its network.

    A prior draws an embedding: it begins with the noise of seed 0 for every prompt, so that a
    prompt has the same conditions alone and among others.

    Args:
        folder: of the pipeline.
        prior: the folder of the pipeline that makes image embeddings of prompts (Kandinsky).
        allow_pickle: read weights that are kept as pickles.
        offload: the encoders are dropped after each use, and read again for the next.
        dtype: that the encoders are kept and run in.
    """

    def __init__(
        self,
        folder: Path,
        prior: Path | None = None,
        *,
        allow_pickle: bool = False,
        offload: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.folder, self.prior, self.allow_pickle, self.dtype = folder, prior, allow_pickle, dtype
        self.offload = offload
        self.device = torch.device("cpu")
        self._pipelines: list[Any] = []

    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The conditions of B prompts, by the network's names.

        Raises:
            ValueError: transformers is not installed, a part that is not complete, or a prior that
                is needed and was not given.
        """
        made = [self._conditions(prompt)[1] for prompt in prompts]
        self._drop()
        return {name: torch.cat([one[name] for one in made]) for name in made[0]}

    def negative(self, prompts: Sequence[str] | None, images: int) -> dict[str, Tensor]:
        """The conditions that classifier-free guidance compares with, as the pipeline's call makes
        them for ``images`` images; of prompts they are those of a prompt."""
        if prompts is not None:
            return self(prompts)
        made = self._conditions("")[0]
        self._drop()
        return {name: value.repeat_interleave(images, 0) for name, value in made.items()}

    def to(self, device: torch.device | str) -> Called:
        """Moves it, now or when it is read; returns itself."""
        self.device = torch.device(device)
        return self

    def _drop(self) -> None:
        if self.offload:
            self._pipelines = []

    def _conditions(self, prompt: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(what guidance compares with, the conditions) of one prompt."""
        if not self._pipelines:
            name = pipeline_of(self.folder).get("_class_name")
            if self.prior is None and name in PRIORED:
                raise ValueError(
                    f"the prompts of a {name} go through a pipeline of their own: give its folder, "
                    "prior=FOLDER, or image_embeds= of your own"
                )
            places = [self.folder] if self.prior is None else [self.prior, self.folder]
            self._pipelines = [
                _pipeline(place, self.allow_pickle, self.dtype, place == self.folder)
                for place in places
            ]
        *prior, pipeline = (p.to(self.device) for p in self._pipelines)
        # Kandinsky's prior makes the embeddings that the decoder is called with.
        given = {} if not prior else dict(_call(prior[0], {"prompt": prompt}))
        takes = inspect.signature(pipeline.__call__).parameters
        given |= {"prompt": [prompt]} if "prompt" in takes else {}
        given |= {"guidance_scale": 2.0}  # both branches are then made
        try:
            _call(pipeline, {k: v for k, v in given.items() if k in takes})
        except _Reached as reached:
            found = reached.conditions
        else:
            raise ValueError(f"{type(pipeline).__name__} did not call its network")
        halves = {k: v.chunk(2) for k, v in found.items()}
        return {k: v[0] for k, v in halves.items()}, {k: v[1] for k, v in halves.items()}


class _Reached(Exception):
    """The network of a pipeline was called."""

    def __init__(self, conditions: dict[str, Tensor]) -> None:
        super().__init__()
        self.conditions = conditions


class _Listening(torch.nn.Module):
    """Stands in the place of a network or an autoencoder: it has a configuration, and when it is
    called it takes note of its conditions and ends the pipeline's call."""

    def __init__(self, config: Mapping[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        from diffusers.configuration_utils import FrozenDict

        self.config = FrozenDict(config)
        self.register_buffer("here", torch.zeros((), dtype=dtype))

    @property
    def dtype(self) -> torch.dtype:
        return self.here.dtype  # type: ignore[return-value, union-attr]

    @property
    def device(self) -> torch.device:
        return self.here.device  # type: ignore[return-value, union-attr]

    def forward(self, *_: Any, **given: Any) -> None:
        given |= given.get("added_cond_kwargs") or {}
        names = (*TAKEN, "text_embeds", "image_embeds")
        raise _Reached({k: given[k] for k in names if given.get(k) is not None})


def _call(pipeline: Any, given: dict[str, Any]) -> Any:
    with torch.no_grad(), silent():
        return pipeline(**given, generator=torch.Generator().manual_seed(0))


def _pipeline(folder: Path, allow_pickle: bool, dtype: torch.dtype, listening: bool) -> Any:
    """A pipeline with the parts that make its conditions; where it listens, its networks and
    autoencoders are not read."""
    import diffusers

    refuse_code(folder)
    index = pipeline_of(folder)
    cls: Any = getattr(diffusers, str(index.get("_class_name")), None)
    if cls is None:
        raise ValueError(f"{folder} is a {index.get('_class_name')}, which diffusers does not have")
    parts: dict[str, Any] = {}
    for name in list(inspect.signature(cls.__init__).parameters)[1:]:
        entry = index.get(name)
        if not isinstance(entry, list) or entry[1] is None:
            parts[name] = None
        elif listening and not (name in ENCODING or is_text(name) or "scheduler" in name):
            parts[name] = _Listening(_config(folder / name, entry), dtype)
        else:
            parts[name] = _part(folder / name, entry, allow_pickle, dtype)
    with silent():
        pipeline = cls(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _config(place: Path, entry: Sequence[str]) -> dict[str, Any]:
    """The configuration of a network with what it leaves out filled in from its class."""
    defaults = {
        k: p.default
        for k, p in inspect.signature(class_of(entry).__init__).parameters.items()
        if p.default is not p.empty
    }
    return defaults | read_json(place / "config.json")


def _part(place: Path, entry: Sequence[str], allow_pickle: bool, dtype: torch.dtype) -> Any:
    if (place / "config.json").is_file():
        config = read_json(place / "config.json")
        if "_class_name" in config:  # of diffusers
            return read_network(place, config, (entry[1],), allow_pickle, class_of(entry))[0].to(
                dtype
            )
        return read_part(place, entry, allow_pickle, dtype)
    if place.name.startswith("tokenizer"):
        return read_part(place, entry, allow_pickle, dtype)
    with no_bars():
        return class_of(entry).from_pretrained(place, local_files_only=True)
