"""Noise-aware classifiers, for classifier guidance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invdiff.loading import adm
from invdiff.loading.folder_files import read_json
from invdiff.loading.scheduler import schedule_of
from invdiff.loading.source import Source
from invdiff.loading.time_classifier import TimeClassifier
from invdiff.network import NoisyClassifier
from invdiff.plugins.registry import check_names


def load_classifier(
    folder: str | Path, *, allow_pickle: bool = False, **options: Any
) -> NoisyClassifier:
    """The noise-aware classifier of a folder: a ``TimeClassifier`` of this package with its
    ``scheduler_config.json``; or of a file of guided-diffusion, see
    :func:`invdiff.loading.adm.load_classifier`, which takes ``options``.

    Args:
        allow_pickle: read files with objects other than tensors and plain containers, which runs
            code from the file.
    """
    source, folder = Source(folder, allow_pickle), Path(folder)
    if source.file is not None:
        return adm.load_classifier(source, **options)
    check_names(f"the classifier in {folder}", options, [])
    config, noise = read_json(folder / "config.json"), read_json(folder / "scheduler_config.json")
    if config.get("_class_name") != TimeClassifier.__name__:
        raise ValueError(
            f"{folder} holds a {config.get('_class_name')}, not a "
            f"{TimeClassifier.__name__}; pass your own as a callable, classifier=net"
        )
    net = TimeClassifier.from_folder(folder, config)
    return NoisyClassifier(
        net, schedule=schedule_of(noise), channels=config["in_channels"], name=folder.name
    )
