"""Pipelines whose call does more than encode a prompt (LDM's BERT, unCLIP, Kandinsky, DeepFloyd's
second stage), tiny with random weights: equal to diffusers' own from the same states. No published
weights are read here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import D, rand
from pipelines import OTHERS, PRIORS, PROMPTS, each, read, unclip
from safetensors.torch import load_file, save_file
from torch import Tensor

import invdiff
from invdiff.commands.main import main
from invdiff.guidance.cfg import CFG
from invdiff.images import write_image
from invdiff.transitions import DDIM

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS, W = 4, 3.0


def watched(scheduler: Any) -> list[tuple[int, Tensor, Tensor, Tensor]]:
    """(time, state, what the network predicted, next state) of each step that it will make."""
    steps, step = [], scheduler.step

    def seen(out: Tensor, t: Any, x: Tensor, **given: Any) -> Any:
        made = step(out, t, x, **given)
        steps.append((int(t), x, out, made[0].clone()))
        return made

    scheduler.step = seen
    return steps


def sampled(
    denoiser: invdiff.Denoiser, z: Tensor, size: int, negative: Any, **cond: Any
) -> tuple[list[Tensor], Tensor]:
    states: list[Tensor] = []
    made = invdiff.generate(
        denoiser,
        (2, 3, size, size),
        CFG(negative=negative, w=W),
        x_T=z,
        transition=DDIM(),
        steps=STEPS,
        dtype=D,
        callback=lambda progress: states.append(progress.x),
        **cond,
    )
    return states, made.x


def same(states: list[Tensor], steps: list[Any]) -> None:
    assert len(steps) == len(states) == STEPS
    for state, step in zip(states, steps, strict=True):
        torch.testing.assert_close(state, step[3].to(D), atol=3e-5, rtol=0)


def test_ldm_with_its_bert(folders: dict[str, Path]) -> None:
    pipeline = read(folders["ldm"])
    steps, z = watched(pipeline.scheduler), rand(2, 4, 8, 8)
    given = {"num_inference_steps": STEPS, "guidance_scale": W, "output_type": "pt"}
    # Its call takes the latents' sides for an eighth of the image's, whatever its autoencoder does.
    images = pipeline(PROMPTS, height=64, width=64, latents=z, **given).images
    denoiser = invdiff.load_model(folders["ldm"], dtype=D)
    cond = denoiser.conditions_of(PROMPTS)
    states, made = sampled(denoiser, z, 16, denoiser.negative_of(), **cond)
    same(states, steps)
    torch.testing.assert_close(made, images.to(D), atol=3e-5, rtol=0)
    alone = denoiser.conditions_of(PROMPTS[1])["encoder_hidden_states"]
    torch.testing.assert_close(cond["encoder_hidden_states"][1:], alone)
    assert float((cond["encoder_hidden_states"][:1] - alone).abs().max()) > 0.01
    other = sampled(denoiser, z, 16, denoiser.negative_of("blurry"), **cond)[1]
    assert float((other - made).abs().max()) > 1e-4


def test_kandinsky_from_embeddings(folders: dict[str, Path]) -> None:
    pipeline = read(folders["kandinsky2"])
    steps, z = watched(pipeline.scheduler), rand(2, 4, 8, 8)
    wanted, other = rand(2, 8, seed=1), rand(2, 8, seed=2)
    given = {"height": 16, "width": 16, "num_inference_steps": STEPS, "guidance_scale": W}
    given |= {"latents": z, "output_type": "np"}
    images = pipeline(image_embeds=wanted, negative_image_embeds=other, **given).images
    denoiser = invdiff.load_model(folders["kandinsky2"], dtype=D)
    states, made = sampled(denoiser, z, 16, {"image_embeds": other}, image_embeds=wanted)
    same(states, steps)
    expected = torch.from_numpy(images).movedim(-1, 1).to(D)
    torch.testing.assert_close(made, expected, atol=3e-5, rtol=0)
    with pytest.raises(ValueError, match="go through a pipeline of their own.*prior=FOLDER"):
        denoiser.conditions_of("a cat")


@pytest.mark.parametrize("name", ["kandinsky1", "kandinsky2"])
def test_kandinsky_from_prompts_by_its_prior(folders: dict[str, Path], name: str) -> None:
    prior = read(folders[f"{name}-prior"], torch.float32)
    embedded = [prior(p, generator=torch.Generator().manual_seed(0)) for p in (*PROMPTS, "")]
    pipeline = read(folders[name], torch.float32)
    steps, z = watched(pipeline.scheduler), rand(2, 4, 8, 8).float()
    given = {"prompt": PROMPTS} if name == "kandinsky1" else {}
    pipeline(
        **given,
        image_embeds=torch.cat([e.image_embeds for e in embedded[:2]]),
        negative_image_embeds=torch.cat([embedded[2].negative_image_embeds] * 2),
        height=16,
        width=16,
        num_inference_steps=STEPS,
        guidance_scale=W,
        latents=z,
        output_type="np",
    )
    denoiser = invdiff.load_model(folders[name], prior=folders[f"{name}-prior"])
    cond = denoiser.conditions_of(PROMPTS)
    states, _ = sampled(denoiser, z.to(D), 16, denoiser.negative_of(), **cond)
    same(states, steps)
    assert all(float((v[0] - v[1]).abs().max()) > 1e-3 for v in cond.values())
    x = torch.rand(2, 3, 16, 16)
    measurement = invdiff.make_operator("inpaint").measure(x, sigma=0.02)
    result = invdiff.solve(measurement, denoiser, "psld", steps=2, **cond)
    assert (result.nfe, result.nbe) == (2, 2)


def test_unclip_decoder_with_its_prior(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its sampler draws, so what is compared is the prediction at each of its states. The installed
    diffusers has the class and does not read its folder any more, so theirs is made again."""
    pipeline = unclip(tmp_path).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    steps = watched(pipeline.decoder_scheduler)
    pipeline(
        PROMPTS[:1],
        prior_num_inference_steps=25,
        decoder_num_inference_steps=STEPS,
        super_res_num_inference_steps=2,
        decoder_guidance_scale=W,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    )
    denoiser = invdiff.load_model(folders["unclip"], clip=False)
    cond, against = denoiser.conditions_of(PROMPTS[0]), denoiser.negative_of()
    assert set(cond) == {"encoder_hidden_states", "class_labels", "attention_mask"}
    assert denoiser.schedule.times(STEPS).round().tolist() == [step[0] for step in steps]
    assert denoiser.learned_variance and denoiser.image_size == 8
    for t, x, out, _ in steps:
        with torch.no_grad():
            yes, no = (denoiser(x, denoiser.schedule(t), **given) for given in (cond, against))
        torch.testing.assert_close(
            no.eps + W * (yes.eps - no.eps), out[:, :3], atol=3e-5, rtol=1e-4
        )
        assert yes.variance_fraction is not None
        torch.testing.assert_close(
            yes.variance_fraction, (out[:, 3:] + 1) / 2, atol=1e-5, rtol=1e-4
        )
        assert float((yes.eps - no.eps).abs().max()) > 1e-4


def test_deepfloyds_second_stage(folders: dict[str, Path]) -> None:
    pipeline = read(folders["deepfloyd-larger"])
    steps, small = watched(pipeline.scheduler), 2 * rand(2, 3, 8, 8, seed=5).sigmoid() - 1
    pipeline(
        PROMPTS,
        image=small,
        height=16,
        width=16,
        num_inference_steps=STEPS,
        guidance_scale=W,
        noise_level=250,
        generator=torch.Generator().manual_seed(4),
        output_type="pt",
    )
    # It draws its state first and then the noise of the image.
    draws = torch.Generator().manual_seed(4)
    x, noise = (torch.randn(2, 3, 16, 16, generator=draws, dtype=D) for _ in range(2))
    level = invdiff.schedules.cosine(1000)(250)
    image = F.interpolate(small, (16, 16), mode="bilinear", align_corners=True)
    cond = level.alpha * image + level.sigma * noise
    denoiser = invdiff.load_model(folders["deepfloyd-larger"], noise_level=250, dtype=D, clip=False)
    given = denoiser.conditions_of(PROMPTS) | {"cond": cond}
    states, made = sampled(denoiser, x, 16, denoiser.negative_of(), **given)
    scale = [step[3].std() for step in steps]
    for state, step, std in zip(states, steps, scale, strict=True):
        torch.testing.assert_close(state / std, step[3].to(D) / std, atol=1e-5, rtol=0)
    clean = invdiff.load_model(folders["deepfloyd-larger"], dtype=D, clip=False)
    other = sampled(clean, x, 16, denoiser.negative_of(), **given)[1]
    assert float((other - made).abs().max()) > 1e-3, "the noise level changes nothing"
    told = given | {"class_labels": torch.full((2,), 250.0, dtype=D)}
    torch.testing.assert_close(sampled(clean, x, 16, denoiser.negative_of(), **told)[1], made)
    with pytest.raises(ValueError, match="noise_level=250 is of networks"):
        invdiff.load_model(folders["ldm"], noise_level=250)


RESTORING = {"deepfloyd-larger": "sr3", "unclip": "dps"}  # the others work on latents


@pytest.mark.parametrize("name", each(OTHERS, ["deepfloyd-larger"]))
def test_it_restores_on_the_command_line(
    folders: dict[str, Path], tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "photo.png", torch.rand(3, 16, 16))
    given = f"solve --model {folders[name]} --input {tmp_path / 'photo.png'} --operator sr"
    given += f" --method cfg --method {RESTORING.get(name, 'psld')} --steps 2 --quiet --no-check"
    given += f" --output {tmp_path / 'out'} --prompt cat --negative-prompt dog guidance.cfg.w=2"
    given += " operator.factor=2"
    if f"{name}-prior" in PRIORS:
        given += f" model.prior={folders[f'{name}-prior']}"
    assert main(given.split()) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (record["nfe"], record["nbe"]) == (4, 0 if name in RESTORING and "sr3" in given else 4)


def test_a_pipeline_that_diffusers_has_not(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["sd"], tmp_path / "glide")
    index = tmp_path / "glide" / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "GlidePipeline"))
    with pytest.raises(ValueError, match=r"is a GlidePipeline, which the installed diffusers \d"):
        invdiff.load_model(tmp_path / "glide").conditions_of("a cat")


def test_what_does_not_fit_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="prior= is of KandinskyPipeline and"):
        invdiff.load_model(folders["ldm"], prior=folders["kandinsky2-prior"])
    with pytest.raises(ValueError, match="takes no words and no length"):
        invdiff.load_model(folders["ldm"], prompt_length=8)


def test_what_encodes_is_dropped(folders: dict[str, Path]) -> None:
    kept, dropped = (invdiff.load_model(folders["ldm"], offload=o) for o in (False, True))
    for denoiser in (kept, dropped):
        denoiser.conditions_of("a cat")
        denoiser.negative_of()
    assert len(kept.text._pipelines) == 1  # type: ignore[union-attr]
    assert dropped.text._pipelines == []  # type: ignore[union-attr]
    one, other = (d.conditions_of("a cat")["encoder_hidden_states"] for d in (kept, dropped))
    assert torch.equal(one, other)


def test_an_incomplete_encoder_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, part in (("ldm", "bert"), ("unclip", "text_proj"), ("unclip", "prior")):
        place = tmp_path / f"{name}-{part}"
        shutil.copytree(folders[name], place)
        (file,) = (place / part).glob("*.safetensors")
        held = load_file(file)
        del held[sorted(held)[0]]
        save_file(held, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="1 missing keys, nothing was"):
            invdiff.load_model(place).conditions_of("a cat")
