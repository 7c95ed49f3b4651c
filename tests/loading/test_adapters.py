"""LoRA, textual inversions and ControlNets on the pipelines of tests/pipelines.py: equal to
diffusers' own pipeline with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from oracles import D, built, rand
from pipelines import CONTROLS, CROSS, LAYERS, PROMPTS, UNET, each, read
from safetensors.torch import save_file
from torch import Tensor

import invdiff
from invdiff.guidance.cfg import CFG
from invdiff.transitions import DDIM

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, STEPS = (2, 3, 32, 32), 3


def made(denoiser: Any, **more: Any) -> Tensor:
    z = rand(2, *denoiser.state_shape(SHAPE)[1:], seed=3)
    method: Any = "none" if denoiser.facts.guided else CFG(negative=denoiser.negative_of(), w=3.0)
    cond = denoiser.conditions_of(PROMPTS) | more
    return invdiff.generate(
        denoiser, SHAPE, method, x_T=z, transition=DDIM(), steps=STEPS, dtype=D, **cond
    ).x


def theirs(pipeline: Any, **more: Any) -> Tensor:
    z = rand(2, 4, 16, 16, seed=3)
    z = pipeline._pack_latents(z, *z.shape) if hasattr(pipeline, "_pack_latents") else z
    given: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "pt", "latents": z}
    given["guidance_scale"] = 3.5 if "Flux" in type(pipeline).__name__ else 3.0
    if "Sana" in type(pipeline).__name__:
        given["use_resolution_binning"] = False
    return pipeline(PROMPTS, height=32, width=32, **given | more).images


def lora_of(layers: dict[str, Any], file: Path, seed: int = 0) -> Path:
    """A LoRA of rank 2 for linear layers, given with their names under diffusers' prefixes."""
    state = {}
    for k, (name, layer) in enumerate(layers.items()):
        state[f"{name}.lora_A.weight"] = rand(2, layer.in_features, seed=seed + 2 * k)
        state[f"{name}.lora_B.weight"] = rand(layer.out_features, 2, seed=seed + 2 * k + 1)
    save_file({k: v.float().contiguous() for k, v in state.items()}, file)
    return file


# LoRA ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", each([n for n in LAYERS if n != "deepfloyd"], ["sd", "flux"]))
def test_lora_is_diffusers(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    pytest.importorskip("peft")
    folder, (part, layer) = folders[name], LAYERS[name]
    pipeline = read(folder)
    layers = {f"{part}.{layer}": getattr(pipeline, part).get_submodule(layer)}
    modules = dict(pipeline.text_encoder.named_modules())
    words = next(k for k in modules if k.endswith("layers.0.self_attn.q_proj"))
    two = dict(layers)
    if name != "sana":
        two[f"text_encoder.{words}"] = pipeline.text_encoder.get_submodule(words)
    first = lora_of(two, tmp_path / "first.safetensors")
    second = lora_of(layers, tmp_path / "second.safetensors", seed=7)
    for file in (first, second):
        pipeline.load_lora_weights(tmp_path, weight_name=file.name, adapter_name=file.stem)
    pipeline.set_adapters(["first", "second"], [0.5, 1.0])
    expected = theirs(pipeline)

    plain = made(invdiff.load_model(folder, dtype=D))
    denoiser = invdiff.load_model(folder, dtype=D, lora=[f"{first}:0.5", second])
    torch.testing.assert_close(made(denoiser), expected.to(D), atol=3e-5, rtol=0)
    assert float((made(denoiser) - plain).abs().max()) > 1e-3
    assert "first.safetensors x 0.5, second.safetensors x 1" in denoiser.source["LoRA"]
    zero = invdiff.load_model(folder, dtype=D, lora=f"{second}:0")
    torch.testing.assert_close(made(zero), plain, atol=1e-6, rtol=0)


def test_lora_of_deepfloyd_is_diffusers(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its pipeline takes no latents, but draws them from a generator; states grow with the random
    weights."""
    pytest.importorskip("peft")
    folder, (part, layer) = folders["deepfloyd"], LAYERS["deepfloyd"]
    pipeline, expected = read(folder), list[Tensor]()
    layers = {f"{part}.{layer}": getattr(pipeline, part).get_submodule(layer)}
    file = lora_of(layers, tmp_path / "lora.safetensors")
    pipeline.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="lora")
    pipeline.set_adapters(["lora"], [0.5])
    pipeline(
        PROMPTS,
        num_inference_steps=STEPS,
        guidance_scale=3.0,
        height=16,
        width=16,
        generator=torch.Generator().manual_seed(4),
        output_type="pt",
        callback=lambda i, t, x: expected.append(x.clone()),
    )
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(4), dtype=D)

    def states(**options: Any) -> list[Tensor]:
        denoiser, found = invdiff.load_model(folder, dtype=D, clip=False, **options), []
        invdiff.generate(
            denoiser,
            (2, 3, 16, 16),
            CFG(negative=denoiser.negative_of(), w=3.0),
            x_T=x,
            transition=DDIM(),
            steps=STEPS,
            dtype=D,
            callback=lambda progress: found.append(progress.x),
            **denoiser.conditions_of(PROMPTS),
        )
        return found

    changed = states(lora=f"{file}:0.5")
    assert len(expected) == len(changed) == STEPS
    for state, other in zip(changed, expected, strict=True):
        torch.testing.assert_close(state / other.std(), other / other.std(), atol=1e-5, rtol=0)
    assert float((states()[-1] - changed[-1]).abs().max() / changed[-1].std()) > 1e-3


def test_lora_that_does_not_fit_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = folders["sd"]
    layer = read(folder).unet.get_submodule(LAYERS["sd"][1])
    other = lora_of({f"transformer.{LAYERS['sd3'][1]}": layer}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no weights for the unet or a text encoder"):
        invdiff.load_model(folder, lora=other)
    wrong = {f"unet.{LAYERS['sd'][1]}": torch.nn.Linear(5, 7)}
    with pytest.raises(ValueError, match="does not fit this network"):
        invdiff.load_model(folder, lora=lora_of(wrong, tmp_path / "wrong.safetensors"))
    with pytest.raises(ValueError, match="no file of safetensors"):
        invdiff.load_model(folder, lora=tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match=r"path\[:scale\] with a number"):
        invdiff.load_model(folder, lora=f"{other}:much")


# Textual inversion --------------------------------------------------------------------------------


def test_textual_inversion_is_diffusers(folders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "thing.safetensors"
    save_file({"<thing>": rand(2, 8).float()}, file)
    pipeline = read(folders["sd"], torch.float32)
    pipeline.load_textual_inversion(tmp_path, weight_name=file.name)
    expected = pipeline.encode_prompt(["a <thing>"], "cpu", 1, False)[0]
    denoiser = invdiff.load_model(folders["sd"], textual_inversion=file)
    hidden = denoiser.conditions_of("a <thing>")["encoder_hidden_states"]
    torch.testing.assert_close(hidden, expected, atol=1e-6, rtol=0)
    plain = invdiff.load_model(folders["sd"]).conditions_of("a <thing>")["encoder_hidden_states"]
    assert float((hidden - plain).abs().max()) > 0.1
    renamed = invdiff.load_model(folders["sd"], textual_inversion=f"{file}:a")
    with pytest.raises(ValueError, match="is no word of this pipeline"):
        renamed.conditions_of("a")  # a word that the tokenizer has


def test_textual_inversion_of_two_encoders(folders: dict[str, Path], tmp_path: Path) -> None:
    state = {"clip_l": rand(1, 8).float(), "clip_g": rand(1, 12, seed=1).float()}
    save_file(state, tmp_path / "thing.safetensors")
    pipeline = read(folders["sdxl"], torch.float32)
    for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
        pipeline.load_textual_inversion(
            state[key],
            token="<thing>",
            text_encoder=getattr(pipeline, f"text_encoder{suffix}"),
            tokenizer=getattr(pipeline, f"tokenizer{suffix}"),
        )
    expected = pipeline.encode_prompt(["a <thing>"], device="cpu")
    given = f"{tmp_path / 'thing.safetensors'}:<thing>"
    denoiser = invdiff.load_model(folders["sdxl"], textual_inversion=given)
    cond = denoiser.conditions_of("a <thing>")
    torch.testing.assert_close(cond["encoder_hidden_states"], expected[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(cond["text_embeds"], expected[2], atol=1e-6, rtol=0)


# ControlNet ---------------------------------------------------------------------------------------


def live(net: Any, seed: int = 0) -> Any:
    """The same with random weights everywhere: a new ControlNet adds nothing."""
    generator = torch.Generator().manual_seed(seed)
    for p in net.requires_grad_(False).parameters():
        p.copy_((0.1 * torch.randn(p.shape, generator=generator)).to(p))
    return net


def sdxl_control(pipeline: Any) -> tuple[Any, Any]:
    unet = {k: v for k, v in pipeline.unet.config.items() if not k.startswith("_")}
    kept = ("cross_attention_dim", "addition_embed_type", "addition_time_embed_dim")
    kept += ("projection_class_embeddings_input_dim", "use_linear_projection")
    net = built(
        diffusers.ControlNetModel,
        **{k: v for k, v in UNET.items() if k not in ("sample_size", "out_channels")},
        down_block_types=CROSS["down_block_types"],
        conditioning_embedding_out_channels=(8, 8),
        **{k: unet[k] for k in kept},
    )
    return net, diffusers.StableDiffusionXLControlNetPipeline


def sd3_control(pipeline: Any) -> tuple[Any, Any]:
    net = diffusers.SD3ControlNetModel.from_transformer(
        pipeline.transformer, num_layers=1, num_extra_conditioning_channels=0
    )
    return live(net), diffusers.StableDiffusion3ControlNetPipeline


def flux_control(pipeline: Any) -> tuple[Any, Any]:
    net = diffusers.FluxControlNetModel.from_transformer(
        pipeline.transformer,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
    )
    return live(net), diffusers.FluxControlNetPipeline


MADE_FOR = {"sdxl": sdxl_control, "sd3": sd3_control, "flux": flux_control}


@pytest.mark.parametrize("name", each(CONTROLS, ["flux"]))
def test_a_controlnet_is_diffusers(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plain = read(folders[name])
    net, cls = MADE_FOR[name](plain)
    net.save_pretrained(tmp_path)
    pipeline = cls(**plain.components, controlnet=net.to(D))
    pipeline.set_progress_bar_config(disable=True)
    kind = type(plain.vae.encode(rand(1, 3, 16, 16)).latent_dist)
    monkeypatch.setattr(kind, "sample", lambda self, generator=None: self.mean)  # as encode="mode"
    image = torch.rand(SHAPE, dtype=D, generator=torch.Generator().manual_seed(5))
    # diffusers takes tensors as they are: of transformers' ControlNets in [-1, 1].
    given = {"image": image} if name == "sdxl" else {"control_image": 2 * image - 1}
    expected = theirs(pipeline, controlnet_conditioning_scale=0.7, **given)

    denoiser = invdiff.load_model(folders[name], dtype=D, controlnet=tmp_path)
    assert denoiser.facts.image_conditions == {"control": 2} and "control" in denoiser.required
    found = made(denoiser, control=image, control_scale=0.7)
    torch.testing.assert_close(found, expected.to(D), atol=5e-5, rtol=0)
    each = made(denoiser, control=image, control_scale=torch.tensor([0.7, 0.0], dtype=D))
    torch.testing.assert_close(each[0], found[0], atol=1e-9, rtol=0)
    assert float((each[1] - found[1]).abs().max()) > 1e-4


def test_controlnets_that_are_not_read_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    net, _ = flux_control(read(folders["flux"], torch.float32))
    net.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="guides a UNet2DConditionModel or .* not a PixArt"):
        invdiff.load_model(folders["pixart-sigma"], controlnet=tmp_path)
    with pytest.raises(ValueError, match="the network needs its autoencoder"):
        invdiff.load_model(folders["flux"], controlnet=tmp_path, autoencoder=False)
    config = json.loads((tmp_path / "config.json").read_text())
    changed = config | {"conditioning_embedding_channels": 4}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="conditioning_embedding_channels"):
        invdiff.load_model(folders["flux"], controlnet=tmp_path)


def test_the_autoencoder_keeps_its_precision_beside_a_controlnet(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    flux_control(read(folders["flux"], torch.float32))[0].save_pretrained(tmp_path)
    denoiser = invdiff.load_model(folders["flux"], storage="bfloat16", controlnet=tmp_path)
    coder, control = denoiser.autoencoder, denoiser.net.control  # type: ignore[attr-defined]
    assert coder is not None and coder.net is not None
    assert {p.dtype for p in coder.net.parameters()} == {torch.float32}
    assert {p.dtype for p in control.net.parameters()} == {torch.bfloat16}
    given = {"control": torch.rand(SHAPE), **denoiser.conditions_of(PROMPTS)}
    made = invdiff.generate(denoiser, SHAPE, steps=2, **given).x
    assert made.dtype == torch.float32 and bool(made.isfinite().all())


def test_the_measurement_is_the_control_image(folders: dict[str, Path], tmp_path: Path) -> None:
    sdxl_control(read(folders["sdxl"]))[0].save_pretrained(tmp_path)
    denoiser = invdiff.load_model(folders["sdxl"], dtype=D, controlnet=tmp_path)
    truth = torch.rand(SHAPE, dtype=D, generator=torch.Generator().manual_seed(5))
    measurement = invdiff.make_operator("sr", factor=2).measure(truth, sigma=0.0)
    cond = denoiser.conditions_of(PROMPTS)
    cfg = CFG(negative=denoiser.negative_of(), w=3.0)
    control = invdiff.make_method("sr3", to="control")
    run: dict[str, Any] = {"transition": DDIM(), "steps": 2, "dtype": D, "seed": 1}
    found = invdiff.solve(measurement, denoiser, [cfg, control], **run, **cond)
    image = torch.nn.functional.interpolate(
        2 * measurement.y - 1, size=SHAPE[2:], mode="bicubic", antialias=True
    )
    image = (image / 2 + 0.5).clamp(0, 1)
    expected = invdiff.generate(denoiser, SHAPE, cfg, control=image, **run, **cond)
    torch.testing.assert_close(found.x, expected.x, atol=1e-9, rtol=0)
    assert found.nfe == 4
    plain = invdiff.load_model(folders["sdxl"], dtype=D)
    with pytest.raises(ValueError, match="takes no image as 'control'"):
        invdiff.solve(measurement, plain, [cfg, control], **run, **cond)
