"""The autoencoder between the images and the states of a folder's network."""

from __future__ import annotations

from pathlib import Path

from invdiff.loading.autoencoder import AUTOENCODERS, factor_of, from_diffusers
from invdiff.loading.diffusers_class import read_network
from invdiff.loading.folder_files import read_json, refuse_code
from invdiff.loading.single_file import SingleFile
from invdiff.network import Autoencoder

CODERS = ("vae", "vqvae", "movq")
"""Where a latent pipeline keeps its autoencoder."""
UNSCALED = ("movq",)
"""Where latents are used as they are, neither scaled nor looked up in a table (Kandinsky)."""

Given = Autoencoder | str | Path | bool | None
AS_LOADED = ("mode", "whole")


def coder_of(
    folder: Path,
    given: Given,
    encode: str,
    decode: str,
    channels: int,
    allow_pickle: bool,
    single: SingleFile | None = None,
) -> Autoencoder | None:
    """The autoencoder of a network whose states have so many channels, if it is to have one.

    Args:
        given: True: the folder's own, if it has one; an Autoencoder, or the path of the folder of
            one; False or None: none.
        encode, decode: how it is used, see :func:`~invdiff.loading.autoencoder.from_diffusers`.
        single: the file that holds the folder's own, see
            :class:`~invdiff.loading.single_file.SingleFile`.

    Raises:
        ValueError: it is not where it should be, of an unknown class or of other latents.
    """
    place = _own(folder) if given is True else given
    if not isinstance(place, str | Path) and (encode, decode) != AS_LOADED:
        raise ValueError(
            "encode and decode are of autoencoders that are loaded here; an Autoencoder object "
            "brings its own"
            if isinstance(place, Autoencoder)
            else f"encode and decode say how an autoencoder is used, and {folder} is loaded "
            "without one"
        )
    if isinstance(place, str | Path):
        own = single if given is True else None
        made = _read(Path(place), encode, decode, allow_pickle, own)
    elif isinstance(place, Autoencoder):
        made = place
    else:
        return None
    if made.channels != channels:
        raise ValueError(
            f"the autoencoder makes latents with {made.channels} channels, but the "
            f"network's states have {channels}"
        )
    return made


def has_autoencoder(folder: Path) -> bool:
    """Whether a pipeline's images pass through an autoencoder, so that its network works on
    latents."""
    names = (str(read_json(f).get("_class_name")) for f in folder.glob("*/config.json"))
    return any(n.startswith(("Autoencoder", "AsymmetricAutoencoder", "VQModel")) for n in names)


def pixels_of(folder: Path, coder: Autoencoder | None) -> int | None:
    """How many pixels a side of a pipeline's state stands for: as the network's autoencoder has it,
    else the pipeline's own, else 8 as diffusers' pipelines take it. None of a lone network."""
    if not (folder / "model_index.json").is_file():
        return None
    if coder is not None:
        return coder.factor
    own = next((f for part in CODERS if (f := folder / part / "config.json").is_file()), None)
    return 8 if own is None else factor_of(read_json(own))


def _own(folder: Path) -> Path | None:
    """The folder of the pipeline's own autoencoder; None where it has none."""
    if found := next((folder / part for part in CODERS if (folder / part).is_dir()), None):
        return found
    if has_autoencoder(folder):
        raise ValueError(
            f"{folder} has an autoencoder, but not in one of the folders "
            f"{', '.join(CODERS)}, where it is looked for; give its path, "
            "autoencoder=PATH, or autoencoder=False for the network in latent space"
        )
    index = folder / "model_index.json"
    parts = read_json(index) if index.is_file() else {}
    if named := [part for part in CODERS if any(parts.get(part) or [])]:
        raise ValueError(
            f"{index} names a {named[0]}, and that folder is not "
            "there: the pipeline is not complete; give another one, "
            "autoencoder=PATH, or autoencoder=False for the network in latent space"
        )
    return None


def _read(
    place: Path, encode: str, decode: str, allow_pickle: bool, single: SingleFile | None
) -> Autoencoder:
    place = next((place / part for part in CODERS if (place / part).is_dir()), place)
    refuse_code(place)
    config = read_json(place / "config.json")
    if config.get("_class_name") not in AUTOENCODERS:
        raise ValueError(
            f"{place} holds a {config.get('_class_name')}; of autoencoders these are "
            f"read: {', '.join(AUTOENCODERS)}. Load it yourself and give "
            "autoencoder=invdiff.network.Autoencoder(encode, decode, ...), or "
            "autoencoder=False for the network in latent space"
        )
    if single is None:
        net, _ = read_network(place, config, AUTOENCODERS, allow_pickle)
    else:
        net = single.network(place, config, AUTOENCODERS)
    return from_diffusers(net, encode=encode, decode=decode, raw=place.name in UNSCALED)
