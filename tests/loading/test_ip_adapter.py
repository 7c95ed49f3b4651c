"""IP-Adapters as diffusers runs them, tiny and with random weights; no published one is read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from oracles import D, built, rand
from PIL import Image
from pipelines import ADAPTED, PROMPTS, read
from safetensors.torch import load_file, save_file
from torch import Tensor

import invdiff
from invdiff.commands.main import main
from invdiff.guidance.cfg import CFG
from invdiff.transitions import DDIM

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE, WIDTH, EMBEDDED, TOKENS = 16, 12, 6, 3
KINDS = [*((name, "plain") for name in ADAPTED), ("sd", "plus")]


def image_encoder() -> Any:
    config = transformers.CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=8,
        projection_dim=EMBEDDED,
    )
    return built(transformers.CLIPVisionModelWithProjection, config=config)


def projection(kind: str, text: int) -> dict[str, Tensor]:
    """The sizes of the layers between the image's embedding and the attention, by the names that
    their authors gave them."""
    if kind == "plain":
        layers = {"proj": (4 * text, EMBEDDED), "norm": (text,)}
        biased = ["proj", "norm"]
    else:
        layers = {"latents": (1, TOKENS, 64), "proj_in": (64, WIDTH), "proj_out": (text, 64)}
        layers |= {"norm_out": (text,)}
        biased = ["proj_in", "proj_out", "norm_out"]
        for n in map("layers.{}".format, range(4)):  # diffusers has four
            layers |= {f"{n}.0.norm1": (64,), f"{n}.0.norm2": (64,), f"{n}.0.to_q": (64, 64)}
            layers |= {f"{n}.0.to_kv": (128, 64), f"{n}.0.to_out": (64, 64), f"{n}.1.0": (64,)}
            layers |= {f"{n}.1.1": (256, 64), f"{n}.1.3": (64, 256)}
            biased += [f"{n}.0.norm1", f"{n}.0.norm2", f"{n}.1.0"]
    made = {}
    for k, (name, shape) in enumerate(layers.items()):
        key = f"image_proj.{name}" + ("" if name == "latents" else ".weight")
        made[key] = rand(*shape, seed=k).float() / shape[-1] ** 0.5
        if name in biased:
            made[f"image_proj.{name}.bias"] = rand(shape[0], seed=50 + k).float()
    return made


def adapter(place: Path, net: Any, kind: str) -> Path:
    """The file of an adapter for a U-Net, with its image encoder beside it."""
    state = projection(kind, net.config.cross_attention_dim)
    number = 1
    for name in net.attn_processors:
        if name.endswith("attn2.processor"):
            query = net.get_submodule(name.removesuffix(".processor")).to_q
            size = (query.out_features, net.config.cross_attention_dim)
            for k, letter in enumerate("kv"):
                made = 12 * rand(*size, seed=number + 100 * k).float()
                state[f"ip_adapter.{number}.to_{letter}_ip.weight"] = made
            number += 2
    place.mkdir(exist_ok=True)
    save_file(state, place / "ip.safetensors")
    image_encoder().float().save_pretrained(place / "image_encoder")
    return place / "ip.safetensors"


def photo() -> Tensor:
    return (255 * rand(3, 20, 28, seed=9).sigmoid()).round().float() / 255


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_it_is_diffusers_pipeline_step_by_step(
    folders: dict[str, Path], tmp_path: Path, name: str, kind: str
) -> None:
    pipeline = read(folders[name])
    file = adapter(tmp_path / "ip", pipeline.unet, kind)
    pipeline.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name)
    pipeline.set_ip_adapter_scale(0.7)
    z, expected = rand(2, 4, 8, 8, seed=3), []

    def seen(_: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        expected.append(given["latents"].clone())
        return given

    pipeline(
        PROMPTS[0],
        ip_adapter_image=Image.fromarray((255 * photo()).round().byte().movedim(0, -1).numpy()),
        num_images_per_prompt=2,
        height=16,
        width=16,
        num_inference_steps=3,
        guidance_scale=3.0,
        latents=z,
        output_type="latent",
        callback_on_step_end=seen,
    )
    denoiser = invdiff.load_model(folders[name], ip_adapter=f"{file}:0.7", dtype=D)
    states: list[Tensor] = []

    def sampled(image: Tensor) -> Tensor:
        return invdiff.generate(
            denoiser,
            (2, 3, 16, 16),
            CFG(negative=denoiser.negative_of() | denoiser.negative_of_image(), w=3.0),
            steps=3,
            transition=DDIM(),
            x_T=z,
            dtype=D,
            callback=lambda progress: states.append(progress.x),
            **denoiser.conditions_of(PROMPTS[0], 2),
            **denoiser.conditions_of_image(image, 2),
        ).x

    made = sampled(photo())
    assert len(expected) == len(states) == 3
    for state, other in zip(states, expected, strict=True):
        torch.testing.assert_close(state, other.to(D), atol=3e-5, rtol=0)
    assert float((sampled(1 - photo()) - made).abs().max()) > 3e-4, "the image changes nothing"
    assert denoiser.source["IP-Adapter"] == "ip.safetensors x 0.7"


def test_one_image_each_and_restoring(folders: dict[str, Path], tmp_path: Path) -> None:
    file = adapter(tmp_path / "ip", read(folders["sd"]).unet, "plain")
    denoiser = invdiff.load_model(folders["sd"], ip_adapter=file)
    both = torch.stack([photo(), 1 - photo()])
    made = denoiser.conditions_of_image(both)["image_embeds"]
    torch.testing.assert_close(made[1:], denoiser.conditions_of_image(both[1])["image_embeds"])
    assert made.shape == (2, EMBEDDED) and not torch.equal(made[0], made[1])
    x = torch.rand(2, 3, 16, 16)
    result = invdiff.solve(
        invdiff.make_operator("inpaint").measure(x, sigma=0.02),
        denoiser,
        "psld",
        steps=2,
        **denoiser.conditions_of(PROMPTS),
        image_embeds=made,
    )
    assert (result.nfe, result.nbe) == (2, 2)
    with pytest.raises(ValueError, match=r"without image_embeds.*of an image \(--image-prompt\)"):
        invdiff.generate(denoiser, (1, 3, 16, 16), steps=2, **denoiser.conditions_of("cat"))
    with pytest.raises(ValueError, match=r"one for each of the 3 images.*\(2, 3, 20, 28\)"):
        denoiser.conditions_of_image(both, 3)


def test_an_image_encoder_of_ones_own() -> None:
    def net(x: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        return x - mean

    denoiser = invdiff.Denoiser(
        net,
        schedule="linear",
        image_encoder=lambda images: {"mean": images.mean((1, 2, 3), keepdim=True)},
    )
    made = denoiser.conditions_of_image(photo(), 3)["mean"]
    torch.testing.assert_close(made, photo().mean().expand(3, 1, 1, 1))
    assert invdiff.generate(denoiser, (3, 1, 4, 4), steps=2, mean=made).x.shape == (3, 1, 4, 4)
    with pytest.raises(ValueError, match=r"has no negative\(images\)"):
        denoiser.negative_of_image()
    with pytest.raises(TypeError, match=r"an image is a tensor \(3, H, W\)"):
        denoiser.conditions_of_image("photo.png")  # type: ignore[arg-type]


def test_on_the_command_line(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = adapter(tmp_path / "ip", read(folders["sd"]).unet, "plain")
    looks = []
    for k, image in enumerate((photo(), 1 - photo())):
        invdiff.images.write_image(tmp_path / f"{k}.png", image)
        given = f"generate --model {folders['sd']} model.ip_adapter={file}:0.5 --steps 2 --quiet"
        given += f" --image-prompt {tmp_path / f'{k}.png'} --size 16 --num-samples 1"
        assert main([*given.split(), "--output", str(tmp_path / f"o{k}")]) == 0, capsys.readouterr()
        looks.append(invdiff.images.read_image(tmp_path / f"o{k}" / "sample_000.png"))
    assert not torch.equal(*looks)
    given = f"generate --model {folders['sd']} --image-prompt {tmp_path / '0.png'} --size 16"
    assert main([*given.split(), "--output", str(tmp_path / "none")]) != 0
    assert "has no image encoder" in capsys.readouterr().err


def test_restoring_with_an_image_prompt_on_the_command_line(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With and without cfg, two images or one: what solve makes of the same conditions."""
    file = adapter(tmp_path / "ip", read(folders["sd"]).unet, "plain")
    invdiff.images.write_image(tmp_path / "photo.png", torch.rand(3, 16, 16))
    given = f"solve --model {folders['sd']} --input {tmp_path / 'photo.png'} --operator inpaint"
    given += " --steps 2 --quiet --no-check --sigma 0.02 --image-id 5"
    adapted = f"{given} model.ip_adapter={file}:2 --prompt cat"
    for method in ("--method psld", "--method cfg --method psld guidance.cfg.w=2"):
        made = []
        for k, image in enumerate((photo(), 1 - photo())):
            invdiff.images.write_image(tmp_path / f"{k}.png", image)
            place = tmp_path / f"{k}{len(method)}"
            asked = f"{adapted} {method} --image-prompt {tmp_path / f'{k}.png'} --output {place}"
            assert main(asked.split()) == 0, capsys.readouterr().err
            made.append(invdiff.images.read_image(place / "restored.png"))
        assert not torch.equal(*made)
        denoiser = invdiff.load_model(folders["sd"], ip_adapter=f"{file}:2")
        negative = denoiser.negative_of() | denoiser.negative_of_image()
        chain = [CFG(negative=negative, w=2.0)] if "cfg" in method else []
        result = invdiff.solve(
            invdiff.Measurement.load(place / "measurement.safetensors"),
            denoiser,
            [*chain, "psld"],
            steps=2,
            **denoiser.conditions_of("cat"),
            **denoiser.conditions_of_image(invdiff.images.read_image(tmp_path / "1.png", 3)),
            image_ids=[5],
        )
        torch.testing.assert_close(result.x, made[1], atol=1 / 255, rtol=0)
    asked = f"{given} --method psld --image-prompt {tmp_path / '0.png'}"
    assert main([*asked.split(), "--output", str(tmp_path / "none")]) != 0
    assert "has no image encoder" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    file = adapter(tmp_path / "ip", read(folders["sdxl"]).unet, "plain")
    with pytest.raises(ValueError, match="IP-Adapter .* does not fit this network"):
        invdiff.load_model(folders["sd"], ip_adapter=file)
    with pytest.raises(ValueError, match="not for a FluxPipeline"):
        invdiff.load_model(folders["flux"], ip_adapter=file)
    with pytest.raises(ValueError, match=r"path\[:scale\] with a number"):
        invdiff.load_model(folders["sdxl"], ip_adapter=f"{file}:much")
    with pytest.raises(ValueError, match="give ip_adapter= too"):
        invdiff.load_model(folders["sdxl"], image_encoder=tmp_path / "ip" / "image_encoder")
    shutil.move(tmp_path / "ip" / "image_encoder", tmp_path / "eyes")
    blind = invdiff.load_model(folders["sdxl"], ip_adapter=file)
    with pytest.raises(ValueError, match="image_encoder=FOLDER"):
        blind.conditions_of_image(photo())
    seeing = invdiff.load_model(folders["sdxl"], ip_adapter=file, image_encoder=tmp_path / "eyes")
    assert seeing.conditions_of_image(photo())["image_embeds"].shape == (1, EMBEDDED)
    state = load_file(file)
    faces = {k.replace("image_proj.proj", "image_proj.proj.0"): v for k, v in state.items()}
    faces["ip_adapter.1.to_k_lora.down.weight"] = torch.zeros(2, 2)
    save_file(faces, tmp_path / "faces.safetensors")
    with pytest.raises(ValueError, match="which insightface makes"):
        invdiff.load_model(folders["sdxl"], ip_adapter=tmp_path / "faces.safetensors")
