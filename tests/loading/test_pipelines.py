"""The text-conditioned pipelines that people have, built tiny with random weights, saved and
loaded: equal to diffusers' own pipeline from the same latents, step by step. No published weights
are read here."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import D, rand
from pipelines import ADAPTED, CONTROLS, LAYERS, MADE, OTHERS, PROMPTS, each, read

import invdiff
from invdiff.commands.main import main
from invdiff.guidance.cfg import CFG
from invdiff.images import write_image
from invdiff.transitions import DDIM

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, SCALE = 4, 3.0
LATENT = [name for name in MADE if name != "deepfloyd"]


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


def test_deepfloyd_is_diffusers_pipeline_step_by_step(folders: dict[str, Path]) -> None:
    """Its pipeline takes no latents, but draws them from a generator."""
    expected: list[torch.Tensor] = []
    read(folders["deepfloyd"])(
        PROMPTS,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        height=16,
        width=16,
        generator=torch.Generator().manual_seed(4),
        output_type="pt",
        callback=lambda i, t, x: expected.append(x.clone()),
    )
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(4), dtype=D)
    states, _ = ours(folders["deepfloyd"], x, (16, 16), SCALE, clip=False)
    for state, other in zip(states, expected, strict=True):
        torch.testing.assert_close(state / other.std(), other / other.std(), atol=1e-5, rtol=0)


RESTORING = {"deepfloyd": "dps"}  # no autoencoder, so the latent method has nothing to do


@pytest.mark.parametrize("name", each(MADE, ["sdxl", "flux"]))
def test_it_restores_on_the_command_line(
    folders: dict[str, Path], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "photo.png", torch.rand(3, 16, 16))
    given = f"solve --model {folders[name]} --input {tmp_path / 'photo.png'} --operator inpaint"
    given += f" --method cfg --method {RESTORING.get(name, 'psld')} --steps 2 --quiet --no-check"
    given += f" --output {tmp_path / 'out'} --prompt cat --negative-prompt dog guidance.cfg.w=2"
    assert main(given.split()) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (record["nfe"], record["nbe"]) == (4, 4)


TABLE = Path(__file__).parents[2] / "docs" / "loading-your-checkpoint.md"


def test_the_table_of_the_documentation_is_what_is_tested(folders: dict[str, Path]) -> None:
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in TABLE.read_text().splitlines()
        if line.startswith("| `") and "Pipeline` |" in line
    ]
    expected = []
    for name in [*MADE, *OTHERS]:
        index = json.loads((folders[name] / "model_index.json").read_text())
        more = [name in tested for tested in (LAYERS, ["sd", *CONTROLS], ADAPTED)]
        cells = [True, True, True, *more, True]
        expected.append([index["_class_name"], *("yes" if cell else "no" for cell in cells)])
    assert [row[:8] for row in rows] == expected


def test_a_guided_network_is_sampled_without_cfg(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"generate --model {folders['flux']} --prompt cat --size 16 --steps 3 --num-samples 1"
    for more, nfe in (("", 3), (" --negative-prompt dog", 6)):
        place = tmp_path / str(nfe)
        assert main(f"{given} --quiet --output {place}{more}".split()) == 0, capsys.readouterr()
        assert json.loads((place / "result.json").read_text())["nfe"] == nfe


def test_memory_is_saved(folders: dict[str, Path]) -> None:
    plain = invdiff.load_model(folders["flux"], guidance_scale=1.5)
    small = invdiff.load_model(
        folders["flux"], storage="bfloat16", offload=True, prompt_length=24, guidance_scale=1.5
    )
    cond = small.conditions_of(PROMPTS)
    assert cond["encoder_hidden_states"].shape == (2, 24, 16)
    assert small.text._pipeline is None  # type: ignore[union-attr]
    assert {p.dtype for p in small.net.parameters()} == {torch.bfloat16}  # type: ignore[attr-defined]
    z = rand(2, 4, 8, 8).float()
    run: dict[str, Any] = {"x_T": z, "steps": 2, "transition": DDIM()}
    made = invdiff.generate(small, (2, 3, 16, 16), **run, **cond).x
    full = invdiff.generate(plain, (2, 3, 16, 16), **run, **cond).x
    assert made.dtype == torch.float32 and 0 < float((made - full).abs().mean()) < 0.02
    with pytest.raises(ValueError, match="'bfloat16' or 'float16', got 'int4'"):
        invdiff.load_model(folders["flux"], storage="int4")
    with pytest.raises(ValueError, match="guidance_scale=2.0 is of networks that were distilled"):
        invdiff.load_model(folders["sd"], guidance_scale=2.0)
    with pytest.raises(ValueError, match="prompts of one length only"):
        invdiff.load_model(folders["sd"], prompt_length=4).conditions_of("a cat")


def test_the_shift_of_a_flow_follows_from_the_size(folders: dict[str, Path]) -> None:
    schedule = invdiff.load_model(folders["flux"]).schedule
    for size, sequence in ((8, 16), (64, 1024)):
        mu = 0.5 + (1.15 - 0.5) * (sequence - 256) / (4096 - 256)
        t = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=D)
        expected = torch.exp(torch.tensor(mu)) / (torch.exp(torch.tensor(mu)) + 1 / t - 1)
        sized = schedule.sized((1, 4, size, size))
        torch.testing.assert_close(sized.times(4), expected.to(D), atol=1e-6, rtol=0)
    assert invdiff.schedules.linear().sized((1, 3, 8, 8)).T == 1000  # type: ignore[attr-defined]
