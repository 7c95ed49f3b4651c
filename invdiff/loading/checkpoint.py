"""Checkpoint files: .safetensors, and what ``torch.save`` writes (.pt, .pth, .ckpt, .bin).

The families are told by the names of the parameters, and the architecture is read from their
shapes:

    guided-diffusion  ``input_blocks.0.0.weight``  openai/guided-diffusion and improved-diffusion,
                                                   DPS' FFHQ, deepinv's DiffUNet
    edm               ``map_layer0.weight``        NVlabs/edm's networks (DDPM++, NCSN++, ADM),
                                                   deepinv's NCSNpp and ADMUNet
    score_sde         ``all_modules.1.weight``     yang-song/score_sde_pytorch's DDPM++ and NCSN++

A file is searched for networks wherever they lie (``state_dict``, ``model``, ``ema``, prefixes such
as ``module.``), and averaged weights are preferred. Every parameter must be there and none may be
left over: nothing loads half.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invdiff import schedules
from invdiff.loading import adm, edm
from invdiff.loading.scheduler import overridden
from invdiff.loading.state_dict import check_finite, filled, listed
from invdiff.network import Denoiser, NoisyClassifier
from invdiff.schedules import Schedule

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
ANCHORS = {
    "guided-diffusion": "input_blocks.0.0.weight",
    "edm": "map_layer0.weight",
    "score_sde": "all_modules.1.weight",
}

# Constants of the noise schedule that some packages store beside the network.
_CONSTANTS = re.compile(
    r"(^|\.)(betas|(sqrt_|log_)?(one_minus_|1m_|recip_|recipm1_)?alphas_cumprod(_prev)?|posterior_\w+|p2_loss_weight|loss_weight|lvlb_weights|logvar)$"
)
_NOT_WEIGHTS = (
    "optimizer",
    "optim",
    "opt",
    "optimizer_state",
    "optimizer_states",
    "lr_schedulers",
    "callbacks",
    "loops",
    "scaler",
)
_AVERAGES = {"ema", "average", "averaged", "shadow", "swa"}
_UNTRAINED = re.compile(r"(^|\.)(sigmas|all_modules\.0\.W|map_noise\.freqs|resample_filter)$")


def load_checkpoint(
    path: str | Path,
    *,
    allow_pickle: bool = False,
    weights: str | None = None,
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    new_attention_order: bool | None = None,
    preconditioning: str | None = None,
    **options: Any,
) -> Denoiser:
    """A Denoiser from a checkpoint file; images in [-1, 1] unless said otherwise.

    Args:
        path: local file.
        allow_pickle: read files with objects other than tensors and plain containers. Reading them
            runs code from the file.
        weights: which network of a file with several, as its error message lists them; by default
            the averaged one.
        num_heads, num_head_channels: how a guided-diffusion network divides its attention, which
            its file does not say. Default: as published for the published networks; otherwise 64
            channels a head, or, without ``resblock_updown``, 4 heads.
        new_attention_order: as it was trained; default: as published, else False.
        preconditioning: of EDM and score_sde networks: ``"edm"`` (Karras et al. 2022), ``"vp"`` or
            ``"ve"`` (Song et al. 2021, continuous times). Default: ``"edm"`` for EDM's parameter
            names; for score_sde's what the time embedding says.
        options: of :class:`~invdiff.network.Denoiser`, on top of what is recognised: ``schedule``
            where it is not the one assumed, ``null_label`` where the last embedding (or, for EDM,
            the absent label) stands for no class, ``cond_channels``, ``dtype``...

    Raises:
        ValueError: a file that cannot be read, needs unpickling, or holds no network known here;
            several networks; missing, unexpected or misshapen parameters, which are listed.
    """
    path = Path(path)
    held = _read(path, allow_pickle)
    network = _chosen(path, _understood(path, lambda: _networks(held)), weights)
    if network.family == "guided-diffusion":
        if not any(name.startswith("output_blocks.") for name in network.tensors):
            raise ValueError(
                f"{path} holds a classifier, not a denoiser; load_classifier({path.name!r}) "
                "reads it"
            )
        given = _Given(num_heads, num_head_channels, new_attention_order, "schedule" in options)
        net, found = _guided_diffusion(path, network, given, options)
    else:
        made = edm.from_edm if network.family == "edm" else edm.from_score_sde
        net, found = _understood(path, lambda: made(network.tensors, preconditioning))
    if network.betas is not None and found["predicts"] == "eps":
        found["schedule"] = schedules.from_betas(network.betas)
    denoiser = Denoiser(net, **({"name": path.stem} | overridden(found, options)))
    storage = ", ".join(
        sorted({str(t.dtype).removeprefix("torch.") for t in network.tensors.values()})
    )
    denoiser.source |= {
        "kind": f"{network.family} checkpoint",
        "path": str(path),
        "weights": network.name or "all",
        "storage": storage,
    }
    return denoiser


def load_classifier_checkpoint(
    path: str | Path,
    *,
    allow_pickle: bool = False,
    weights: str | None = None,
    num_heads: int | None = None,
    num_head_channels: int | None = None,
    new_attention_order: bool | None = None,
    num_res_blocks: int | None = None,
    schedule: Schedule | None = None,
) -> NoisyClassifier:
    """The noisy classifier of guided-diffusion from its file. Arguments as in
    :func:`load_checkpoint`, and:

    Args:
        num_res_blocks: residual blocks per resolution (``classifier_depth``), needed where the file
            fits several.
        schedule: what it was trained on; default: ``cosine()`` for the published 64x64 classifier,
            else ``linear()``.
    """
    path = Path(path)
    held = _read(path, allow_pickle)
    network = _chosen(path, _understood(path, lambda: _networks(held)), weights)
    if network.family != "guided-diffusion" or any(
        name.startswith("output_blocks.") for name in network.tensors
    ):
        raise ValueError(
            f"{path} holds a denoiser ({network.family}), not a classifier; load_checkpoint "
            "reads it"
        )
    a, assumed = _divided(
        path,
        network,
        _Given(num_heads, num_head_channels, new_attention_order, schedule is not None),
        num_res_blocks,
    )
    net = _understood(path, lambda: filled(lambda: adm.ADMClassifier(a), network.tensors))
    if schedule is None:
        schedule = (
            schedules.from_betas(network.betas) if network.betas is not None else assumed.schedule()
        )
    return NoisyClassifier(net, schedule=schedule, channels=a.in_channels, name=path.stem)


# Files --------------------------------------------------------------------------------------------


def holds_tensors(path: Path) -> bool:
    """Whether a file looks like safetensors or like what ``torch.save`` writes, by its content."""
    if _is_safetensors(path):
        return True
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    with path.open("rb") as file:  # the older format is a pickle that begins with a magic number
        return file.read(16).startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        begin = file.read(9)
    length = int.from_bytes(begin[:8], "little")
    return begin[8:] == b"{" and length <= path.stat().st_size


def _read(path: Path, allow_pickle: bool) -> Any:
    """What the file holds, on the CPU."""
    if not path.is_file():
        raise ValueError(f"no file at {path}")
    if path.suffix == ".pkl":
        raise ValueError(
            f"{path} is a pickle of whole objects, as NVIDIA publishes them: it needs their "
            "code and runs what it contains, so it is not read here. "
            "Export its weights once in a checkout of their repository: "
            "`import pickle, torch; net = pickle.load(open('network.pkl', 'rb'))['ema']; "
            "torch.save(net.model.state_dict(), 'network.pt')`"
        )
    with path.open("rb") as file:
        begin = file.read(64).lstrip()
    if not begin:
        raise ValueError(f"{path} is empty")
    if begin.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is a pointer of Git LFS and not the file itself, which `git lfs pull` fetches"
        )
    if begin.startswith(b"<"):
        raise ValueError(
            f"{path} is a page of the web and not a checkpoint; download the file itself"
        )
    safe = _is_safetensors(path) or path.suffix.lower() == ".safetensors"
    if not safe and path.suffix.lower() not in SUFFIXES and not holds_tensors(path):
        raise ValueError(
            f"{path} is no checkpoint this package reads: its content is neither safetensors nor "
            f"what torch.save writes, and its suffix is none of {', '.join(SUFFIXES)}"
        )
    if safe:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read, is it complete? {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if not allow_pickle:
            what = f" ({named[1]})" if named else ""
            raise ValueError(
                f"{path} is not a plain file of tensors: it holds other objects{what} or is "
                "damaged. Reading such objects runs code from the "
                "file, so do it only for a file you trust: allow_pickle=True "
                "(--allow-pickle). Whoever made it can save its weights alone, "
                "torch.save(net.state_dict(), path), which anyone can read"
            ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read, is it complete? {_first_line(error)}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling runs any code, which may fail in any way
        raise ValueError(
            f"{path} cannot be unpickled: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


@dataclass(frozen=True)
class _Network:
    """One network of a file: where it lies, its parameters without that prefix, and its betas if
    they lie beside it."""

    name: str
    family: str
    tensors: dict[str, Tensor]
    averaged: bool
    betas: Tensor | None = None
    left: tuple[str, ...] = field(default=())  # what lies beside it and belongs to nothing


def _networks(held: Any) -> list[_Network]:
    """Every network of a known family, wherever it lies."""
    flat = list(_flat(held, ""))
    found = [network for name, tensors in flat for network in _within(name, tensors)]
    for where, shadow in _shadows(held, ""):
        for network in list(found):
            names = [n for n in network.tensors if not _UNTRAINED.search(n)]
            if not network.averaged and [network.tensors[n].shape for n in names] == [
                s.shape for s in shadow
            ]:
                averaged = network.tensors | dict(zip(names, shadow, strict=True))
                found.append(replace(network, name=where, tensors=averaged, averaged=True))
    if not found:
        names = [f"{name}{key}" for name, tensors in flat for key in tensors]
        raise ValueError(_unknown(names))
    return found


def _flat(held: Any, name: str, depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(where, tensors by name) of every dictionary that holds tensors."""
    if isinstance(held, nn.Module):
        held = held.state_dict()
    if not isinstance(held, Mapping) or depth > 4:
        return
    tensors = {k: v for k, v in held.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield name, tensors
    for key, value in held.items():
        if key not in _NOT_WEIGHTS:
            yield from _flat(value, f"{name}{key}.", depth + 1)


def _shadows(held: Any, name: str, depth: int = 0) -> Iterator[tuple[str, list[Tensor]]]:
    """Averages kept as a list in the order of the parameters (torch_ema, score_sde)."""
    if not isinstance(held, Mapping) or depth > 4:
        return
    for key, value in held.items():
        if key == "shadow_params" and isinstance(value, list):
            yield name.rstrip("."), value
        elif key not in _NOT_WEIGHTS:
            yield from _shadows(value, f"{name}{key}.", depth + 1)


def _within(name: str, tensors: Mapping[str, Tensor]) -> Iterator[_Network]:
    """The networks of one flat dictionary, told apart by their prefixes."""
    prefixes = {
        key.removesuffix(anchor): family
        for key in tensors
        for family, anchor in ANCHORS.items()
        if key == anchor or key.endswith(f".{anchor}")
    }
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if _CONSTANTS.search(key):
            continue
        prefix = max((p for p in prefixes if key.startswith(p)), key=len, default=None)
        if prefix is None:
            rest[key] = tensor
        else:
            parts[prefix][key.removeprefix(prefix)] = tensor
    betas = next(
        (v for k, v in tensors.items() if k.split(".")[-1] == "betas" and v.ndim == 1), None
    )
    counted = "n_averaged" in tensors  # torch's AveragedModel
    squeezed = {p: _without_dots(p, part, rest) for p, part in parts.items()}
    left = tuple(k for k, v in rest.items() if v.numel() > 1)
    for prefix, family in prefixes.items():
        where = f"{name}{prefix}".rstrip(".")
        yield _Network(where, family, parts[prefix], counted or _is_average(where), betas, left)
        if average := squeezed[prefix]:
            yield _Network(f"{name}model_ema", family, average, True, betas, left)


def _without_dots(
    prefix: str, part: Mapping[str, Tensor], rest: dict[str, Tensor]
) -> dict[str, Tensor] | None:
    """The average that latent-diffusion's trainer keeps of the network at ``prefix``, its names
    written without dots."""
    names = {k: "model_ema." + (prefix.removeprefix("model.") + k).replace(".", "") for k in part}
    if not all(n in rest for n in names.values()):
        return None
    return {k: rest.pop(n) for k, n in names.items()}


def _is_average(where: str) -> bool:
    words = set(re.split(r"[^a-z]+", where.lower()))
    return bool(words & _AVERAGES) and "online" not in words


def _chosen(path: Path, networks: list[_Network], weights: str | None) -> _Network:
    """The network that is meant: the one named, the only one, or the only average."""
    names = ", ".join(repr(n.name) for n in networks)
    if weights is not None:
        picked = [n for n in networks if n.name == weights]
        if len(picked) != 1:
            raise ValueError(f"{path} has no network {weights!r}; it holds {names}")
    else:
        averaged = [n for n in networks if n.averaged]
        picked = averaged if averaged and len(networks) > 1 else networks
        if len(picked) > 1:
            raise ValueError(
                f"{path} holds several networks: {names}; choose one: weights={picked[0].name!r}"
            )
        if len(networks) > 1:
            other = next(n.name for n in networks if not n.averaged)
            warnings.warn(
                f"{path.name}: the averaged weights {picked[0].name!r} are used; "
                f"weights={other!r} takes the others",
                stacklevel=2,
            )
    (network,) = picked
    if network.left:
        latent = any(k.startswith("first_stage_model") for k in network.left)
        hint = (
            "; it is a latent diffusion model with its autoencoder, which is read from a "
            "diffusers folder"
            if latent
            else ""
        )
        raise ValueError(
            f"{path} holds parameters that belong to no network known here{hint}: "
            f"{listed(network.left)}"
        )
    _understood(path, lambda: check_finite(network.tensors))
    return network


def _unknown(names: list[str]) -> str:
    if not names:
        return "the file holds no tensors by name, so no network"
    first = f"its parameters begin with {listed(names)}"
    if any("down_blocks." in n or "transformer_blocks." in n for n in names):
        return (
            "these are parameters of a diffusers model, whose config.json says what it is: "
            f"give the folder that holds both; {first}"
        )
    return (
        f"no network known here: {first}. Known are guided-diffusion, EDM and score_sde (by "
        "their parameter names). Any other network works as "
        "a callable: invdiff.Denoiser(net, predicts=..., schedule=..., data_range=...)"
    )


# Networks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Given:
    """What the caller says of the attention, and whether of the schedule."""

    num_heads: int | None
    num_head_channels: int | None
    new_order: bool | None
    schedule: bool = False


@dataclass(frozen=True)
class _Published:
    """What is known of a network and its file does not say."""

    size: int | None = None
    heads: int | None = None
    new_order: bool = False
    schedule: Callable[[], Schedule] = schedules.linear
    factor: int | None = None


# (in_channels, model_channels, channels / model_channels, blocks, attention): the networks of
# guided-diffusion's README, and FFHQ 256 of ILVR and DPS. In the order of the README; the
# classifiers below have 128 channels.
_PUBLISHED: dict[tuple[Any, ...], _Published] = {
    (3, 192, (1, 2, 3, 4), 3, (1, 2, 3)): _Published(64, new_order=True, schedule=schedules.cosine),
    (3, 256, (1, 1, 2, 3, 4), 2, (2, 3, 4)): _Published(128, heads=4),
    (3, 256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5)): _Published(256),
    (3, 256, (0.5, 1, 1, 2, 2, 4, 4), 2, (4, 5, 6)): _Published(512),
    (6, 192, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5)): _Published(256, heads=4, factor=4),
    (6, 192, (1, 1, 2, 2, 4, 4), 2, (4, 5)): _Published(512, factor=4),
    (3, 128, (1, 1, 2, 2, 4, 4), 1, (4,)): _Published(256),
}
_PUBLISHED_CLASSIFIERS: dict[tuple[Any, ...], _Published] = {
    (3, 128, (1, 2, 3, 4), 4, (1, 2, 3)): _Published(64, schedule=schedules.cosine),
    (3, 128, (1, 1, 2, 3, 4), 2, (2, 3, 4)): _Published(128),
    (3, 128, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5)): _Published(256),
    (3, 128, (0.5, 1, 1, 2, 2, 4, 4), 2, (4, 5, 6)): _Published(512),
}


def _divided(
    path: Path, network: _Network, given: _Given, blocks: int | None = None
) -> tuple[adm.Architecture, _Published]:
    """The architecture with its heads, and what else had to be assumed; says so where it is not
    known."""
    shapes = {name: tuple(t.shape) for name, t in network.tensors.items()}
    a = _understood(path, lambda: adm.architecture(shapes, blocks))
    key = (
        a.in_channels,
        a.model_channels,
        tuple(c / a.model_channels for c in a.channels),
        a.blocks,
        a.attention,
    )
    table = _PUBLISHED if a.pool is None else _PUBLISHED_CLASSIFIERS
    known = table.get(key) if a.resample == "block" and a.scale_shift else None
    assumed = known or _Published(heads=None if a.resample == "block" else 4)
    unsaid = []
    if given.num_heads is None and given.num_head_channels is None:
        if known is None:
            what = "64 channels a head" if assumed.heads is None else f"{assumed.heads} heads"
            unsaid.append(
                f"how its attention is divided: {what} are assumed (num_head_channels=, num_heads=)"
            )
        a = adm.divided(a, assumed.heads, None, None)
    if known is None and not given.schedule and network.betas is None:
        unsaid.append("its noise schedule: linear(1000) is assumed (schedule=)")
    if unsaid:
        warnings.warn(
            f"{path.name} does not say {'; nor '.join(unsaid)}. Say so if it was trained otherwise",
            stacklevel=2,
        )
    a = adm.divided(
        a,
        given.num_heads,
        given.num_head_channels,
        assumed.new_order if given.new_order is None else given.new_order,
    )
    return a, assumed


def _guided_diffusion(
    path: Path, network: _Network, given: _Given, options: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The network and what was recognised of it."""
    a, known = _divided(path, network, given)
    shown, made, cond = a.in_channels, a.out_channels, options.get("cond_channels")
    if cond is not None:
        channels = shown - cond
    elif made == shown:  # six channels in and out: the upsampler with its variance
        channels = 3 if shown == 6 else made
    else:
        channels = made if made < shown else made // 2
    if made not in (channels, 2 * channels) or not 0 < channels <= shown:
        raise ValueError(
            f"{path} takes {shown} channels and returns {made}: it is no denoiser; give "
            "cond_channels= if it is shown an image"
        )
    net = _understood(
        path, lambda: filled(lambda: adm.ADM(a, image_last=shown - channels), network.tensors)
    )
    null = options.get("null_label")
    has_null = a.rows is not None and null is not False and null == a.rows - 1
    found = {
        "predicts": "eps",
        "schedule": known.schedule(),
        "data_range": (-1.0, 1.0),
        "learned_variance": made == 2 * channels,
        "num_classes": a.rows - 1 if has_null and a.rows is not None else a.rows,
        "null_label": False,
        "multiple": a.multiple,
        "channels": channels,
        "image_size": known.size,
    }
    if shown > channels:
        found |= {"cond_channels": shown - channels, "factor": known.factor}
    return net, found


def _understood(path: Path, read: Callable[[], Any]) -> Any:
    """What ``read`` returns; says which file and which parameter where it cannot."""
    try:
        return read()
    except KeyError as error:
        raise ValueError(
            f"{path} lacks parameters without which its network cannot be built; missing: "
            f"{error.args[0]}. Nothing was loaded"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
