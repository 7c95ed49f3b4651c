"""PAG, SEG and skip-layer guidance beside diffusers' own, on tiny random networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.guiders import (
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
)
from diffusers.hooks import LayerSkipConfig, SmoothedEnergyGuidanceConfig
from diffusers.hooks import smoothed_energy_guidance_utils as seg_of_diffusers
from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode
from oracles import D, NoNoise, built, rand, step_of
from pipelines import CROSS, PROMPTS, UNET, attentive, read
from torch import Tensor

import invdiff
from invdiff import schedules
from invdiff.guidance.degraded import Degraded
from invdiff.guidance.pag import PAG
from invdiff.guidance.seg import SEG, blurred, plane
from invdiff.guidance.slg import SLG, left_out
from invdiff.loading.adm_network import AttentionBlock
from invdiff.network import Denoiser
from invdiff.sampling import Setting
from invdiff.sampling.step import tiled_all
from invdiff.solving import generate, solve
from invdiff.transitions import DDIM

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT, X = rand(2, 5, 8, seed=1), rand(2, 4, 8, 8)
S, W = 2.5, 4.0


class Called(torch.nn.Module):
    """A network of diffusers as ``net(x, t, **cond)``."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **more: Any) -> Tensor:
        out = self.net(
            x, timestep=t, encoder_hidden_states=encoder_hidden_states, return_dict=False, **more
        )[0]
        assert isinstance(out, Tensor)
        return out


@pytest.fixture(scope="module")
def unet() -> Called:
    net = built(diffusers.UNet2DConditionModel, **UNET, **CROSS, cross_attention_dim=8)
    for name, p in attentive(net).named_parameters():
        if "attn1.to_" in name:
            p *= 10 if "to_v" in name else 60  # maps that are far from even
    return Called(net)


@pytest.fixture(scope="module")
def pixart() -> Called:
    return Called(
        built(
            diffusers.PixArtTransformer2DModel,
            sample_size=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=3,
            in_channels=4,
            out_channels=4,
            cross_attention_dim=24,
            caption_channels=8,
            norm_num_groups=4,
            use_additional_conditions=False,
        )
    )


@pytest.fixture(scope="module")
def sd3() -> Called:
    return Called(
        built(
            diffusers.SD3Transformer2DModel,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            caption_projection_dim=16,
            pooled_projection_dim=6,
            pos_embed_max_size=16,
        )
    )


def network(net: Callable[..., Tensor]) -> Denoiser:
    return Denoiser(net, schedule=schedules.linear(), dtype=D)


def theirs(guider: Any, net: Called, c: Tensor, null: Tensor, **more: Any) -> Tensor:
    """eps of a guider of diffusers, from the three branches, in the middle of a run."""
    t = torch.tensor(500.0, dtype=D).expand(2)
    guider.set_state(step=5, num_inference_steps=10, timestep=t[0])
    made = []
    for k, cond in enumerate((c, null, c)):
        if isinstance(guider, SmoothedEnergyGuidance):
            guider._count_prepared = k + 1  # which diffusers 0.42 forgets, so that nothing is done
        guider.prepare_models(net.net)
        made.append(net(X.clone(), t, cond, **more))
        guider.cleanup_models(net.net)
    return guider.forward(*made).pred


def ours(guidance: Degraded, net: Called, **more: Any) -> Tensor:
    """eps of ours from the same."""
    denoiser, level = network(net), schedules.linear()(500.0)
    cond = {"encoder_hidden_states": TEXT}
    bound = guidance.bind(Setting(denoiser, tuple(X.shape), None, cond, torch.device("cpu"), D))

    def denoise(x: Tensor, at: Any, **given: Any) -> Any:
        return denoiser(x, at, **(tiled_all(cond | more, x) | given))

    return bound(denoise, X, step_of(schedules.linear(), level, level, NoNoise()), None).eps


NULL = {"encoder_hidden_states": rand(1, 5, 8, seed=2)}
SPANS = {"start": 0.0, "stop": 1.0}


def test_pag_of_diffusers_in_a_unet(unet: Called) -> None:
    config = LayerSkipConfig([0], "mid_block.attentions", False, True, False)
    guider = PerturbedAttentionGuidance(W, S, 0.0, 1.0, perturbed_guidance_config=config)
    expected = theirs(guider, unet, TEXT, NULL["encoder_hidden_states"].expand_as(TEXT))
    made = ours(PAG(S, w=W, negative=NULL), unet)
    torch.testing.assert_close(made, expected, atol=1e-9, rtol=1e-9)
    without = ours(PAG(0.0, w=W, negative=NULL), unet)
    assert float((made - without).abs().max()) > 1e-3, "the map makes no difference"


@pytest.mark.parametrize("sigma", [0.6, 2.0, torch.inf])
def test_seg_of_diffusers_in_a_unet(
    unet: Called, monkeypatch: pytest.MonkeyPatch, sigma: float
) -> None:
    """diffusers has the mean where the authors' code blurs, and the other way around; the other of
    its two branches is taken here."""
    theirs_blur: Any = seg_of_diffusers._gaussian_blur_2d
    monkeypatch.setattr(
        seg_of_diffusers,
        "_gaussian_blur_2d",
        lambda q, k, s, _: theirs_blur(q, k, s, torch.inf if s > 1e3 else 0.0),
    )
    config = SmoothedEnergyGuidanceConfig([0], "mid_block.attentions")
    given = sigma if sigma < torch.inf else 1e4
    guider = SmoothedEnergyGuidance(W, S, given, seg_guidance_config=config)
    expected = theirs(guider, unet, TEXT, NULL["encoder_hidden_states"].expand_as(TEXT))
    made = ours(SEG(S, w=W, negative=NULL, sigma=sigma), unet)
    torch.testing.assert_close(made, expected, atol=1e-6, rtol=1e-6)  # its kernel is float32
    assert float((made - ours(SEG(S, w=W, negative=NULL, sigma=0), unet)).abs().max()) > 1e-4


def test_transformers(pixart: Called, sd3: Called) -> None:
    """PAG and SLG by blocks; skipping in SD3 is what its own ``skip_layers`` does, as the guider
    hands on text and image in the wrong order there."""
    null = NULL["encoder_hidden_states"].expand_as(TEXT)
    pooled = {"pooled_projections": rand(2, 6, seed=3)}
    layers = "transformer_blocks.[01]"
    guiders: list[tuple[Any, Degraded]] = [
        (
            PerturbedAttentionGuidance(W, S, 0.0, 1.0, perturbed_guidance_layers=[0, 1]),
            PAG(S, layers, W, negative=NULL),
        ),
        (
            SkipLayerGuidance(W, S, 0.0, 1.0, skip_layer_config=LayerSkipConfig([0, 1])),
            SLG(S, layers, W, negative=NULL, **SPANS),
        ),
    ]
    for guider, guidance in guiders:
        made = ours(guidance, pixart)
        torch.testing.assert_close(made, theirs(guider, pixart, TEXT, null), atol=1e-9, rtol=1e-9)
    t = torch.tensor(500.0, dtype=D).expand(2)
    good, worse = sd3(X, t, TEXT, **pooled), sd3(X, t, TEXT, skip_layers=[1], **pooled)
    made = ours(SLG(S, "transformer_blocks.1", **SPANS), sd3, **pooled)
    torch.testing.assert_close(made, good + S * (good - worse), atol=1e-9, rtol=1e-9)
    with AttentionScoreSkipFunctionMode():  # the guider does not know SD3's attention
        worse = sd3(X, t, TEXT, **pooled)
    made = ours(PAG(S, "transformer_blocks"), sd3, **pooled)
    torch.testing.assert_close(made, good + S * (good - worse), atol=1e-9, rtol=1e-9)
    with pytest.raises(ValueError, match="no halving of its 8x8"):
        ours(SEG(S, layers), sd3, **pooled)


def test_pag_is_diffusers_pipeline_step_by_step(folders: dict[str, Path]) -> None:
    pipeline = read(folders["sd"])
    z, states = rand(2, 4, 8, 8, seed=5), list[Tensor]()

    def seen(_: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        states.append(given["latents"].clone())
        return given

    perturbed = diffusers.StableDiffusionPAGPipeline(
        **pipeline.components, requires_safety_checker=False, pag_applied_layers="mid"
    )
    perturbed.set_progress_bar_config(disable=True)
    perturbed(
        PROMPTS,
        num_inference_steps=3,
        guidance_scale=W,
        pag_scale=S,
        height=16,
        width=16,
        latents=z,
        output_type="latent",
        callback_on_step_end=seen,
    )
    denoiser, made = invdiff.load_model(folders["sd"], dtype=D), list[Tensor]()
    result = generate(
        denoiser,
        (2, 3, 16, 16),
        PAG(S, w=W, negative=denoiser.negative_of()),
        x_T=z,
        transition=DDIM(),
        steps=3,
        dtype=D,
        callback=lambda progress: made.append(progress.x),
        **denoiser.conditions_of(PROMPTS),
    )
    assert result.nfe == 9
    for state, other in zip(made, states, strict=True):
        torch.testing.assert_close(state, other, atol=3e-5, rtol=0)


def test_layers_are_as_before_and_images_apart(unet: Called) -> None:
    """Also under another method's gradient, through both evaluations."""
    denoiser, t = network(unet), torch.tensor(500.0, dtype=D).expand(2)
    before = unet(X, t, TEXT)
    for guidance in (PAG(), SEG(sigma=1.0), SLG(layers="mid_block.attentions", **SPANS)):
        both = generate(denoiser, X.shape, guidance, steps=3, dtype=D, encoder_hidden_states=TEXT)
        given = {"steps": 3, "dtype": D, "encoder_hidden_states": TEXT[1:]}
        one = generate(denoiser, (1, *X.shape[1:]), guidance, image_ids=[1], **given)
        torch.testing.assert_close(both.x[1:], one.x)
        assert both.nfe == 6
    measurement = invdiff.make_operator("inpaint").measure(X[:1].clone(), sigma=0.1)
    cond = {"encoder_hidden_states": TEXT[:1]}
    result = solve(measurement, denoiser, [PAG(), "dps"], steps=3, dtype=D, **cond)
    assert (result.nfe, result.nbe) == (6, 6)
    assert torch.equal(unet(X, t, TEXT), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


def test_it_acts_in_its_share_of_the_run(unet: Called) -> None:
    given = {"steps": 5, "dtype": D, "encoder_hidden_states": TEXT}
    result = generate(network(unet), X.shape, PAG(start=0.2, stop=0.6), **given)
    assert result.nfe == 5 + 2


def test_planes_of_halvings() -> None:
    assert plane(24, 4, 6) == (4, 6)
    assert plane(6, 9, 7) == (3, 2)
    q = rand(1, 2, 15, 3)
    flat = torch.ones_like(q)
    torch.testing.assert_close(blurred(flat, (5, 3), 0.8), flat)
    turned = q.unflatten(2, (5, 3)).transpose(2, 3).flatten(2, 3)
    other = blurred(turned, (3, 5), 0.8).unflatten(2, (3, 5)).transpose(2, 3).flatten(2, 3)
    torch.testing.assert_close(blurred(q, (5, 3), 0.8), other)


class Pixels(torch.nn.Module):
    """Attention as guided-diffusion's networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.middle_block = torch.nn.ModuleList([AttentionBlock(32, 4, True)])
        self.into, self.out = torch.nn.Conv2d(3, 32, 1), torch.nn.Conv2d(32, 3, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.out(self.middle_block[0](self.into(x), t))  # type: ignore[no-any-return]


def test_pixel_networks_need_no_condition() -> None:
    denoiser = network(Pixels().double())
    runs = [
        generate(denoiser, (1, 3, 4, 6), method, steps=2, dtype=D).x
        for method in ("none", PAG(), SEG(), SLG(layers="middle_block.0", **SPANS))
    ]
    for k, run in enumerate(runs):
        assert all(float((run - other).abs().max()) > 1e-6 for other in runs[:k])


def test_what_cannot_work_is_refused(unet: Called) -> None:
    def bound(guidance: Degraded, denoiser: Denoiser) -> Any:
        return guidance.bind(Setting(denoiser, (2, 4, 8, 8), None, {}, torch.device("cpu"), D))

    with pytest.raises(ValueError, match="0 <= start <= stop <= 1"):
        PAG(start=0.5, stop=0.2)
    with pytest.raises(ValueError, match="sigma must be at least 0"):
        SEG(sigma=-1)
    with pytest.raises(ValueError, match=r"no layers named blocks\.9.*net\.down_blocks"):
        bound(PAG(layers="blocks.9"), network(unet))
    with pytest.raises(ValueError, match="not a module of PyTorch"):
        bound(PAG(), network(lambda x, t: x))
    with pytest.raises(ValueError, match="gradient_checkpointing"):
        net = built(diffusers.UNet2DConditionModel, **UNET, **CROSS, cross_attention_dim=8)
        net.enable_gradient_checkpointing()
        bound(PAG(), network(Called(net)))
    with pytest.raises(ValueError, match="classifier-free guidance has nothing"):
        bound(PAG(w=2.0), network(unet))
    with pytest.raises(ValueError, match="no self-attention of net.down_blocks.0"):
        ours(PAG(layers="down_blocks.0"), unet)
    with pytest.raises(ValueError, match=r"down_blocks.1.resnets.0 cannot be left out"):
        ours(SLG(layers="down_blocks.1.resnets.0", **SPANS), unet)
    a, b = rand(2, 3, 4), rand(2, 3, 4)
    assert left_out("block", [a], b) is a
    assert left_out("block", [a], (None, b)) == (None, a)
    with pytest.raises(ValueError, match="none or several"):
        left_out("block", [a, b], (a, b))
