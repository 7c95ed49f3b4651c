"""Prompts as conditions of a network: ``encode_prompt`` of the pipeline class of diffusers that
``model_index.json`` names, with the folder's tokenizers and text encoders and nothing else. They
are read when a prompt is first encoded."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.loading.adapters import Adapters
from invdiff.loading.diffusers_log import as_warnings, silent
from invdiff.loading.folder_files import read_json
from invdiff.loading.single_file import SingleFile
from invdiff.loading.text_parts import is_text, read_part

POOLED = ("text_embeds", "pooled_projections")
"""Names of the pooled embedding: of a U-Net's and of a transformer's condition."""


class Prompts:
    """Prompts as conditions, as the pipeline's own call encodes them.

    Args:
        folder: of the pipeline, with ``model_index.json``.
        conditions: those that the network takes; of what ``encode_prompt`` returns they are given.
        allow_pickle: read weights that are kept as pickles.
        length: tokens of a prompt, where the pipeline's own length is not wanted
            (``max_sequence_length`` of diffusers).
        offload: the text encoders are dropped after each use, and read again for the next.
        dtype: that the text encoders are kept and run in.
        adapters: LoRA and textual inversions, which change the text encoders as well.
        single: the file that holds the text encoders, where they are not the folder's.
    """

    def __init__(
        self,
        folder: Path,
        conditions: Collection[str],
        *,
        allow_pickle: bool = False,
        length: int | None = None,
        offload: bool = False,
        dtype: torch.dtype = torch.float32,
        adapters: Adapters | None = None,
        single: SingleFile | None = None,
    ) -> None:
        self.folder, self.conditions, self.allow_pickle = folder, tuple(conditions), allow_pickle
        self.length, self.offload, self.dtype = length, offload, dtype
        self.adapters, self.single = adapters or Adapters(), single
        self.device = torch.device("cpu")
        self._pipeline: Any = None

    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The conditions of B prompts, by the network's names; what a prompt that is too long loses
        is reported by a warning.

        Raises:
            ValueError: transformers is not installed; a pipeline whose prompts are not understood,
                or text encoders that are not complete.
        """
        return self._encoded(list(prompts), None)

    def negative(self, prompts: Sequence[str] | None, images: int) -> dict[str, Tensor]:
        """The conditions that classifier-free guidance compares with, as the pipeline encodes
        ``negative_prompt``; None: the one it takes where none is given, for ``images`` images."""
        pipeline = self._ready()
        if "negative_prompt" not in _keywords(pipeline.encode_prompt):
            return self._encoded(list(prompts or [""] * images), None)
        default = _defaults(pipeline).get("negative_prompt")
        if prompts is None and default is not None:
            prompts = [default] * images
        return self._encoded([""] * images, None if prompts is None else list(prompts), True)

    def to(self, device: torch.device | str) -> Prompts:
        """Moves it, now or when it is read; returns itself."""
        self.device = torch.device(device)
        return self

    def _encoded(
        self, prompts: list[str], negative: list[str] | None, against: bool = False
    ) -> dict[str, Tensor]:
        pipeline = self._ready()
        wanted = _keywords(pipeline.encode_prompt)
        given: dict[str, Any] = {k: v for k, v in _defaults(pipeline).items() if k in wanted} | {
            "prompt": prompts,
            "device": self.device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": against,
            "negative_prompt": negative,
        }
        if self.length is not None:
            if "max_sequence_length" not in wanted:
                raise ValueError(
                    f"{type(pipeline).__name__} has prompts of one length only; leave out "
                    "prompt_length="
                )
            given["max_sequence_length"] = self.length
        with torch.no_grad(), as_warnings():
            found = pipeline.encode_prompt(**{k: v for k, v in given.items() if k in wanted})
        if self.offload:
            self._pipeline = None
        return self._named(type(pipeline).__name__, wanted, found, against)

    def _named(
        self, pipeline: str, wanted: Mapping[str, Any], found: Sequence[Any], against: bool
    ) -> dict[str, Tensor]:
        """What ``encode_prompt`` returned, by the network's names: diffusers returns a tuple whose
        order follows from what else the method can be given."""
        if "negative_pooled_prompt_embeds" in wanted:  # SDXL, SD3
            hidden, pooled, mask = found[against], found[2 + against], None
        elif "pooled_prompt_embeds" in wanted:  # Flux
            hidden, pooled, mask = found[0], found[1], None
        elif "prompt_attention_mask" in wanted:  # PixArt, Sana
            hidden, pooled, mask = found[2 * against], None, found[1 + 2 * against]
        else:  # Stable Diffusion, DeepFloyd IF
            hidden, pooled, mask = found[against], None, None
        named = {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}
        named |= {name: pooled for name in POOLED}
        made = {k: v for k, v in named.items() if v is not None and k in self.conditions}
        dims = {"encoder_hidden_states": 3}
        if wrong := [k for k, v in made.items() if v.ndim != dims.get(k, 2)]:
            raise ValueError(
                f"encode_prompt of {pipeline} returns {wrong[0]} of shape "
                f"{tuple(made[wrong[0]].shape)}, which is not understood; encode the prompts "
                f"yourself and give the result as conditions: {', '.join(self.conditions)}"
            )
        return made

    def _ready(self) -> Any:
        if self._pipeline is None:
            self._pipeline = self._load()
        for part in self._pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.to(self.device)
        return self._pipeline

    def _load(self) -> Any:
        import diffusers

        index = pipeline_of(self.folder)
        name = str(index.get("_class_name"))
        cls: Any = getattr(diffusers, name, None)
        if not hasattr(cls, "encode_prompt"):
            why = "whose prompts diffusers does not encode by encode_prompt"
            if cls is None:
                why = f"which the installed diffusers {diffusers.__version__} does not have"
            raise ValueError(
                f"{self.folder} is a {name}, {why}; give conditions yourself: "
                "encoder_hidden_states=..."
            )
        named = [
            part
            for part in _keywords(cls.__init__)
            if is_text(part) and isinstance(index.get(part), list) and index[part][1] is not None
        ]
        if self.single is not None and self.single.has_text:
            others = parts_of(cls, index)
            with silent():  # that a part is None
                pipeline = self.single.text(
                    cls, {k: v for k, v in others.items() if k not in named}, self.dtype
                )
        else:
            read = {
                part: read_part(self.folder / part, index[part], self.allow_pickle, self.dtype)
                for part in named
            }
            pipeline = bare_pipeline(cls, index, **read)
        self.adapters.change_text(pipeline)
        return pipeline


def pipeline_of(folder: Path) -> dict[str, Any]:
    """``model_index.json`` of a folder.

    Raises:
        ValueError: it is not there.
    """
    if not (folder / "model_index.json").is_file():
        raise ValueError(
            f"{folder} has no model_index.json, which names the pipeline that prompts, LoRA and "
            "textual inversions are of"
        )
    return read_json(folder / "model_index.json")


def parts_of(cls: Any, index: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    """What a pipeline is made of: the parts that are given, no others, and the settings in its
    ``model_index.json``."""
    parts: dict[str, Any] = {}
    for part, parameter in list(_keywords(cls.__init__).items())[1:]:
        entry = index.get(part)
        if part in given:
            parts[part] = given[part]
        elif parameter.default is parameter.empty or isinstance(entry, list):
            parts[part] = None
        elif entry is not None:
            parts[part] = entry
    return parts


def bare_pipeline(cls: Any, index: Mapping[str, Any], **given: Any) -> Any:
    """A pipeline of a class of diffusers with the given parts and no others."""
    with silent():  # that a part is None
        return cls(**parts_of(cls, index, **given))


def _keywords(function: Any) -> Mapping[str, Any]:
    return inspect.signature(function).parameters


def _defaults(pipeline: Any) -> dict[str, Any]:
    """What the pipeline's call gives where nothing is said, which is not what ``encode_prompt``
    takes then."""
    return {
        k: p.default for k, p in _keywords(pipeline.__call__).items() if p.default is not p.empty
    }
