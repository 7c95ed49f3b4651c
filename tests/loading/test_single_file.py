"""Pipelines in one file, with the names that their authors gave the parameters: equal to the same
pipeline from its folder. The files are made of tiny pipelines; no published one is read."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING
from oracles import rand
from pipelines import PROMPTS, read, saved
from safetensors.torch import load_file, save_file
from torch import Tensor

import invdiff

pytestmark = pytest.mark.usefixtures("one_thread")

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def swapped(name: str, words: dict[str, str]) -> str:
    return next((name.replace(a, b, 1) for a, b in words.items() if name.startswith(a)), name)


def of_unet(net: Any) -> dict[str, Tensor]:
    """The parameters of a U-Net by the names of CompVis' latent diffusion, where the blocks of
    all resolutions are counted through."""
    each, flat = net.config.layers_per_block + 1, DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"]
    flat = flat | DIFFUSERS_TO_LDM_MAPPING["unet"]["addition_embed_type"]
    made = {}
    for key, value in net.state_dict().items():
        found = re.fullmatch(r"(down|up|mid)_blocks?\.(?:(\d)\.)?(\w+?)s\.(\d)\.(.*)", key)
        if found is None:
            name = flat[key]
        else:
            side, block, kind, layer, rest = found.groups()
            rest = swapped(rest, RESNET) if kind == "resnet" else rest
            at = each * int(block or 0) + int(layer)
            if side == "mid":
                name = f"middle_block.{2 * int(layer) if kind == 'resnet' else 1}.{rest}"
            elif kind == "downsampler":
                name = f"input_blocks.{each * int(block) + each}.0.{rest.replace('conv', 'op')}"
            elif kind == "upsampler":
                last = 2 if hasattr(net.up_blocks[int(block)], "attentions") else 1
                name = f"output_blocks.{each * int(block) + each - 1}.{last}.{rest}"
            else:
                blocks, at = ("input_blocks", at + 1) if side == "down" else ("output_blocks", at)
                name = f"{blocks}.{at}.{0 if kind == 'resnet' else 1}.{rest}"
        made[f"model.diffusion_model.{name}"] = value
    return made


def of_vae(net: Any) -> dict[str, Tensor]:
    made, last = {}, len(net.config.up_block_types) - 1
    for key, value in net.state_dict().items():
        name = DIFFUSERS_TO_LDM_MAPPING["vae"].get(key, key)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{last - int(m[1])}.block", name)
        name = re.sub(
            r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name
        )
        name = name.replace("conv_shortcut", "nin_shortcut")
        if found := re.fullmatch(r"(\w+)\.mid_block\.attentions\.0\.(.*)", name):
            name = f"{found[1]}.mid.attn_1.{swapped(found[2], ATTENTION)}"
            value = value[:, :, None, None] if value.ndim == 2 else value  # a convolution there
        made[f"first_stage_model.{name}"] = value
    return made


def of_clip(net: Any, place: str = "cond_stage_model.transformer") -> dict[str, Tensor]:
    prefix = f"{place}.text_model."
    return {prefix + k.removeprefix("text_model."): v for k, v in net.state_dict().items()}


OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
}


def of_open_clip(net: Any) -> dict[str, Tensor]:
    """The second text encoder of SDXL, whose queries, keys and values are one matrix there."""
    made: dict[str, Tensor] = {}
    for key, value in net.state_dict().items():
        name = key.removeprefix("text_model.")
        for theirs, others in OPEN_CLIP.items():
            name = name.replace(theirs, others)
        if name == "text_projection.weight":
            name, value = "text_projection", value.T
        if found := re.fullmatch(r"(.*\.attn)\.([qkv])_proj\.(weight|bias)", name):
            name = f"{found[1]}.in_proj_{found[3]}"
            parts = [key.replace(f".{found[2]}_proj.", f".{n}_proj.") for n in "qkv"]
            value = torch.cat([net.state_dict()[part] for part in parts])
        made[f"conditioner.embedders.1.model.{name}"] = value
    return made


def bare(folder: Path, place: Path, *kept: str) -> Path:
    """The folder without its weights, but for some parts."""
    shutil.copytree(folder, place)
    for file in place.glob("*/*.safetensors"):
        if file.parent.name not in kept:
            file.unlink()
    return place


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(the whole folder, the one without weights, the file)."""
    place = tmp_path_factory.mktemp("sd")
    folder = saved("sd", place)
    pipeline = read(folder, torch.float32)
    tensors = of_unet(pipeline.unet) | of_vae(pipeline.vae) | of_clip(pipeline.text_encoder)
    save_file({k: v.contiguous() for k, v in tensors.items()}, place / "sd.safetensors")
    return folder, bare(folder, place / "bare"), place / "sd.safetensors"


def outputs(denoiser: invdiff.Denoiser) -> list[Tensor]:
    """What the network, the autoencoder and the text encoders make."""
    cond = denoiser.conditions_of(PROMPTS)
    x, coder = rand(2, 4, 8, 8).float(), denoiser.autoencoder
    assert coder is not None
    with torch.no_grad():
        p = denoiser(x, denoiser.schedule(torch.tensor(500.0)), **cond)
        return [p.x0, coder.decode(x), coder.encode(coder.decode(x)), *cond.values()]


def test_stable_diffusion_in_one_file_is_its_folder(sd: tuple[Path, Path, Path]) -> None:
    folder, configurations, file = sd
    single = invdiff.load_model(configurations, single_file=file)
    for a, b in zip(outputs(single), outputs(invdiff.load_model(folder)), strict=True):
        assert torch.equal(a, b)
    assert single.source["weights"] == str(file)


@pytest.mark.parametrize("kept", [(), ("text_encoder", "text_encoder_2")], ids=["its", "folder"])
def test_sdxl_in_one_file_is_its_folder(tmp_path: Path, kept: tuple[str, ...]) -> None:
    """With its two text encoders, and without: these are then the folder's."""
    folder = saved("sdxl", tmp_path)
    pipeline = read(folder, torch.float32)
    tensors = of_unet(pipeline.unet) | of_vae(pipeline.vae)
    if not kept:
        tensors |= of_clip(pipeline.text_encoder, "conditioner.embedders.0.transformer")
        tensors |= of_open_clip(pipeline.text_encoder_2)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "xl.safetensors")
    place = bare(folder, tmp_path / "bare", *kept)
    single = invdiff.load_model(place, single_file=tmp_path / "xl.safetensors")
    for a, b in zip(outputs(single), outputs(invdiff.load_model(folder)), strict=True):
        assert torch.equal(a, b)
    if kept:
        return
    lost = "conditioner.embedders.1.model.transformer.resblocks.0.mlp.c_fc.bias"
    del tensors[lost]
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"lacks .*parameters of the text encoders"):
        outputs(invdiff.load_model(place, single_file=tmp_path / "part.safetensors"))


def test_nothing_is_loaded_by_half(sd: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, configurations, file = sd
    held = load_file(file)
    for lost, part in (
        ("model.diffusion_model.input_blocks.0.0.weight", "unet"),
        ("first_stage_model.encoder.conv_in.weight", "vae"),
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", "text encoders"),
    ):
        save_file({k: v for k, v in held.items() if k != lost}, tmp_path / "part.safetensors")
        with pytest.raises(ValueError, match=rf"lacks .*parameters of the {part}"):
            outputs(invdiff.load_model(configurations, single_file=tmp_path / "part.safetensors"))
    with pytest.raises(ValueError, match="must be a .safetensors file"):
        invdiff.load_model(configurations, single_file=tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        invdiff.load_model(configurations / "unet", single_file=file)
    with pytest.raises(ValueError, match=r"model\.single_file=FILE"):
        invdiff.load_model(file)
