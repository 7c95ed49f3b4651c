"""The module behind a network: its weights, a digest of them, and what options do to it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from invdiff.network.latent import Autoencoder
from invdiff.network.protocol import Checkpointing


def first_weight(net: Callable[..., Any]) -> Tensor | None:
    """A parameter of a module, whose device and dtype stand for those of all; None without any."""
    return next(net.parameters(), None) if isinstance(net, torch.nn.Module) else None


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 of a module's weights and buffers with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def changes_module(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether other options change the module itself, not only how it is called."""
    layout = ("channels_last", "gradient_checkpointing")
    double = [options["dtype"] == torch.float64 for options in (before, after)]
    return double[0] != double[1] or any(before[k] != after[k] for k in layout)


def prepare(
    net: Callable[..., Tensor],
    autoencoder: Autoencoder | None,
    dtype: torch.dtype,
    channels_last: bool,
    gradient_checkpointing: bool,
) -> None:
    """Freezes a module and brings it into the precision and the layout asked for, in place."""
    coder = None if autoencoder is None else autoencoder.net
    if isinstance(net, torch.nn.Module):
        net.eval().requires_grad_(False)
        if dtype == torch.float64:
            net.double()
            if coder is not None:
                coder.double()
        if channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if gradient_checkpointing:
        if not isinstance(net, Checkpointing):
            raise ValueError(
                "gradient_checkpointing=True needs a network with "
                "enable_gradient_checkpointing(), as diffusers' models have"
            )
        net.enable_gradient_checkpointing()
        if isinstance(coder, Checkpointing):
            coder.enable_gradient_checkpointing()
