"""Loaders: one for each kind of file or folder that networks come in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from invdiff.loading.checkpoint import SUFFIXES, holds_tensors, load_checkpoint
from invdiff.loading.exported import kind_of, load_exported
from invdiff.loading.folder import load_folder
from invdiff.network import Denoiser
from invdiff.plugins.registry import PluginError, list_plugins, load


class Loader(ABC):
    """Reads networks of one kind. Registered in the entry-point group ``invdiff.loaders``."""

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Whether the file or folder, which exists, is of this kind; by its content or its suffix.
        Nothing that could run code is read for it."""

    @abstractmethod
    def load(self, path: Path, *, allow_pickle: bool = False, **options: Any) -> Denoiser:
        """The network.

        Args:
            path: file or folder.
            allow_pickle: whether what can run code may be read.
            options: further ones that the loader names, and those of
                :class:`~invdiff.network.Denoiser`.
        """

    @property
    def function(self) -> Callable[..., Denoiser]:
        """The function whose parameters are the loader's options."""
        return self.load


class Folder(Loader):
    """Folders in the layout of diffusers."""

    def recognises(self, path: Path) -> bool:
        return path.is_dir()

    def load(self, path: Path, *, allow_pickle: bool = False, **options: Any) -> Denoiser:
        return load_folder(path, allow_pickle=allow_pickle, **options)

    @property
    def function(self) -> Callable[..., Denoiser]:
        return load_folder


class Exported(Loader):
    """TorchScript, torch.export and ONNX files."""

    def recognises(self, path: Path) -> bool:
        return path.is_file() and kind_of(path) is not None

    def load(self, path: Path, *, allow_pickle: bool = False, **options: Any) -> Denoiser:
        return load_exported(path, allow_pickle=allow_pickle, **options)

    @property
    def function(self) -> Callable[..., Denoiser]:
        return load_exported


class Checkpoint(Loader):
    """Files of tensors: safetensors, and what ``torch.save`` writes, whatever their suffix."""

    def recognises(self, path: Path) -> bool:
        if not path.is_file() or kind_of(path) is not None:
            return False
        return path.suffix.lower() in SUFFIXES or holds_tensors(path)

    def load(self, path: Path, *, allow_pickle: bool = False, **options: Any) -> Denoiser:
        return load_checkpoint(path, allow_pickle=allow_pickle, **options)

    @property
    def function(self) -> Callable[..., Denoiser]:
        return load_checkpoint


def loader_of(path: Path) -> Loader:
    """The loader that recognises a file or folder; one that none recognises is read as a
    checkpoint, whose error says what was found.

    Raises:
        PluginError: two loaders claim it.
    """
    made = {name: load("loaders", name)() for name in list_plugins("loaders")}
    found = {name: loader for name, loader in made.items() if loader.recognises(path)}
    if len(found) > 1:
        claims = " and ".join(f"{name} ({list_plugins('loaders')[name]})" for name in found)
        raise PluginError(f"{path} is claimed by the loaders {claims}; uninstall one of them")
    return next(iter(found.values()), None) or Checkpoint()
