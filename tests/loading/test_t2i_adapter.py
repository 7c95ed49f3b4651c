"""T2I-Adapters as diffusers runs them, tiny and with random weights; no published one is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from oracles import D, built, rand
from pipelines import CROSS, PROMPTS, UNET, read, saved
from torch import Tensor

import invdiff
from invdiff.transitions import DDIM

pytestmark = pytest.mark.usefixtures("one_thread")
ATTENDING = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
}
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sd": (ATTENDING, {"adapter_type": "full_adapter", "downscale_factor": 2}),
    "sdxl": (CROSS, {"adapter_type": "full_adapter_xl", "downscale_factor": 4}),
}


def adapter(place: Path, **options: Any) -> Any:
    made = built(diffusers.T2IAdapter, in_channels=3, channels=[8, 16], num_res_blocks=1, **options)
    made.save_pretrained(place)
    return made


@pytest.fixture(params=LAYOUTS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any, invdiff.Denoiser]:
    """(network, adapter, the two loaded)."""
    layout, options = LAYOUTS[request.param]
    net = built(diffusers.UNet2DConditionModel, **UNET, **layout, cross_attention_dim=6)
    net.save_pretrained(tmp_path)
    diffusers.DDPMScheduler().save_pretrained(tmp_path)
    made = adapter(tmp_path / "adapter", **options)
    return net, made, invdiff.load_model(tmp_path, controlnet=tmp_path / "adapter", dtype=D)


@pytest.mark.parametrize("scale", [0.7, torch.tensor([0.7, 0.2], dtype=D)], ids=["one", "each"])
def test_it_is_diffusers_own(both: tuple[Any, Any, invdiff.Denoiser], scale: Any) -> None:
    net, made, denoiser = both
    x, text, image = rand(2, 4, 8, 8), rand(2, 5, 6, seed=1), rand(2, 3, 16, 16, seed=2)

    def eps(**more: Any) -> Tensor:
        return denoiser(x, denoiser.schedule(300), encoder_hidden_states=text, **more).eps

    per_image = scale.view(-1, 1, 1, 1) if isinstance(scale, Tensor) else scale
    features = [per_image * feature for feature in made(image)]
    expected = net(x, 300, text, down_intrablock_additional_residuals=features).sample
    out = eps(control=image, control_scale=scale)
    torch.testing.assert_close(out, expected)
    without = net(x, 300, text).sample
    assert float((out - without).abs().max()) > 0.01
    torch.testing.assert_close(eps(control=image, control_scale=0.0), without)
    assert denoiser.source["network"] == "UNet2DConditionModel with a T2I-Adapter"
    with torch.enable_grad():  # the U-Net adds the features in place
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(eps(control=image).square().sum(), x)
    assert bool(gradient.isfinite().all()) and float(gradient.abs().max()) > 0


def test_it_is_diffusers_pipeline(tmp_path: Path) -> None:
    folder = saved("sd", tmp_path)
    made = adapter(tmp_path / "adapter", **LAYOUTS["sdxl"][1])
    parts = {k: v for k, v in read(folder).components.items() if k != "image_encoder"}
    pipeline = diffusers.StableDiffusionAdapterPipeline(
        **parts, adapter=made, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    z, image = rand(2, 4, 8, 8, seed=3), rand(2, 3, 16, 16, seed=4).sigmoid()
    theirs = pipeline(
        PROMPTS,
        image=image,
        height=16,
        width=16,
        num_inference_steps=3,
        guidance_scale=1.0,
        adapter_conditioning_scale=0.8,
        latents=z,
        output_type="np",
    ).images
    denoiser = invdiff.load_model(folder, controlnet=tmp_path / "adapter", dtype=D)
    ours = invdiff.generate(
        denoiser,
        (2, 3, 16, 16),
        steps=3,
        transition=DDIM(),
        x_T=z,
        dtype=D,
        control=image,
        control_scale=0.8,
        **denoiser.conditions_of(PROMPTS),
    ).x
    expected = torch.from_numpy(theirs).movedim(-1, 1)
    torch.testing.assert_close(ours, expected.to(D), atol=3e-5, rtol=0)


def test_what_does_not_fit_is_refused(
    both: tuple[Any, Any, invdiff.Denoiser], tmp_path: Path
) -> None:
    x, level = rand(1, 4, 8, 8), both[2].schedule(300)
    with pytest.raises(ValueError, match=r"T2I-Adapter is conditioned on.*\(1, 3, 16, 16\)"):
        both[2](x, level, encoder_hidden_states=rand(1, 5, 6), control=rand(1, 3, 8, 8))
    other = built(diffusers.T2IAdapter, in_channels=3, channels=[8, 24], num_res_blocks=1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="T2I-Adapter belongs to another network"):
        invdiff.load_model(tmp_path, controlnet=tmp_path / "other")
