"""The tokenizer and the text encoder (CLIP) of a text-to-image pipeline, read when they are first
needed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ENCODERS = ("CLIPTextModel",)
"""Text encoders that are read: those whose last hidden state alone conditions the network
(Stable Diffusion 1 and 2, LCM)."""


class TextEncoder:
    """Prompts as conditions of a network, as ``StableDiffusionPipeline.encode_prompt`` makes them:
    padded and cut to the tokenizer's length, encoded to the last hidden state. In float32 whatever
    the network runs in.

    Args:
        folder: of the pipeline, with ``tokenizer/`` and ``text_encoder/``.
        allow_pickle: read weights that are kept as pickles.
    """

    def __init__(self, folder: Path, *, allow_pickle: bool = False) -> None:
        self.folder, self.allow_pickle = folder, allow_pickle
        self.device = torch.device("cpu")
        self._read: tuple[Any, Any] | None = None

    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """``encoder_hidden_states`` (B, L, D) of B prompts; a prompt that is too long is cut, with
        a warning.

        Raises:
            ValueError: transformers is not installed; encoders that are not read here, or weights
                that are not complete.
        """
        tokenizer, net = self._read = self._read or self._load()
        net.to(self.device)
        length = min(tokenizer.model_max_length, net.config.max_position_embeddings)
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        )
        for prompt in prompts:
            if len(tokenizer(prompt, truncation=False, verbose=False).input_ids) > length:
                warnings.warn(
                    f"the prompt {prompt[:60]!r}... is longer than {length} tokens; the "
                    "rest is not heeded",
                    stacklevel=3,
                )
        mask = (
            tokens.attention_mask.to(self.device)
            if getattr(net.config, "use_attention_mask", False)
            else None
        )
        with torch.no_grad():
            hidden = net(tokens.input_ids.to(self.device), attention_mask=mask)[0]
        return {"encoder_hidden_states": hidden}

    def to(self, device: torch.device | str) -> TextEncoder:
        """Moves it, now or when it is read; returns itself."""
        self.device = torch.device(device)
        return self

    def _load(self) -> tuple[Any, Any]:
        self._check()
        try:
            import transformers
            from transformers.utils import logging
        except ImportError as error:
            raise ValueError(
                "prompts need the text encoder's package: pip install 'invdiff[text]' "
                "(transformers)"
            ) from error
        folder = self.folder / "text_encoder"
        pickled = not any(folder.glob("*.safetensors"))
        if pickled and not self.allow_pickle:
            raise ValueError(
                f"no safetensors in {folder}; pickles (.bin) can run code when they are "
                "read: convert them, or allow_pickle=True if you trust "
                "whoever made them"
            )
        variant = (
            None if any((folder / f"{n}{e}").is_file() for n, e in FILES) else _variant(folder)
        )
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            tokenizer = transformers.CLIPTokenizer.from_pretrained(
                self.folder / "tokenizer", local_files_only=True
            )
            loaded: Any = transformers.CLIPTextModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=not pickled,
                variant=variant,
                output_loading_info=True,
            )
            net, info = loaded
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise ValueError(
                f"the tokenizer or text encoder in {self.folder} cannot be read: {error}"
            ) from error
        finally:
            if bars:
                logging.enable_progress_bar()
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if names := sorted(map(str, info[kind])):
                raise ValueError(
                    f"{folder} has {len(names)} {kind.replace('_', ' ')}, nothing was "
                    f"loaded: {', '.join(names[:8])}"
                )
        return tokenizer, net.float().eval().requires_grad_(False)

    def _check(self) -> None:
        """Refuses what this class cannot do as the pipeline does it."""
        several = sorted(p.name for p in self.folder.glob("text_encoder*") if p.is_dir())
        config = self.folder / "text_encoder" / "config.json"
        if not config.is_file() or not (self.folder / "tokenizer").is_dir():
            raise ValueError(
                f"{self.folder} has no tokenizer/ or no text_encoder/config.json, so "
                "prompts cannot be encoded"
            )
        names = json.loads(config.read_text()).get("architectures") or ["an unknown class"]
        if len(several) > 1 or names[0] not in ENCODERS:
            what = (
                f"several text encoders ({', '.join(several)})"
                if len(several) > 1
                else f"a {names[0]} as text encoder"
            )
            raise ValueError(
                f"{self.folder} has {what}; of prompts, a single {' or '.join(ENCODERS)} is "
                "read. Encode them with the pipeline's own "
                "encode_prompt and give the result as conditions: encoder_hidden_states=..."
            )


FILES = (("model", ".safetensors"), ("model", ".safetensors.index.json"), ("pytorch_model", ".bin"))


def _variant(folder: Path) -> str | None:
    """E.g. "fp16", where there is only ``model.fp16.safetensors``."""
    for file in sorted((*folder.glob("model.*.safetensors"), *folder.glob("pytorch_model.*.bin"))):
        return file.name.split(".")[1]
    return None
