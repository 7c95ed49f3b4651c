"""The text-conditioned pipelines that people have, built tiny with random weights, saved and loaded:
equal to diffusers' own pipeline from the same latents, step by step. No published weights are
read here."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import D, rand
from pipelines import MADE, PROMPTS, read, saved

import invdiff
from invdiff.guidance.cfg import CFG
from invdiff.transitions import DDIM

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, SCALE = 4, 3.0
LATENT = [name for name in MADE if name != "deepfloyd"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made: dict[str, Path] = {}

    class Made(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            self[name] = saved(name, tmp_path_factory.mktemp(name))
            return self[name]

    return Made(made)


def theirs(pipeline: Any, z: torch.Tensor, size: tuple[int, int], **more: Any) -> Any:
    """(the states after each step, the images) of diffusers."""
    states = []

    def seen(_: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        states.append(given["latents"].clone())
        return given

    takes = inspect.signature(type(pipeline).__call__).parameters
    given: dict[str, Any] = {
        "num_inference_steps": STEPS,
        "height": size[0],
        "width": size[1],
        "output_type": "pt",
        "latents": z,
        "use_resolution_binning": False,
        "callback_on_step_end": seen,
    } | more
    if "callback_on_step_end" not in takes:
        given |= {"callback": lambda i, t, z: states.append(z.clone()), "callback_steps": 1}
    images = pipeline(PROMPTS, **{k: v for k, v in given.items() if k in takes}).images
    return states, images


def ours(folder: Path, z: torch.Tensor, size: tuple[int, int], w: float, **options: Any) -> Any:
    denoiser = invdiff.load_model(folder, dtype=D, **options)
    states = []
    method = CFG(negative=denoiser.negative_of(), w=w) if w != 1 else "none"
    images = invdiff.generate(
        denoiser,
        (2, 3, *size),
        method,
        x_T=z,
        transition=DDIM(),
        steps=STEPS,
        dtype=D,
        callback=lambda progress: states.append(progress.x),
        **denoiser.conditions_of(PROMPTS),
    ).x
    return states, images


@pytest.mark.parametrize("name", LATENT)
def test_it_is_diffusers_pipeline_step_by_step(folders: dict[str, Path], name: str) -> None:
    folder, size = folders[name], (32, 64) if name == "sana" else (16, 24)  # it asks for 32s
    z = rand(2, 4, *(n // 2 for n in size))
    pipeline = read(folder)
    guided = name == "flux"
    given = {} if guided else {"guidance_scale": SCALE}
    expected, images = theirs(pipeline, packed(pipeline, z), size, **given)
    states, made = ours(folder, z, size, 1.0 if guided else SCALE)
    assert len(expected) == STEPS
    for state, other in zip(states, expected, strict=True):
        torch.testing.assert_close(state, unpacked(pipeline, other, size).to(D), atol=3e-5, rtol=0)
    torch.testing.assert_close(made, images.to(D), atol=3e-5, rtol=0)
    assert float(((images > 0) & (images < 1)).double().mean()) > 0.3
    other = ours(folder, z, size, 2.0)[1]
    assert float((other - made).abs().max()) > 1e-4, "guidance makes no difference"


def packed(pipeline: Any, z: torch.Tensor) -> torch.Tensor:
    return pipeline._pack_latents(z, *z.shape) if hasattr(pipeline, "_pack_latents") else z


def unpacked(pipeline: Any, z: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if not hasattr(pipeline, "_unpack_latents"):
        return z
    return pipeline._unpack_latents(z, *size, pipeline.vae_scale_factor)
