"""Latent pipelines of diffusers, built here with random weights and a vocabulary of ten words,
saved and loaded: equal to diffusers."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    LDMPipeline,
    StableDiffusionPipeline,
    UNet2DModel,
    VQModel,
)
from oracles import D, built, rand
from pipelines import CODER, LENGTH, PROMPTS, UNET, ddim, saved
from torch import Tensor

import invdiff
from invdiff import schedules
from invdiff.commands.main import main
from invdiff.guidance.cfg import CFG
from invdiff.images import read_image, write_image
from invdiff.itineraries import LateStart
from invdiff.loading.autoencoder import from_diffusers
from invdiff.network import Denoiser
from invdiff.noise import NoiseSource, seed_of
from invdiff.solving import generate, invert, solve
from invdiff.transitions import DDIM

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (2, 3, 16, 16)
SCHEDULER = ddim()


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-image pipeline in the layout of Stable Diffusion."""
    return saved("sd", tmp_path_factory.mktemp("sd"))


@pytest.fixture
def copied(text_folder: Path, tmp_path: Path) -> Path:
    """The same folder, to be spoilt."""
    return shutil.copytree(text_folder, tmp_path / "copied")


def load(folder: Path, **options: Any) -> Denoiser:
    return invdiff.load_model(folder, dtype=D, **options)


def images(seed: int = 0) -> Tensor:
    return torch.rand(SHAPE, dtype=D, generator=torch.Generator().manual_seed(seed))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def assert_same(ours: Tensor, theirs: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs.to(ours), atol=atol, rtol=0)
    assert float(((theirs > 0) & (theirs < 1)).double().mean()) > 0.3, (
        "clipped images hide differences"
    )
    assert float(theirs.std()) > 0.02


# Equal to diffusers' pipelines --------------------------------------------------------------------


@pytest.mark.parametrize("negative", [None, "blurry dog"])
def test_stable_diffusion_is_the_pipeline(text_folder: Path, negative: str | None) -> None:
    z = rand(2, 4, 8, 8)
    pipeline = StableDiffusionPipeline.from_pretrained(text_folder, torch_dtype=D)
    pipeline.set_progress_bar_config(disable=True)
    given = None if negative is None else [negative] * 2
    theirs = pipeline(
        PROMPTS,
        negative_prompt=given,
        guidance_scale=3.0,
        num_inference_steps=8,
        latents=z,
        height=16,
        width=16,
        output_type="pt",
    ).images

    denoiser = load(text_folder)
    method = CFG(negative=denoiser.conditions_of(negative or ""), w=3.0)
    ours = generate(
        denoiser,
        SHAPE,
        method,
        x_T=z,
        transition=DDIM(),
        steps=8,
        dtype=D,
        **denoiser.conditions_of(PROMPTS),
    ).x
    assert_same(ours, theirs)
    for against, prompt in ((negative or "", "moon"), ("moon", "the dog")):
        other = CFG(negative=denoiser.conditions_of(against), w=3.0)
        made = generate(
            denoiser,
            SHAPE,
            other,
            x_T=z,
            transition=DDIM(),
            steps=8,
            dtype=D,
            **denoiser.conditions_of(prompt, 2),
        ).x
        assert float((made - ours)[1].abs().mean()) > 1e-3, "the prompt makes no difference"


@pytest.mark.parametrize("dim", [None, 4])
def test_unconditional_latent_diffusion_is_the_pipeline(tmp_path: Path, dim: int | None) -> None:
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    vqvae = built(
        VQModel,
        **CODER | {"latent_channels": 4 if dim is None else 6},
        num_vq_embeddings=64,
        vq_embed_dim=dim,
    )
    LDMPipeline(vqvae, built(UNet2DModel, **UNET, **blocks), SCHEDULER).save_pretrained(tmp_path)
    pipeline = LDMPipeline.from_pretrained(tmp_path, torch_dtype=D)
    pipeline.set_progress_bar_config(disable=True)
    drawn = torch.randn(
        2, 4, 8, 8, generator=torch.Generator().manual_seed(5)
    )  # the pipeline draws in float32
    pipeline.unet.register_forward_pre_hook(lambda net, args: (args[0].double(), *args[1:]))
    theirs = pipeline(
        2, torch.Generator().manual_seed(5), num_inference_steps=8, output_type="np"
    ).images

    denoiser = load(tmp_path)
    assert (denoiser.channels, denoiser.image_size, denoiser.data_range) == (3, 16, None)
    ours = generate(denoiser, SHAPE, x_T=drawn.double(), transition=DDIM(), steps=8, dtype=D).x
    assert_same(ours, torch.as_tensor(theirs).permute(0, 3, 1, 2))


@pytest.mark.parametrize("prompts", [PROMPTS, [""], ["the moon " * 30, "on"]])
def test_conditions_are_encode_prompt_s(
    text_folder: Path, prompts: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(text_folder)
    theirs, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    ours = load(text_folder).conditions_of(prompts)
    assert list(ours) == ["encoder_hidden_states"]
    torch.testing.assert_close(ours["encoder_hidden_states"], theirs.float(), atol=2e-6, rtol=0)
    cut = [str(w.message) for w in recwarn if "was truncated" in str(w.message)]
    assert len(cut) == sum(len(p) > 100 for p in prompts)


def test_prompts_are_one_for_all_or_one_for_each(text_folder: Path) -> None:
    denoiser = load(text_folder)
    one, each = denoiser.conditions_of("a cat", 3), denoiser.conditions_of(["a cat", "", "a cat"])
    assert (
        one["encoder_hidden_states"].shape == each["encoder_hidden_states"].shape == (3, LENGTH, 8)
    )
    torch.testing.assert_close(one["encoder_hidden_states"][2], each["encoder_hidden_states"][2])
    with pytest.raises(ValueError, match="one for each of the 3 images, got 2"):
        denoiser.conditions_of(["a", "cat"], 3)
    with pytest.raises(TypeError, match="a prompt is text"):
        denoiser.conditions_of([1, 2])  # type: ignore[list-item]
    with pytest.raises(
        ValueError,
        match=r"cannot run without encoder_hidden_states.*denoiser.conditions_of\(prompt\)",
    ):
        generate(denoiser, SHAPE, steps=2)
    assert denoiser.read_as(predicts="v").conditions_of("a cat").keys() == one.keys()


# Autoencoders -------------------------------------------------------------------------------------


TINY = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
}


@pytest.mark.parametrize(
    ("cls", "config", "shift", "scale"),
    [
        (AutoencoderKL, CODER | {"scaling_factor": 0.4}, 0.0, 0.4),
        (AutoencoderKL, CODER | {"scaling_factor": 1.5, "shift_factor": 0.06}, 0.06, 1.5),
        (
            AutoencoderKL,
            CODER
            | {"scaling_factor": 0.5, "latents_mean": [0, 1, 2, 3], "latents_std": [1, 2, 4, 8]},
            [0, 1, 2, 3],
            [0.5, 0.25, 0.125, 0.0625],
        ),
        (VQModel, CODER | {"scaling_factor": 0.7, "num_vq_embeddings": 16}, 0.0, 0.7),
        (AutoencoderTiny, TINY, 0.0, 1.0),
    ],
    ids=["kl", "kl-shift", "kl-per-channel", "vq", "tiny"],
)
def test_latents_are_shifted_and_scaled(
    cls: Any, config: dict[str, Any], shift: Any, scale: Any
) -> None:
    net = built(cls, **config)
    coder = from_diffusers(net)
    shift, scale = (torch.as_tensor(v, dtype=D).view(-1, 1, 1) for v in (shift, scale))
    x, found = 2 * images() - 1, net.encode(2 * images() - 1)
    latents = found.latent_dist.mode() if cls is AutoencoderKL else found.latents
    z = coder.encode(x)
    torch.testing.assert_close(z, (latents - shift) * scale)
    torch.testing.assert_close(coder.decode(z), net.decode(latents).sample)
    assert z.shape == coder.shape(SHAPE) and coder.factor == 2
    assert coder.encode(x.float()).dtype == torch.float32
    assert not net.training and not any(p.requires_grad for p in net.parameters())


def test_vq_codes_pass_gradients_straight_through() -> None:
    net = built(VQModel, **CODER, num_vq_embeddings=16)
    coder = from_diffusers(net)
    z = rand(1, 4, 8, 8).requires_grad_()
    w = rand(1, 3, 16, 16, seed=1)
    (grad,) = torch.autograd.grad((w * coder.decode(z)).sum(), z)
    latent = z.detach() / net.config.scaling_factor
    codes = net.quantize(latent)[0].requires_grad_()
    (expected,) = torch.autograd.grad((w * net.decoder(net.post_quant_conv(codes))).sum(), codes)
    torch.testing.assert_close(grad, expected / net.config.scaling_factor)
    assert grad.abs().max() > 0


def test_encoding_by_a_draw_uses_the_noise_of_each_image(text_folder: Path) -> None:
    x, start = images(), {"itinerary": LateStart(0.5), "transition": DDIM(), "steps": 4, "dtype": D}
    drawn, mode = load(text_folder, encode="sample"), load(text_folder)
    cond = mode.conditions_of("a cat", 2)
    state = torch.get_rng_state()
    both = generate(drawn, SHAPE, start=x, seed=3, image_ids=[4, 9], **start, **cond).x
    assert torch.equal(torch.get_rng_state(), state)
    again = {k: v[:1] for k, v in cond.items()}
    alone = generate(drawn, (1, *SHAPE[1:]), start=x[1:], seed=3, image_ids=[9], **start, **again).x
    torch.testing.assert_close(alone[0], both[1], atol=1e-9, rtol=0)
    by_mode = generate(mode, SHAPE, start=x, seed=3, image_ids=[4, 9], **start, **cond).x
    assert float((by_mode - both).abs().max()) > 1e-4

    assert drawn.autoencoder is not None and isinstance(drawn.autoencoder.net, AutoencoderKL)
    vae = drawn.autoencoder.net
    posterior = vae.encode(2 * x - 1).latent_dist
    noise = NoiseSource([seed_of("encode", 3, k) for k in (4, 9)]).randn_like(posterior.mean)
    fixed = Denoiser(
        drawn.net,
        **drawn._options
        | {"autoencoder": _constant(drawn, (posterior.mean + posterior.std * noise) * 0.18215)},
    )
    torch.testing.assert_close(
        generate(fixed, SHAPE, start=x, seed=3, image_ids=[4, 9], **start, **cond).x,
        both,
        atol=1e-9,
        rtol=0,
    )
    torch.testing.assert_close(
        invert(drawn, x, steps=3, dtype=D, **cond), invert(mode, x, steps=3, dtype=D, **cond)
    )


def _constant(denoiser: Denoiser, z: Tensor) -> Any:
    """The autoencoder of a Denoiser, encoding everything to z."""
    from dataclasses import replace

    return replace(denoiser.autoencoder, encode=lambda x: z, posterior=None)  # type: ignore[type-var]


@pytest.mark.parametrize("decode", ["slices", "tiles"])
def test_decoding_in_pieces(text_folder: Path, decode: str) -> None:
    whole, pieces = load(text_folder).autoencoder, load(text_folder, decode=decode).autoencoder
    assert whole is not None and pieces is not None
    z = rand(2, 4, 8, 8)
    torch.testing.assert_close(pieces.decode(z), whole.decode(z))
    larger = pieces.decode(rand(1, 4, 20, 24))
    assert larger.shape == (1, 3, 40, 48)


def test_another_autoencoder_and_none(text_folder: Path, tmp_path: Path) -> None:
    small = built(AutoencoderTiny, **TINY)
    small.save_pretrained(tmp_path / "small")
    denoiser = load(text_folder, autoencoder=tmp_path / "small")
    assert denoiser.autoencoder is not None and isinstance(
        denoiser.autoencoder.net, AutoencoderTiny
    )
    assert "AutoencoderTiny, 4 channels" in denoiser.source["autoencoder"]
    mine = from_diffusers(small)
    assert load(text_folder, autoencoder=mine).autoencoder is mine
    for none in (False, None):
        latent = load(text_folder, autoencoder=none)
        assert (latent.autoencoder, latent.channels, latent.image_size, latent.data_range) == (
            None,
            4,
            8,
            None,
        )
        cond = latent.conditions_of("a cat", 2)
        assert generate(latent, (2, 4, 8, 8), steps=2, **cond).x.shape == (2, 4, 8, 8)


# Restoration through the decoder ------------------------------------------------------------------


def test_dps_through_the_decoder_is_its_update(text_folder: Path) -> None:
    denoiser = load(text_folder)
    measurement = invdiff.make_operator("inpaint", fraction=0.5).measure(images(), sigma=0.02)
    steps, zeta, w = 4, 0.4, 3.0
    given, null = denoiser.conditions_of(PROMPTS), denoiser.conditions_of("blurry")
    chain = [CFG(negative=null, w=w), invdiff.make_method("dps", zeta=zeta)]
    result = solve(
        measurement, denoiser, chain, transition=DDIM(), steps=steps, seed=3, dtype=D, **given
    )

    pipeline = StableDiffusionPipeline.from_pretrained(text_folder, torch_dtype=D)
    scheduler, vae = pipeline.scheduler, pipeline.vae.requires_grad_(False)
    scheduler.set_timesteps(steps)
    text, empty = pipeline.encode_prompt(PROMPTS, "cpu", 1, True, ["blurry"] * 2)
    mask = measurement.operator.state["mask"].to(D)
    y = 2 * measurement.y - mask
    bars = [
        *(scheduler.alphas_cumprod[t].double() for t in scheduler.timesteps),
        torch.ones((), dtype=D),
    ]
    first = NoiseSource([seed_of("sampling", 3, k, 0) for k in range(2)]).randn_like(
        torch.empty(2, 4, 8, 8, dtype=D)
    )
    z = (1 - bars[0]).sqrt() * first
    for t, now, after in zip(scheduler.timesteps, bars[:-1], bars[1:], strict=True):
        z = z.requires_grad_()
        cond, uncond = (
            pipeline.unet(z, t, encoder_hidden_states=c.expand(2, -1, -1)).sample
            for c in (text, empty)
        )
        eps = uncond + w * (cond - uncond)
        z0 = (z - (1 - now).sqrt() * eps) / now.sqrt()
        norm = (
            (y - mask * vae.decode(z0 / vae.config.scaling_factor).sample)
            .flatten(1)
            .norm(dim=1)
            .sum()
        )
        (grad,) = torch.autograd.grad(norm, z)
        z = (after.sqrt() * z0 + (1 - after).sqrt() * eps - zeta * grad).detach()
    expected = (vae.decode(z / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    assert_same(result.x, expected, atol=2e-5)
    assert (result.nfe, result.nbe) == (2 * steps, 2 * steps)
    unguided = solve(
        measurement, denoiser, "none", transition=DDIM(), steps=steps, seed=3, dtype=D, **given
    )
    assert float((unguided.x - result.x).abs().mean()) > 1e-4


def test_gradient_checkpointing_reaches_the_decoder(text_folder: Path) -> None:
    measurement = invdiff.make_operator("inpaint").measure(images(), sigma=0.02)
    plain, thrifty = load(text_folder), load(text_folder, gradient_checkpointing=True)
    assert thrifty.autoencoder is not None and thrifty.autoencoder.net.is_gradient_checkpointing  # type: ignore[union-attr]
    cond = plain.conditions_of(PROMPTS)
    a, b = (solve(measurement, d, "dps", steps=2, dtype=D, **cond).x for d in (plain, thrifty))
    torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_keep_float32_states(text_folder: Path, dtype: torch.dtype) -> None:
    denoiser = invdiff.load_model(text_folder, dtype=dtype).to("cpu")
    measurement = invdiff.make_operator("sr", factor=2).measure(images().float(), sigma=0.02)
    x = solve(measurement, denoiser, "dps", steps=2, **denoiser.conditions_of(PROMPTS)).x
    assert x.dtype == torch.float32 and x.shape == SHAPE


# On the command line ------------------------------------------------------------------------------


def test_solve_with_prompts(
    text_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Two images as one batch are what each is by itself."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in "ab":
        write_image(Path(f"in/{name}.png"), torch.rand(3, 32, 32))
    arguments = ["--model", str(text_folder), "--input", "in", "--operator", "sr", "--quiet"]
    arguments += ["--method", "cfg", "--method", "dps", "--prompt", "a cat"]
    arguments += ["--negative-prompt", "blurry", "--steps", "2", "--output"]
    assert main(["solve", *arguments, "out"]) == 0
    assert "Loading" not in capfd.readouterr().err
    record = json.loads(Path("out/a/result.json").read_text())
    assert record["config"]["prompt"] == "a cat"
    assert record["config"]["negative_prompt"] == "blurry"
    assert (record["nfe"], record["nbe"]) == (4, 4)
    assert Path("out/a/comparison.png").is_file()
    assert main(["solve", *arguments, "alone", "--batch-size", "1"]) == 0
    for name in "ab":
        one, two = (read_image(Path(o) / name / "restored.png") for o in ("out", "alone"))
        assert float((one - two).abs().max()) < 1.5 / 255


def test_generate_with_prompts(
    text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [
        "generate",
        "--model",
        str(text_folder),
        "--num-samples",
        "2",
        "--steps",
        "3",
        "transition.name=ddim",
    ]

    def made(name: str, *more: str) -> dict[str, Any]:
        assert main([*common, "--output", str(tmp_path / name), "--quiet", *more]) == 0, (
            capsys.readouterr().err
        )
        return json.loads((tmp_path / name / "result.json").read_text())

    record = made("a", "--prompt", "a cat", "guidance.w=3")
    assert (
        record["nfe"] == 6
        and record["config"]["size"] == [16, 16]
        and record["config"]["prompt"] == "a cat"
    )
    negative = made("b", "--prompt", "a cat", "--negative-prompt", "blurry", "guidance.w=3")
    assert negative["nfe"] == 6
    pictures = [(tmp_path / name / "grid.png").read_bytes() for name in "ab"]
    assert pictures[0] != pictures[1]
    assert made("c", "--prompt", "a cat", "--method", "none")["nfe"] == 3
    assert main(["info", str(text_folder)]) == 0
    printed = capsys.readouterr().out
    assert (
        "AutoencoderKL, 4 channels, 1/2 of the side" in printed
        and "its own, for prompts" in printed
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"cannot run without encoder_hidden_states.*\(--prompt\)"),
        (["--negative-prompt", "a"], "there must be a --prompt"),
        (["--prompt", "a", "--method", "none", "--negative-prompt", "a"], "add --method cfg"),
        (["--prompt", "a", "--label", "1"], "give one of them"),
        (["--prompt", "a", "guidance.negative=3"], "use --negative-prompt"),
        (
            ["--prompt", "a", "--model", "digits32"],
            "digits32 has no text encoder, so it takes no prompt",
        ),
        (["--prompt", "a", "--size", "15"], "sides that divide by 2, got 15x15"),
        (
            ["model.autoencoder=false"],
            "works on 4 channels, which are no images but latents; give model.autoencoder=",
        ),
        (["--prompt", "a", "model.encode=median"], "'mode' or 'sample', got 'median'"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_what_prompts_cannot_do(
    text_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    given = [] if "--model" in arguments else ["--model", str(text_folder)]
    given = [
        "generate",
        "--output",
        str(tmp_path / "out"),
        "--steps",
        "2",
        "--num-samples",
        "1",
        *given,
        *arguments,
    ]
    assert main(given) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


# What is refused ----------------------------------------------------------------------------------


def drop_a_weight(folder: Path, part: str, name: str) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / part / name
    state = load_file(file)
    save_file(
        {k: v for k, v in state.items() if k != sorted(state)[0]}, file, metadata={"format": "pt"}
    )


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "vae_weight": (
        lambda f: drop_a_weight(f, "vae", "diffusion_pytorch_model.safetensors"),
        "vae has 1 missing keys, nothing was loaded",
    ),
    "vae_class": (
        lambda f: edit(f / "vae" / "config.json", _class_name="AutoencoderKLWan"),
        "holds a AutoencoderKLWan; .*autoencoder=False",
    ),
    "vae_elsewhere": (
        lambda f: (f / "vae").rename(f / "coder"),
        "not in one of the folders vae, vqvae, movq",
    ),
    "vae_missing": (
        lambda f: shutil.rmtree(f / "vae"),
        "names a vae, and that folder is not there",
    ),
    "vae_code": (lambda f: (f / "vae" / "net.py").write_text(""), "custom code"),
    "text_code": (lambda f: edit(f / "text_encoder" / "config.json", auto_map={}), "custom code"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_folders_are_not_loaded(copied: Path, case: str) -> None:
    spoil, message = SPOILT[case]
    spoil(copied)
    with pytest.raises(ValueError, match=message):
        load(copied)


TEXTLESS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weight": (
        lambda f: drop_a_weight(f, "text_encoder", "model.safetensors"),
        "text_encoder has 1 missing keys, nothing was loaded",
    ),
    "class": (
        lambda f: edit(f / "model_index.json", text_encoder=["transformers", "MyTextModel"]),
        "text_encoder/ is a transformers.MyTextModel, which the installed transformers .* does not",
    ),
    "pipeline": (
        lambda f: edit(f / "model_index.json", _class_name="DiTPipeline"),
        "is a DiTPipeline, whose prompts diffusers does not encode",
    ),
    "index": (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
    "tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "has no tokenizer/"),
    "pickle": (
        lambda f: (f / "text_encoder" / "model.safetensors").rename(
            f / "text_encoder" / "pytorch_model.bin"
        ),
        "pickles",
    ),
    "encoder": (lambda f: shutil.rmtree(f / "text_encoder"), "has no text_encoder/"),
}


@pytest.mark.parametrize("case", TEXTLESS)
def test_spoilt_text_encoders_are_refused_when_they_are_needed(copied: Path, case: str) -> None:
    spoil, message = TEXTLESS[case]
    spoil(copied)
    denoiser = load(copied)
    with pytest.raises(ValueError, match=message):
        denoiser.conditions_of("a cat")


def test_without_transformers_everything_but_prompts_works(
    text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    denoiser = load(text_folder)
    with pytest.raises(ValueError, match=r"pip install 'invdiff\[text\]'"):
        denoiser.conditions_of("a cat")
    assert (
        generate(denoiser, SHAPE, steps=2, encoder_hidden_states=torch.zeros(2, LENGTH, 8)).x.shape
        == SHAPE
    )


def test_half_precision_text_encoders(copied: Path) -> None:
    before = load(copied).conditions_of("a cat")["encoder_hidden_states"]
    from safetensors.torch import load_file, save_file

    file = copied / "text_encoder" / "model.safetensors"
    save_file(
        {k: v.half() for k, v in load_file(file).items()},
        file.with_name("model.fp16.safetensors"),
        metadata={"format": "pt"},
    )
    file.unlink()
    after = load(copied).conditions_of("a cat")["encoder_hidden_states"]
    assert after.dtype == torch.float32
    torch.testing.assert_close(after, before, atol=0.02, rtol=0)


def test_options_that_do_not_fit_are_refused(text_folder: Path) -> None:
    vq = built(VQModel, **CODER, num_vq_embeddings=16)
    for options, message in (
        ({"encode": "sample"}, "an AutoencoderKL; a VQModel encodes to one latent"),
        ({"decode": "tiles"}, "VQModel cannot decode in tiles"),
        ({"decode": "rows"}, "decode must be one of 'whole', 'slices', 'tiles', got 'rows'"),
    ):
        with pytest.raises(ValueError, match=message):
            from_diffusers(vq, **options)  # type: ignore[arg-type]
    three = from_diffusers(built(AutoencoderTiny, **TINY | {"latent_channels": 3}))
    with pytest.raises(
        ValueError, match="latents with 3 channels, but the network's states have 4"
    ):
        load(text_folder, autoencoder=three)
    for options in (
        {"autoencoder": False, "encode": "sample"},
        {"autoencoder": three, "decode": "tiles"},
    ):
        with pytest.raises(ValueError, match="encode and decode"):
            load(text_folder, **options)
    denoiser = load(text_folder)
    text = denoiser.conditions_of("a cat", 2)
    measurement = invdiff.make_operator("inpaint").measure(images(), sigma=0.02)
    with pytest.raises(ValueError, match="of a decoded latent is not one"):
        solve(measurement, denoiser, "repaint", steps=3, **text)
    assert isinstance(denoiser.schedule, schedules.Discrete)
