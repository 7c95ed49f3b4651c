"""The plain U-Net is diffusers' to the bit, and what ships loads without diffusers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.unets.unet_2d_blocks import DownBlock2D
from torch import Tensor

import invdiff
from invdiff.loading import load_folder
from invdiff.loading.time_classifier import TimeClassifier
from invdiff.loading.unet import from_config
from invdiff.network import Denoiser
from invdiff.zoo import FOLDER

SHIPPED = ("photo64", "digits32", "sr3x4", "palette_jpeg", "kernels16")


def drawn(denoiser: Denoiser, images: int, side: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Input, times and label of a network."""
    draw = torch.Generator().manual_seed(images)
    channels = (denoiser.channels or 0) + (denoiser.cond_channels or 0)
    x = torch.randn(images, channels, side, side, generator=draw)
    t = 999 * torch.rand(images, generator=draw)
    label = torch.arange(images) % 11
    return x, t, {} if denoiser.num_classes is None else {"label": label}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_network_is_that_of_diffusers_to_the_bit(name: str) -> None:
    ours, theirs = invdiff.load_model(name), load_folder(FOLDER / name, channels_last=True)
    assert isinstance(theirs.net.net, UNet2DModel)  # type: ignore[attr-defined]
    for images, side in ((1, 64), (3, 40), (65, 16)):
        x, t, cond = drawn(ours, images, side)
        for layout in (torch.contiguous_format, torch.channels_last):
            given = x.contiguous(memory_format=layout)
            with torch.no_grad():
                assert torch.equal(ours.net(given, t, **cond), theirs.net(given, t, **cond))
    x, t, cond = drawn(ours, 2, 32)
    x.requires_grad_()
    grads = [torch.autograd.grad(d.net(x, t, **cond).sum(), x)[0] for d in (ours, theirs)]
    assert torch.equal(*grads)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_network_is_read_as_its_folder_is(name: str) -> None:
    ours, theirs = invdiff.load_model(name), load_folder(FOLDER / name)
    assert ours.hash == theirs.hash, "results are recorded under the same hash"
    for fact in (
        *("predicts", "data_range", "clip", "learned_variance", "num_classes", "null_label"),
        *("cond_channels", "multiple", "channels", "image_size", "name", "time", "quantize"),
    ):
        assert getattr(ours, fact) == getattr(theirs, fact), fact
    one, other = ours.schedule, theirs.schedule
    assert vars(one).keys() <= vars(other).keys()
    times = torch.linspace(-1, 999, 77, dtype=torch.float64)
    for a, b in zip(one(times), other(times), strict=True):
        assert torch.equal(a, b)
    assert (one.spacing, one.offset) == (other.spacing, other.offset)  # type: ignore[attr-defined]
    assert (ours.classifier is None) == (theirs.classifier is None)
    for key in ("network", "weights", "scheduler", "variance"):
        assert ours.source[key] == theirs.source[key]


def test_options_of_a_shipped_network() -> None:
    assert invdiff.load_model("sr3x4").factor == 4
    assert invdiff.load_model("photo64", predicts="v").predicts == "v"
    assert invdiff.load_model("photo64", channels_last=False).channels_last is False


def test_gradient_checkpointing_changes_nothing() -> None:
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    plain, checkpointed = (
        torch.autograd.grad(
            invdiff.load_model("photo64", gradient_checkpointing=on).net(x, torch.ones(1)).sum(), x
        )[0]
        for on in (False, True)
    )
    torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, "no down_block_types"),
        ({"resnet_time_scale_shift": "scale_shift"}, "no resnet_time_scale_shift = 'scale_shift'"),
        ({"_class_name": "UNet2DConditionModel"}, "no _class_name"),
    ],
)
def test_a_network_of_another_kind_is_refused(changed: dict[str, Any], named: str) -> None:
    config = json.loads((FOLDER / "photo64" / "config.json").read_text())
    from_config(config)
    with pytest.raises(ValueError, match=named):
        from_config(config | changed)


def test_the_classifier_is_made_of_the_blocks_of_diffusers(tmp_path: Path) -> None:
    net = TimeClassifier(3, 5, (8, 16), 2, 4)
    x, t = torch.randn(2, 3, 12, 12), torch.tensor([3.0, 800.0])
    h, emb = net.conv_in(x), net.time_embedding(t)
    for block, (before, after, last) in zip(
        net.down_blocks, ((8, 8, False), (8, 16, True)), strict=True
    ):
        theirs = DownBlock2D(
            before, after, 32, num_layers=2, resnet_groups=4, add_downsample=not last
        )
        theirs.load_state_dict(block.state_dict())
        h, _ = theirs(h, emb)
    expected = net.head(torch.nn.functional.silu(net.norm_out(h)).mean(dim=(2, 3)))
    assert torch.equal(net(x, t), expected)
    net.save_pretrained(tmp_path)
    again = TimeClassifier.from_folder(tmp_path, net.config)
    assert torch.equal(again(x, t), expected)
    with pytest.raises(ValueError, match="cannot be read: .*num_clases"):
        TimeClassifier.from_folder(tmp_path, net.config | {"num_clases": 3})


def test_loading_what_ships_imports_nothing_heavy() -> None:
    """Of torch's 1200 modules and ours, a few dozen are added; diffusers alone brought 3600."""
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        f"import invdiff; [invdiff.load_model(name) for name in {SHIPPED!r}]\n"
        "print(*(set(sys.modules) - before))"
    )
    command = [sys.executable, "-c", code]
    added = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    heavy = {"diffusers", "torchvision", "scipy", "transformers", "deepinv", "huggingface_hub"}
    assert not heavy & {module.split(".")[0] for module in added}
    assert len(added) < 100
