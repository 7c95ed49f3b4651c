"""Pipelines of diffusers, built tiny with random weights through its own classes, with vocabularies
of a few words, and saved: stand-ins for published ones, which differ in size and weights only."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tokenizers
import torch
import transformers
from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)
from oracles import built

WORDS = ("a", "cat", "dog", "on", "the", "moon", "blurry")
LENGTH = 8
PROMPTS = ["a cat on the moon", "the dog"]

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
CODER: dict[str, Any] = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 16,
}
CROSS: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def clip_words(folder: Path) -> Any:
    """Whole words and letters; no merges reach further than the words."""
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocabulary = [
        "<|startoftext|>",
        *letters,
        *(c + "</w>" for c in letters),
        *dict.fromkeys(x + y for x, y in merges),
        "<|endoftext|>",
    ]
    folder.mkdir()
    (folder / "vocab.json").write_text(
        json.dumps({token: k for k, token in enumerate(dict.fromkeys(vocabulary))})
    )
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{x} {y}\n" for x, y in dict.fromkeys(merges))
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer"})
    )
    return transformers.CLIPTokenizer.from_pretrained(folder)


def clip_encoder(words: Any, pooled: int | None = None, seed: int = 0, width: int = 8) -> Any:
    """CLIP's text encoder; ``pooled``: with a projection to so many channels."""
    ends = {k: getattr(words, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        max_position_embeddings=LENGTH,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        **ends,
        **({} if pooled is None else {"projection_dim": pooled}),
    )
    kind = "CLIPTextModel" if pooled is None else "CLIPTextModelWithProjection"
    return built(getattr(transformers, kind), seed, config=config)


def t5_words() -> Any:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("▁", -3.0)]
    vocabulary += [(c, -4.0) for c in string.ascii_lowercase]
    vocabulary += [("▁" + word, -1.0) for word in WORDS]
    return transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=0)


def t5_encoder(width: int = 16) -> Any:
    config = transformers.T5Config(
        vocab_size=64, d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2
    )
    return built(transformers.T5EncoderModel, config=config)


def gemma_words() -> Any:
    vocabulary = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *string.printable[:95]]
    table = {token: k for k, token in enumerate(dict.fromkeys(vocabulary))}
    words = transformers.GemmaTokenizerFast(vocab=table, merges=[])
    words.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", table["<bos>"])]
    )
    return words


def gemma_encoder(words: Any) -> Any:
    config = transformers.Gemma2Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return built(transformers.Gemma2Model, config=config)


def attentive(net: Any) -> Any:
    """The same with text that counts."""
    for name, p in net.named_parameters():
        if "attn2.to_" in name:
            p *= 12
    return net


def ddim() -> Any:
    return diffusers.DDIMScheduler(
        clip_sample=False,
        steps_offset=1,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
    )


def vae(channels: int = 4, **config: Any) -> Any:
    return built(diffusers.AutoencoderKL, **CODER | {"latent_channels": channels}, **config)


def sd(place: Path) -> Any:
    words = clip_words(place / "words")
    net = built(diffusers.UNet2DConditionModel, **UNET, **CROSS, cross_attention_dim=8)
    return diffusers.StableDiffusionPipeline(
        vae=vae(shift_factor=None),
        text_encoder=clip_encoder(words),
        tokenizer=words,
        unet=attentive(net),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(place: Path) -> Any:
    words = clip_words(place / "words")
    net = built(
        diffusers.UNet2DConditionModel,
        **UNET,
        **CROSS,
        cross_attention_dim=8 + 12,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 12,
        use_linear_projection=True,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(shift_factor=None, force_upcast=False),
        text_encoder=clip_encoder(words),
        text_encoder_2=clip_encoder(words, pooled=12, seed=1, width=12),
        tokenizer=words,
        tokenizer_2=words,
        unet=attentive(net),
        scheduler=ddim(),
        add_watermarker=False,
    )


def sd3(place: Path, **scheduler: Any) -> Any:
    words = clip_words(place / "words")
    net = built(
        diffusers.SD3Transformer2DModel,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=16,
        pooled_projection_dim=8 + 12,
        pos_embed_max_size=16,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=net,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**scheduler or {"shift": 3.0}),
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip_encoder(words, pooled=8),
        tokenizer=words,
        text_encoder_2=clip_encoder(words, pooled=12, seed=1),
        tokenizer_2=words,
        text_encoder_3=t5_encoder(24),
        tokenizer_3=t5_words(),
    )


def flux(place: Path, guided: bool = True, **scheduler: Any) -> Any:
    words = clip_words(place / "words")
    net = built(
        diffusers.FluxTransformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guided,
    )
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            **scheduler or {"use_dynamic_shifting": True, "shift": 3.0}
        ),
        vae=vae(shift_factor=0.1, scaling_factor=0.4),
        text_encoder=clip_encoder(words),
        tokenizer=words,
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_words(),
        transformer=net,
    )


def pixart(place: Path, kind: str = "Sigma") -> Any:
    net = built(
        diffusers.PixArtTransformer2DModel,
        sample_size=128 if kind == "Alpha" else 8,  # the only one that diffusers says the size to
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
        caption_channels=16,
        norm_num_groups=4,
        use_additional_conditions=kind == "Alpha",
    )
    return getattr(diffusers, f"PixArt{kind}Pipeline")(
        tokenizer=t5_words(),
        text_encoder=t5_encoder(),
        vae=vae(shift_factor=None),
        transformer=net,
        scheduler=ddim(),
    )


def dc_coder(channels: int = 4) -> Any:
    blocks = {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), ()),
        "decoder_qkv_multiscales": ((), ()),
    }
    return built(diffusers.AutoencoderDC, latent_channels=channels, scaling_factor=0.41, **blocks)


def sana(place: Path) -> Any:
    words = gemma_words()
    net = built(
        diffusers.SanaTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    return diffusers.SanaPipeline(
        tokenizer=words,
        text_encoder=gemma_encoder(words),
        vae=dc_coder(),
        transformer=net,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def deepfloyd_parts(**unet: Any) -> dict[str, Any]:
    """What the stages have in common, with the sampler of their network: DDIM."""
    net = built(
        diffusers.UNet2DConditionModel,
        **UNET | unet,
        **CROSS,
        cross_attention_dim=8,
        encoder_hid_dim=16,
        encoder_hid_dim_type="text_proj",
    )
    return {
        "tokenizer": t5_words(),
        "text_encoder": t5_encoder(),
        "unet": attentive(net),
        "scheduler": diffusers.DPMSolverMultistepScheduler(
            solver_order=1, variance_type="learned_range", timestep_spacing="trailing"
        ),
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
        "requires_safety_checker": False,
    }


def deepfloyd(place: Path) -> Any:
    return diffusers.IFPipeline(**deepfloyd_parts(in_channels=3, out_channels=6, sample_size=16))


def deepfloyd_larger(place: Path) -> Any:
    """The second stage, which is given an image and how noisy that is."""
    parts = deepfloyd_parts(
        class_embed_type="timestep", in_channels=6, out_channels=6, sample_size=32
    )
    noising = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return diffusers.IFSuperResolutionPipeline(**parts, image_noising_scheduler=noising)


def ldm(place: Path) -> Any:
    words = clip_words(place / "words")
    config = LDMBertConfig(
        vocab_size=len(words),
        encoder_layers=1,
        encoder_ffn_dim=8,
        encoder_attention_heads=2,
        head_dim=4,
        d_model=8,
    )
    net = built(diffusers.UNet2DConditionModel, **UNET, **CROSS, cross_attention_dim=8)
    return diffusers.LDMTextToImagePipeline(
        vqvae=vae(shift_factor=None),
        bert=built(LDMBertModel, config=config),
        tokenizer=words,
        unet=attentive(net),
        scheduler=ddim(),
    )


SIMPLE: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "resnet_time_scale_shift": "scale_shift",
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
EMBEDDED = 8
"""Channels of an image's embedding."""


def prior_network() -> Any:
    return built(
        diffusers.PriorTransformer,
        num_attention_heads=2,
        attention_head_dim=4,
        num_layers=1,
        embedding_dim=EMBEDDED,
        num_embeddings=LENGTH,
    )


def unclip(place: Path) -> Any:
    words = clip_words(place / "words")
    larger = {
        "sample_size": 16,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "in_channels": 6,
        "out_channels": 3,
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
    }
    projection = {"clip_embeddings_dim": EMBEDDED, "time_embed_dim": 32, "cross_attention_dim": 8}
    noise = diffusers.UnCLIPScheduler(prediction_type="sample")
    return diffusers.UnCLIPPipeline(
        prior=prior_network(),
        decoder=built(
            diffusers.UNet2DConditionModel,
            **SIMPLE,
            in_channels=3,
            out_channels=6,
            cross_attention_dim=8,
            class_embed_type="identity",
        ),
        text_encoder=clip_encoder(words, pooled=EMBEDDED),
        tokenizer=words,
        text_proj=built(UnCLIPTextProjModel, **projection),
        super_res_first=built(diffusers.UNet2DModel, **larger),
        super_res_last=built(diffusers.UNet2DModel, seed=1, **larger),
        prior_scheduler=noise,
        decoder_scheduler=diffusers.UnCLIPScheduler(variance_type="learned_range"),
        super_res_scheduler=diffusers.UnCLIPScheduler(),
    )


def movq() -> Any:
    return built(
        diffusers.VQModel,
        block_out_channels=(32, 32),  # what diffusers normalises so has groups of 32
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )


def kandinsky_network(added: str, encoded: str, width: int) -> Any:
    return built(
        diffusers.UNet2DConditionModel,
        **SIMPLE,
        in_channels=4,
        out_channels=8,
        addition_embed_type=added,
        encoder_hid_dim=width,
        encoder_hid_dim_type=encoded,
        cross_attention_dim=8 if added == "image" else EMBEDDED,
    )


def kandinsky2(place: Path) -> Any:
    """The decoder of 2.2."""
    net = kandinsky_network("image", "image_proj", EMBEDDED)
    return diffusers.KandinskyV22Pipeline(unet=net, scheduler=ddim(), movq=movq())


def kandinsky1(place: Path) -> Any:
    """The decoder of 2.1, which takes the prompt as well."""
    config = MCLIPConfig(
        transformerDimSize=16,
        imageDimSize=EMBEDDED,
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=90,
    )
    vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("▁", -3.0)]
    vocabulary += [(c, -4.0) for c in string.ascii_lowercase]
    vocabulary += [*(("▁" + word, -1.0) for word in WORDS), ("<mask>", 0.0)]
    return diffusers.KandinskyPipeline(
        text_encoder=built(MultilingualCLIP, config=config),
        tokenizer=transformers.XLMRobertaTokenizerFast(vocab=vocabulary),
        unet=kandinsky_network("text_image", "text_image_proj", 16),
        scheduler=ddim(),
        movq=movq(),
    )


def kandinsky_prior(place: Path, version: str) -> Any:
    words = clip_words(place / "words")
    eyes = transformers.CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=EMBEDDED,
    )
    return getattr(diffusers, f"Kandinsky{version}PriorPipeline")(
        prior=prior_network(),
        image_encoder=built(transformers.CLIPVisionModelWithProjection, config=eyes),
        text_encoder=clip_encoder(words, pooled=EMBEDDED),
        tokenizer=words,
        scheduler=diffusers.UnCLIPScheduler(prediction_type="sample"),
        image_processor=transformers.CLIPImageProcessor(size=16, crop_size=16),
    )


OTHERS: dict[str, Callable[[Path], Any]] = {
    "deepfloyd-larger": deepfloyd_larger,
    "ldm": ldm,
    "unclip": unclip,
    "kandinsky1": kandinsky1,
    "kandinsky2": kandinsky2,
}
"""Pipelines whose own call is asked for more than a prompt and latents."""

PRIORS: dict[str, Callable[[Path], Any]] = {
    "kandinsky1-prior": lambda place: kandinsky_prior(place, ""),
    "kandinsky2-prior": lambda place: kandinsky_prior(place, "V22"),
}

MADE: dict[str, Callable[[Path], Any]] = {
    "sd": sd,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "pixart-alpha": lambda place: pixart(place, "Alpha"),
    "pixart-sigma": pixart,
    "sana": sana,
    "deepfloyd": deepfloyd,
}


LAYERS = {
    "sd": ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"),
    "sdxl": ("unet", "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v"),
    "sd3": ("transformer", "transformer_blocks.0.attn.to_q"),
    "flux": ("transformer", "single_transformer_blocks.0.attn.to_k"),
    "sana": ("transformer", "transformer_blocks.0.attn1.to_q"),
    "deepfloyd": ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"),
}
"""The part of each pipeline that LoRA is tested on, and a layer of it."""

CONTROLS = ("sdxl", "sd3", "flux")
"""Pipelines whose ControlNets are tested against diffusers' pipeline; a Stable Diffusion network's
in test_diffusers_models.py."""

ADAPTED = ("sd", "sdxl")
"""Pipelines whose IP-Adapters are tested, in test_ip_adapter.py."""


def each(names: Iterable[str], quick: Collection[str]) -> list[Any]:
    """Parameters of a test: all but the quick ones belong to the slow checks."""
    return [pytest.param(n, marks=[] if n in quick else pytest.mark.slow) for n in names]


def saved(name: str, place: Path) -> Path:
    """The folder of a pipeline."""
    make = (MADE | OTHERS | PRIORS)[name]
    make(place).save_pretrained(place / "pipeline")
    if name == "unclip":  # as it was published; this diffusers reads neither that nor what it wrote
        index = place / "pipeline" / "model_index.json"
        entries = json.loads(index.read_text())
        entries["text_proj"][0] = "unclip"
        index.write_text(json.dumps(entries))
    return place / "pipeline"


def read(folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    """The pipeline as diffusers reads it."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        folder, torch_dtype=dtype, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
