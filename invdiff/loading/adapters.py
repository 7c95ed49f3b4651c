"""Small weights on top of a pipeline's: LoRA of its network and text encoders, and embeddings of
new words (textual inversion), in every format that diffusers reads."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from invdiff.loading.diffusers_log import as_warnings

Given = str | Path | Sequence[str | Path] | None
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class Adapters:
    """LoRA files with their scales, and textual inversions with their words.

    Attributes:
        lora: (file, scale) of each; all are added.
        words: (file, word) of each textual inversion; None: the word that the file names.
    """

    lora: tuple[tuple[Path, float], ...] = ()
    words: tuple[tuple[Path, str | None], ...] = ()

    @classmethod
    def of(cls, lora: Given, words: Given) -> Adapters:
        """Of the loader's options, ``path[:scale]`` and ``path[:word]``, one or a list.

        Raises:
            ValueError: a file that is not there or no safetensors, a scale that is no number.
        """
        scaled = []
        for given in _listed(lora):
            file, scale = split_path(given)
            try:
                scaled.append((file, 1.0 if scale is None else float(scale)))
            except ValueError:
                raise ValueError(f"a LoRA is path[:scale] with a number, got {given}") from None
        return cls(tuple(scaled), tuple(split_path(given) for given in _listed(words)))

    def change_network(self, net: Any, index: Mapping[str, Any]) -> None:
        """Adds each LoRA to the network's weights, in place.

        Args:
            index: ``model_index.json`` of the pipeline that the network is of.

        Raises:
            ValueError: peft is not installed; a file without weights for such a pipeline, or whose
                weights do not fit.
        """
        for file, scale in self.lora:
            cls = _pipeline_class(index)
            part = _part(cls)
            state, alphas = _read(cls, file, net.config)
            if not any(k.startswith((part, *ENCODERS)) for k in state):
                raise ValueError(
                    f"{file} has no weights for the {part} or a text encoder of a {cls.__name__}; "
                    f"its first is {next(iter(state), None)}"
                )
            if not any(k.startswith(f"{part}.") for k in state):
                continue
            into = cls.load_lora_into_unet if part == "unet" else cls.load_lora_into_transformer
            given = {"network_alphas": alphas, "adapter_name": "lora", part: net}
            taken = inspect.signature(into).parameters
            try:
                with as_warnings():
                    into(state, **{k: v for k, v in given.items() if k in taken})
                    net.fuse_lora(lora_scale=scale, adapter_names=["lora"])
                    net.unload_lora()
            except (RuntimeError, ValueError, KeyError) as error:
                raise ValueError(f"the LoRA {file} does not fit this network: {error}") from error

    def change_text(self, pipeline: Any) -> None:
        """Adds each LoRA to the text encoders that it has weights for, and the new words, in place.

        Args:
            pipeline: of diffusers, with its tokenizers and text encoders.
        """
        names = []
        for k, (file, _) in enumerate(self.lora):
            state, alphas = _read(type(pipeline), file, None)
            here = [e for e in ENCODERS if any(key.startswith(f"{e}.") for key in state)]
            for encoder in here:
                pipeline.load_lora_into_text_encoder(
                    state,
                    network_alphas=alphas,
                    text_encoder=getattr(pipeline, encoder),
                    prefix=encoder,
                    adapter_name=f"lora{k}",
                )
            names += [(f"lora{k}", self.lora[k][1])] if here else []
        if names:
            pipeline.set_adapters(*map(list, zip(*names, strict=True)))
        for file, word in self.words:
            _learn(pipeline, file, word)


def _learn(pipeline: Any, file: Path, word: str | None) -> None:
    """Adds the embedding of a new word to the tokenizers and text encoders that it is for."""
    from safetensors.torch import load_file

    state = load_file(file)
    try:
        if not {"clip_l", "clip_g"} & state.keys():
            pipeline.load_textual_inversion(state, token=word)
            return
        for key, suffix in (("clip_l", ""), ("clip_g", "_2")):  # SDXL has one for each encoder
            if key in state:
                pipeline.load_textual_inversion(
                    state[key],
                    token=word or file.stem,
                    text_encoder=getattr(pipeline, f"text_encoder{suffix}"),
                    tokenizer=getattr(pipeline, f"tokenizer{suffix}"),
                )
    except (ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{file} is no word of this pipeline's encoders: {error}") from error


def _pipeline_class(index: Mapping[str, Any]) -> Any:
    import diffusers

    name = str(index.get("_class_name"))
    cls = getattr(diffusers, name, None)
    if cls is None or not hasattr(cls, "lora_state_dict"):
        raise ValueError(f"diffusers reads no LoRA for a {name}; leave out lora=")
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ValueError("LoRA needs peft: pip install 'invdiff[text]'") from error
    return cls


def _part(cls: Any) -> str:
    return "unet" if hasattr(cls, "load_lora_into_unet") else "transformer"


def _read(cls: Any, file: Path, config: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """(weights by diffusers' names, their alphas)."""
    found = cls.lora_state_dict(
        str(file.parent),
        weight_name=file.name,
        local_files_only=True,
        use_safetensors=True,
        unet_config=config,
        return_alphas=True,
    )
    return found if isinstance(found, tuple) else (found, None)


def _listed(given: Given) -> list[str | Path]:
    if given is None:
        return []
    return [given] if isinstance(given, str | Path) else list(given)


def split_path(given: str | Path) -> tuple[Path, str | None]:
    """``path.safetensors[:rest]`` in its two parts.

    Raises:
        ValueError: there is no such file.
    """
    path, rest = Path(given).expanduser(), None
    if not path.is_file() and ":" in str(given):
        head, _, rest = str(given).rpartition(":")
        path = Path(head).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(
            f"{given} is no file of safetensors, written path.safetensors[:rest]"
            + (" (other formats are pickles, which are not read here)" if path.is_file() else "")
        )
    return path, rest
