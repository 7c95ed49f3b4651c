"""Hashes of weights."""

from __future__ import annotations

import hashlib

import torch


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 of a module's weights and buffers with their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
