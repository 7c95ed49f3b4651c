"""Single-file checkpoints: the networks of a whole pipeline in one file, with the names that
their authors gave the parameters (``model.diffusion_model...``), beside a folder that has the
pipeline's configurations and tokenizers. diffusers' own ``from_single_file`` converts them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from invdiff.loading.diffusers_log import as_warnings, no_bars
from invdiff.loading.folder_files import refuse_code
from invdiff.loading.state_dict import check_finite

TEXT = ("cond_stage_model.", "conditioner.", "text_encoders.")
"""What the names of text encoders' parameters begin with: in Stable Diffusion, SDXL and SD3."""


class SingleFile:
    """A file of a whole pipeline.

    Args:
        file: safetensors.
        folder: of the pipeline: ``model_index.json``, the configuration of each part and the
            tokenizers. Nothing is looked up anywhere else.

    Raises:
        ValueError: there is no such file, or it is of another kind; a folder without
            ``model_index.json``.
    """

    def __init__(self, file: str | Path, folder: Path) -> None:
        self.file, self.folder = Path(file).expanduser(), folder
        if not self.file.is_file() or self.file.suffix != ".safetensors":
            raise ValueError(
                f"single_file={str(file)!r} must be a .safetensors file; a .ckpt is a pickle, "
                "which can run code: have it converted"
            )
        if not (folder / "model_index.json").is_file():
            raise ValueError(
                f"a single file comes beside the folder of its pipeline, and {folder} has no "
                "model_index.json; what is needed are its configurations and tokenizers, without "
                "weights"
            )

    def network(self, place: Path, config: Mapping[str, Any], allowed: tuple[str, ...]) -> Any:
        """The network of a part of the pipeline, in float32 and complete.

        Args:
            place: the folder of the part's configuration.
            config: the configuration.
            allowed: classes of diffusers that it may be of.

        Raises:
            ValueError: another class; a file that has not all of its weights.
        """
        import diffusers

        refuse_code(place)
        name = str(config.get("_class_name"))
        cls: Any = getattr(diffusers, name, None)
        if name not in allowed or not hasattr(cls, "from_single_file"):
            raise ValueError(
                f"{place} is a {name}, which diffusers does not read from a single file; give the "
                "folder with its weights, without single_file="
            )
        net = self._converted(place.name, cls, subfolder=place.name)
        return self._whole(place.name, net).float()

    @cached_property
    def has_text(self) -> bool:
        """Whether there are text encoders in it; the folder's are used where there are none."""
        from safetensors import safe_open

        with safe_open(self.file, "pt") as opened:
            return any(name.startswith(TEXT) for name in opened.keys())  # noqa: SIM118

    def text(self, cls: Any, others: Mapping[str, Any], dtype: torch.dtype) -> Any:
        """A pipeline of that class with the folder's tokenizers and the file's text encoders.

        Args:
            others: all of the pipeline that is not text.
            dtype: of the text encoders.

        Raises:
            ValueError: a class that diffusers does not read so; a file that has not all of their
                weights.
        """
        if not hasattr(cls, "from_single_file"):
            raise ValueError(f"diffusers does not read a {cls.__name__} from a single file")
        pipeline = self._converted("text encoders", cls, **others)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                self._whole("text encoders", part).to(dtype)
        return pipeline

    def _converted(self, part: str, cls: Any, **more: Any) -> Any:
        try:
            with as_warnings(), no_bars():
                return cls.from_single_file(
                    str(self.file), config=str(self.folder), local_files_only=True, **more
                )
        except NotImplementedError as error:  # what is absent holds no data, and cannot be moved
            raise ValueError(
                f"{self.file} lacks parameters of the {part} of {self.folder}, nothing was loaded"
            ) from error
        except (OSError, RuntimeError, ValueError, KeyError, AttributeError) as error:
            said = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{self.file} does not hold the {part} of {self.folder}: {said}"
            ) from error
        except Exception as error:  # diffusers' own, which is derived from nothing nearer
            if type(error).__name__ != "SingleFileComponentError":
                raise
            raise ValueError(f"{self.file} does not hold the {part} of {self.folder}") from error

    def _whole(self, part: str, net: Any) -> Any:
        """The network itself, which has all of its weights."""
        if absent := [name for name, p in net.named_parameters() if p.is_meta]:
            raise ValueError(
                f"{self.file} lacks {len(absent)} parameters of the {part} of {self.folder}, "
                f"nothing was loaded: {', '.join(absent[:8])}"
            )
        check_finite(net.state_dict())
        return net.eval().requires_grad_(False)
