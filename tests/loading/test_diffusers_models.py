"""diffusers networks, built here with their own configurations, saved, loaded by name of folder or
hub id: equal to diffusers."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    ControlNetModel,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    ScoreSdeVeScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from oracles import D, NoNoise, OneStream, built, rand
from torch import Tensor

import invdiff
from invdiff import schedules
from invdiff.commands.main import main
from invdiff.guidance.cfg import CFG
from invdiff.itineraries import Straight
from invdiff.loading import hub, schedule_of
from invdiff.loading.hub import HubId, parse_hub_id
from invdiff.network import Denoiser
from invdiff.sampling import Transition, sample
from invdiff.solving import generate
from invdiff.transitions import DDIM, DDPM, Euler

pytestmark = pytest.mark.usefixtures("one_thread")

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
TEXT_UNET: dict[str, Any] = UNET | {
    "cross_attention_dim": 6,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
TRANSFORMER: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
}
PIXART = TRANSFORMER | {
    "out_channels": 8,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "caption_channels": 6,
}


def saved(folder: Path, net: Any, scheduler: Any) -> Path:
    net.save_pretrained(folder)
    scheduler.save_pretrained(folder)
    return folder


def load(folder: Path | str, **options: Any) -> Denoiser:
    return invdiff.load_model(folder, dtype=torch.float64, **options)


def sampled(
    denoiser: Denoiser,
    transition: Transition,
    shape: tuple[int, ...],
    steps: int,
    std: float = 1.0,
    **cond: Any,
) -> Tensor:
    """Our run on the network's own grid: the state at the end, in the network's range. It starts as
    diffusers does, from noise of standard deviation 1 whatever the first level's sigma; of one's
    own accord a run starts from sigma."""
    noise = OneStream()
    levels = Straight()(denoiser.schedule, steps)
    x = std * noise.randn_like(torch.empty(shape, dtype=D))
    return sample(
        denoiser,
        x,
        levels,
        schedule=denoiser.schedule,
        noise=noise,
        transition=transition,
        cond=cond,
    )


def assert_same_images(ours: Tensor, theirs: Any) -> None:
    """Our last state and the images a diffusers pipeline made of its own, (B, H, W, C) in [0,
    1]."""
    theirs = torch.as_tensor(theirs, dtype=D)
    torch.testing.assert_close(
        (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), theirs, atol=1e-5, rtol=0
    )
    assert float(((theirs > 0) & (theirs < 1)).double().mean()) > 0.3, (
        "clipped images hide differences"
    )


# Scheduler configurations -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheduler",
    [
        DDPMScheduler(),
        DDPMScheduler(beta_schedule="sigmoid", timestep_spacing="trailing"),
        DDPMScheduler(trained_betas=torch.linspace(1e-3, 0.3, 50).tolist(), num_train_timesteps=50),
        DDIMScheduler(
            beta_schedule="squaredcos_cap_v2", timestep_spacing="linspace", num_train_timesteps=600
        ),
        DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
        ),
        DDIMScheduler(
            rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction"
        ),
    ],
    ids=lambda s: s.config.beta_schedule + "-" + s.config.timestep_spacing,
)
def test_levels_and_grid_are_the_scheduler_s(scheduler: Any) -> None:
    schedule = schedule_of(json.loads(scheduler.to_json_string()))
    alpha, _ = schedule.coefficients(torch.arange(scheduler.config.num_train_timesteps, dtype=D))
    torch.testing.assert_close(alpha**2, scheduler.alphas_cumprod.double(), atol=2e-6, rtol=0)
    for steps in (2, 7, 20, 50):
        scheduler.set_timesteps(steps)
        assert schedule.times(steps).tolist() == scheduler.timesteps.tolist()


def test_what_a_configuration_leaves_out_is_the_class_s_default() -> None:
    assert schedule_of({"_class_name": "LCMScheduler"})(0).sigma ** 2 == pytest.approx(0.00085)
    assert schedule_of({"_class_name": "DDIMScheduler"})(0).sigma ** 2 == pytest.approx(1e-4)
    assert schedule_of({"_class_name": "DDIMScheduler"}).spacing == "leading"
    assert schedule_of({"_class_name": "DPMSolverMultistepScheduler"}).spacing == "uniform"
    assert (
        schedule_of(
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}
        ).spacing
        == "karras"
    )


def test_the_last_offset_step_stays_inside() -> None:
    """diffusers runs out of its table here."""
    schedule = schedule_of({"_class_name": "DDIMScheduler", "steps_offset": 1})
    assert schedule.times(1000).tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_flow_grid_is_the_scheduler_s(shift: float, inverted: bool) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, invert_sigmas=inverted)
    scheduler.set_timesteps(9)
    schedule = schedule_of(json.loads(scheduler.to_json_string()))
    torch.testing.assert_close(
        1000 * schedule.times(9), scheduler.timesteps.double(), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("kind", ["karras", "exponential"])
def test_the_edm_grid_is_the_scheduler_s(kind: str) -> None:
    scheduler = EDMEulerScheduler(sigma_schedule=kind, sigma_max=50.0, rho=6.0)
    scheduler.set_timesteps(9)
    schedule = schedule_of(json.loads(scheduler.to_json_string()))
    torch.testing.assert_close(
        schedule(schedule.times(9)).sigma, scheduler.sigmas[:-1].double(), atol=0, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"_class_name": "KarrasVeScheduler"}, "cannot be read from KarrasVeScheduler; known:"),
        ({"_class_name": "MyScheduler"}, "unknown scheduler 'MyScheduler'; known:"),
        ({"beta_start": 1e-4}, "unknown scheduler None; known:"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "laplace"}, "laplace.*known: linear"),
        (
            {"_class_name": "DDPMScheduler", "prediction_type": "flow"},
            "prediction_type 'flow'; known: epsilon",
        ),
        (
            {"_class_name": "DDPMScheduler", "timestep_spacing": "wide"},
            "timestep_spacing 'wide'; known: linspace",
        ),
        (
            {"_class_name": "EDMEulerScheduler", "prediction_type": "sample"},
            "known: epsilon, v_prediction",
        ),
    ],
)
def test_what_is_not_understood_is_said(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        schedule_of(config)


def test_options_of_samplers_are_said_to_have_no_effect() -> None:
    with pytest.warns(UserWarning, match="DDIMScheduler asks for thresholding"):
        schedule_of({"_class_name": "DDIMScheduler", "thresholding": True})
    with pytest.warns(
        UserWarning, match="FlowMatchEulerDiscreteScheduler asks for use_karras_sigmas"
    ):
        schedule_of({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_karras_sigmas": True})


# Runs equal to diffusers' own ---------------------------------------------------------------------


def pipeline(cls: Any, folder: Path) -> Any:
    made = cls.from_pretrained(folder, low_cpu_mem_usage=False).to(D)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ddpm(variance: str, tmp_path: Path) -> None:
    net = built(UNet2DModel, **UNET | {"out_channels": 6 if variance == "learned_range" else 3})
    DDPMPipeline(net, DDPMScheduler(variance_type=variance, beta_end=0.003)).save_pretrained(
        tmp_path
    )
    theirs = pipeline(DDPMPipeline, tmp_path)(
        2, torch.Generator().manual_seed(0), num_inference_steps=20, output_type="np"
    ).images
    denoiser = load(tmp_path)
    ours = sampled(
        denoiser, DDPM("large" if variance == "fixed_large" else "auto"), (2, 3, 8, 8), 20
    )
    assert (
        denoiser.learned_variance == (variance == "learned_range")
        and denoiser.source["variance"] == variance
    )
    assert_same_images(ours, theirs)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    "config", [{"clip_sample": True}, {"clip_sample": False}], ids=["clipped", "free"]
)
def test_ddim(eta: float, config: dict[str, Any], tmp_path: Path) -> None:
    DDIMPipeline(
        built(UNet2DModel, **UNET), DDIMScheduler(**config, beta_end=0.001)
    ).save_pretrained(tmp_path)
    run = pipeline(DDIMPipeline, tmp_path)
    # diffusers keeps the eps of before the clipping unless asked, after which x_t is not alpha x0 +
    # sigma eps any more
    theirs = run(
        2,
        torch.Generator().manual_seed(0),
        eta,
        20,
        use_clipped_model_output=config["clip_sample"],
        output_type="np",
    ).images
    ours = sampled(load(tmp_path), DDIM(eta), (2, 3, 8, 8), 20)
    assert_same_images(ours, theirs)


def test_v_prediction_with_zero_terminal_snr(tmp_path: Path) -> None:
    scheduler = DDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        beta_schedule="scaled_linear",
    )
    DDIMPipeline(built(UNet2DModel, **UNET), scheduler).save_pretrained(tmp_path)
    theirs = pipeline(DDIMPipeline, tmp_path)(
        2, torch.Generator().manual_seed(0), 0.0, 10, output_type="np"
    ).images
    denoiser = load(tmp_path)
    assert (
        denoiser.predicts == "v"
        and float(denoiser.schedule(denoiser.schedule.times(10)[0]).alpha) == 0
    )
    assert_same_images(sampled(denoiser, DDIM(), (2, 3, 8, 8), 10), theirs)


@pytest.mark.parametrize("clip", [True, False])
def test_consistency_models(clip: bool, tmp_path: Path) -> None:
    """Song et al. 2023, with labels: the noisiest jump, and a second one from a state that
    diffusers has noised again."""
    net = built(UNet2DModel, **UNET, num_class_embeds=4)
    scheduler = CMStochasticIterativeScheduler(clip_denoised=clip)
    ConsistencyModelPipeline(net, scheduler).save_pretrained(tmp_path)
    theirs, states, z = pipeline(ConsistencyModelPipeline, tmp_path), [], rand(2, 3, 8, 8)
    theirs.scheduler.sigmas = theirs.scheduler.sigmas.double()
    image = theirs(
        2,
        class_labels=[1, 3],
        timesteps=[22, 0],
        num_inference_steps=None,
        latents=z,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        callback=lambda i, t, x: states.append(x.clone()),
    ).images
    with pytest.warns(UserWarning, match="a sample and not a mean"):
        denoiser = invdiff.load_model(tmp_path, dtype=D)
    first, second = (float(sigma) for sigma in theirs.scheduler.sigmas[:2])
    assert first == pytest.approx(float(denoiser.schedule(denoiser.schedule.t_max).sigma))
    labels = torch.tensor([1, 3])
    fresh = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=D)
    noised = denoiser(80 * z, denoiser.schedule.at(first), label=labels).x0
    noised = noised + (second**2 - 0.002**2) ** 0.5 * fresh
    torch.testing.assert_close(noised, states[0], atol=1e-5, rtol=1e-5)
    made = denoiser(states[0], denoiser.schedule.at(second), label=labels).x0
    torch.testing.assert_close(made, states[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((made / 2 + 0.5).clamp(0, 1), image, atol=1e-5, rtol=0)
    assert bool((made.abs().max() <= 1) == clip)
    least = denoiser.schedule(denoiser.schedule.t_min)
    clean = denoiser(0.5 * z.tanh(), least, label=labels)
    torch.testing.assert_close(clean.x0, 0.5 * z.tanh())
    measurement = invdiff.make_operator("sr", factor=2).measure(torch.rand(2, 3, 8, 8), sigma=0.02)
    result = invdiff.solve(measurement, denoiser, "cm4ir", steps=4, label=labels)
    assert (result.nfe, result.nbe) == (4, 0)


def scheduled(
    scheduler: Any, call: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], steps: int
) -> Tensor:
    """diffusers' loop: scale, predict, step; from the same noise as :func:`sampled`."""
    scheduler.set_timesteps(steps)
    x = OneStream().randn_like(torch.empty(shape, dtype=D)) * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        x = scheduler.step(call(scheduler.scale_model_input(x, t), t), t, x).prev_sample.double()
    return x


@pytest.mark.parametrize("inverted", [False, True])
def test_flow_euler(inverted: bool, tmp_path: Path) -> None:
    class Flow(FlowMatchEulerDiscreteScheduler):
        init_noise_sigma = 1.0

        def scale_model_input(self, x: Tensor, t: Tensor) -> Tensor:
            return x

    net = built(
        SD3Transformer2DModel,
        **TRANSFORMER,
        out_channels=4,
        joint_attention_dim=6,
        caption_projection_dim=16,
        pooled_projection_dim=5,
    )
    text = {
        "encoder_hidden_states": rand(2, 3, 6, seed=3),
        "pooled_projections": rand(2, 5, seed=4),
    }
    denoiser = load(
        saved(tmp_path, net, FlowMatchEulerDiscreteScheduler(shift=3.0, invert_sigmas=inverted))
    )
    assert (denoiser.predicts, denoiser.data_range, denoiser.multiple) == ("velocity", None, 2)
    call = lambda x, t: net(x, timestep=t.expand(2), **text).sample  # noqa: E731
    theirs = scheduled(Flow(shift=3.0, invert_sigmas=inverted), call, (2, 4, 8, 8), 12)
    torch.testing.assert_close(
        sampled(denoiser, Euler(), (2, 4, 8, 8), 12, **text), theirs, atol=1e-5, rtol=0
    )
    assert float(theirs.std()) > 0.1
    with pytest.raises(
        ValueError,
        match="cannot run without encoder_hidden_states, pooled_projections; give each as a "
        "keyword",
    ):
        generate(denoiser, (2, 4, 8, 8), steps=2)
    with pytest.raises(TypeError, match="takes no condition of that name"):
        generate(
            denoiser, (2, 4, 8, 8), steps=2, **text, encoder_states=text["encoder_hidden_states"]
        )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("grid", ["karras", "exponential"])
def test_edm_euler(kind: str, grid: str, tmp_path: Path) -> None:
    net = built(UNet2DModel, **UNET)
    scheduler = EDMEulerScheduler(
        prediction_type=kind, sigma_schedule=grid, sigma_data=0.7, sigma_max=20.0
    )
    denoiser = load(saved(tmp_path, net, scheduler), clip=False)
    theirs = scheduled(scheduler, lambda x, t: net(x, t).sample, (2, 3, 8, 8), 8)
    ours = sampled(
        denoiser, Euler(), (2, 3, 8, 8), 8, std=float(scheduler.init_noise_sigma)
    )  # sqrt(sigma_max² + 1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_score_network_of_the_ve_sde(tmp_path: Path) -> None:
    """Shown sigma, its images in [0, 1]: x0 = x + sigma² score (Tweedie)."""
    net = built(UNet2DModel, **UNET, time_embedding_type="fourier")
    denoiser = load(saved(tmp_path, net, ScoreSdeVeScheduler(sigma_max=50.0)), clip=False)
    assert denoiser.data_range == (0.0, 1.0)
    x, sigma = rand(2, 3, 8, 8), 3.0
    score = net(x, torch.tensor(sigma, dtype=D)).sample
    torch.testing.assert_close(
        denoiser(x, denoiser.schedule.at(sigma)).x0, x + sigma**2 * score, atol=1e-5, rtol=1e-5
    )


def test_dit_under_classifier_free_guidance(tmp_path: Path) -> None:
    transformer = built(
        DiTTransformer2DModel,
        **TRANSFORMER,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    )
    vae = built(AutoencoderKL, block_out_channels=(8,), norm_num_groups=4, sample_size=8)
    DiTPipeline(transformer, vae, DDIMScheduler(clip_sample=False, beta_end=0.01)).save_pretrained(
        tmp_path
    )
    run = pipeline(DiTPipeline, tmp_path)
    theirs = run([7, 207], 3.0, torch.Generator().manual_seed(0), 10, output_type="pt").images
    denoiser = load(tmp_path)
    assert (
        denoiser.num_classes,
        denoiser.null_label,
        denoiser.learned_variance,
        denoiser.data_range,
    ) == (1000, 1000, True, None)
    latents = OneStream().randn_like(torch.empty(2, 4, 8, 8, dtype=D))
    ours = generate(
        denoiser,
        (2, 3, 8, 8),
        CFG(label=[7, 207], w=3.0),
        x_T=latents,
        transition=DDIM(),
        steps=10,
        dtype=D,
    ).x
    torch.testing.assert_close(ours, theirs.double(), atol=1e-5, rtol=0)
    assert float(theirs.std()) > 0.01


def test_sizes_that_a_transformer_does_not_take_are_refused_by_name(tmp_path: Path) -> None:
    dit = built(
        DiTTransformer2DModel,
        **TRANSFORMER | {"in_channels": 3},
        out_channels=3,
        num_embeds_ada_norm=5,
        norm_num_groups=4,
    )
    denoiser = load(saved(tmp_path / "dit", dit, DDIMScheduler(clip_sample=False)))
    assert generate(denoiser, (1, 3, 12, 12), steps=1, dtype=D).x.shape == (1, 3, 12, 12)
    with pytest.raises(ValueError, match=r"takes square states only, got 8x12; .* model.tile"):
        generate(denoiser, (1, 3, 8, 12), steps=1, dtype=D)
    windows = invdiff.load_model(tmp_path / "dit", tile=8)
    assert generate(windows, (1, 3, 8, 12), steps=1).x.shape == (1, 3, 8, 12)

    text = {
        "joint_attention_dim": 6,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 5,
        "pos_embed_max_size": 6,
    }
    sd3 = built(SD3Transformer2DModel, **TRANSFORMER | {"in_channels": 3}, out_channels=3, **text)
    denoiser = load(saved(tmp_path / "sd3", sd3, FlowMatchEulerDiscreteScheduler()))
    given = {
        "encoder_hidden_states": rand(1, 3, 6, seed=3),
        "pooled_projections": rand(1, 5, seed=4),
    }
    with pytest.raises(ValueError, match="takes states of at most 12x12, got 8x16"):
        generate(denoiser, (1, 3, 8, 16), steps=1, dtype=D, **given)


# Conditions ---------------------------------------------------------------------------------------


def told(denoiser: Denoiser, x: Tensor, t: float, **cond: Any) -> Tensor:
    """The raw output as the Denoiser's eps, of a network that predicts it."""
    return denoiser(x, denoiser.schedule(t), clip_x0=False, **cond).eps


def test_text_conditioned_unet_under_guidance(tmp_path: Path) -> None:
    net = built(UNet2DConditionModel, **TEXT_UNET)
    scheduler = DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear")
    denoiser = load(saved(tmp_path, net, scheduler))
    prompt, empty = rand(2, 5, 6, seed=1), rand(1, 5, 6, seed=2)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        cond, uncond = (
            net(x, t, encoder_hidden_states=text).sample for text in (prompt, empty.expand(2, 5, 6))
        )
        return uncond + 2.5 * (cond - uncond)

    theirs = scheduled(scheduler, guided, (2, 3, 8, 8), 10)
    method = CFG(negative={"encoder_hidden_states": empty}, w=2.5)
    x_T = OneStream().randn_like(torch.empty(2, 3, 8, 8, dtype=D))
    ours = generate(
        denoiser,
        x_T=x_T,
        method=method,
        steps=10,
        transition=DDIM(),
        dtype=D,
        encoder_hidden_states=prompt,
    ).x
    torch.testing.assert_close(2 * ours - 1, theirs, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="cannot run without encoder_hidden_states"):
        generate(denoiser, (2, 3, 8, 8), steps=2)


@pytest.mark.parametrize(
    ("config", "cond"),
    [
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 29,
            },
            {"text_embeds": rand(2, 5, seed=5), "time_ids": rand(2, 6, seed=6)},
        ),
        ({"num_class_embeds": 4}, {"label": torch.tensor([1, 3])}),
        (
            {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 7},
            {"class_labels": rand(2, 7)},
        ),
    ],
    ids=["sdxl", "classes", "class vectors"],
)
def test_added_conditions_arrive(
    config: dict[str, Any], cond: dict[str, Any], tmp_path: Path
) -> None:
    net = built(UNet2DConditionModel, **TEXT_UNET, **config)
    denoiser = load(saved(tmp_path, net, DDPMScheduler()))
    x, text = rand(2, 3, 8, 8), rand(2, 5, 6, seed=1)
    added = {k: v for k, v in cond.items() if k in ("text_embeds", "time_ids")}
    labels = cond.get("label", cond.get("class_labels"))
    expected = net(
        x, 400, encoder_hidden_states=text, class_labels=labels, added_cond_kwargs=added or None
    ).sample
    torch.testing.assert_close(told(denoiser, x, 400, encoder_hidden_states=text, **cond), expected)
    for name in set(cond) - {"label"}:
        with pytest.raises(ValueError, match=f"cannot run without .*{name}"):
            generate(
                denoiser,
                (2, 3, 8, 8),
                steps=2,
                encoder_hidden_states=text,
                **{k: v for k, v in cond.items() if k != name},
            )


def test_networks_without_attention_to_text_need_none(tmp_path: Path) -> None:
    plain = {
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
        "mid_block_type": None,
    }
    net = built(UNet2DConditionModel, **TEXT_UNET | plain)
    x = rand(2, 3, 8, 8)
    torch.testing.assert_close(
        told(load(saved(tmp_path, net, DDPMScheduler())), x, 400),
        net(x, 400, encoder_hidden_states=None).sample,
    )


def test_image_condition_comes_after_the_state_in_diffusers(tmp_path: Path) -> None:
    """An inpainting UNet: [state, mask and masked image]."""
    net = built(UNet2DConditionModel, **TEXT_UNET | {"in_channels": 7})
    denoiser = load(saved(tmp_path, net, DDPMScheduler()))
    x, beside, text = rand(2, 3, 8, 8), rand(2, 4, 8, 8, seed=8), rand(2, 5, 6, seed=1)
    assert denoiser.cond_channels == 4
    expected = net(torch.cat([x, beside], 1), 400, encoder_hidden_states=text).sample
    torch.testing.assert_close(
        told(denoiser, x, 400, cond=beside, encoder_hidden_states=text), expected
    )


@pytest.mark.parametrize("case", ["pixart", "pixart sizes", "sana", "old dit"])
def test_transformers(case: str, tmp_path: Path) -> None:
    text = {
        "encoder_hidden_states": rand(2, 3, 6, seed=3),
        "encoder_attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
    }
    cond: dict[str, Any] = {}
    scale = 1.0
    if case == "sana":
        heads = {
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
        }
        net = built(
            SanaTransformer2DModel,
            **TRANSFORMER,
            **heads,
            out_channels=4,
            caption_channels=6,
            patch_size=1,
            timestep_scale=0.5,
        )
        scale = 0.5
    elif case == "old dit":
        net = built(
            DiTTransformer2DModel,
            **TRANSFORMER,
            out_channels=8,
            num_embeds_ada_norm=5,
            norm_num_groups=4,
        )
        text, cond = {"label": torch.tensor([2, 5])}, {}
    elif case == "pixart":
        net = built(PixArtTransformer2DModel, **PIXART)
    else:
        net = built(
            PixArtTransformer2DModel,
            **PIXART | {"attention_head_dim": 12, "cross_attention_dim": 24},
            use_additional_conditions=True,
        )
        cond = {"resolution": rand(2, 2, seed=5), "aspect_ratio": rand(2, 1, seed=6)}
    saved(tmp_path, net, DPMSolverMultistepScheduler())
    if case == "old dit":
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(
            json.dumps(config | {"_class_name": "Transformer2DModel"})
        )
    denoiser = load(tmp_path)
    x, t = rand(2, 4, 8, 8), torch.full((2,), 400, dtype=D)
    assert set(denoiser.required) == (
        set() if case == "old dit" else {"encoder_hidden_states"} | set(cond)
    )
    given = {"class_labels" if k == "label" else k: v for k, v in text.items()}
    added = {"added_cond_kwargs": cond} if cond else {}
    expected = net(x, timestep=t * scale, **given, **added).sample[:, :4]
    torch.testing.assert_close(told(denoiser, x, 400, **text, **cond), expected)


# ControlNet ---------------------------------------------------------------------------------------


def control_folder(tmp_path: Path, zero: bool) -> tuple[Any, Any, Path, Path]:
    """(network, ControlNet, their folders); as made from the network a ControlNet's output layers
    are zero."""
    net = built(UNet2DConditionModel, **TEXT_UNET)
    control = (
        ControlNetModel.from_unet(net, conditioning_embedding_out_channels=(8, 8))
        .double()
        .eval()
        .requires_grad_(False)
    )
    if not zero:
        for n, p in control.named_parameters():
            if "controlnet" in n:
                p.copy_(rand(*p.shape, seed=len(n)) * 0.2)
    control.save_pretrained(tmp_path / "control")
    return net, control, saved(tmp_path / "net", net, DDPMScheduler()), tmp_path / "control"


def test_a_zero_initialised_controlnet_is_the_base_network(tmp_path: Path) -> None:
    _, _, folder, control = control_folder(tmp_path, zero=True)
    base, controlled = load(folder), load(folder, controlnet=control)
    x, cond = rand(2, 3, 8, 8), {"encoder_hidden_states": rand(2, 5, 6, seed=1)}
    image = rand(2, 3, 16, 16, seed=4)
    assert torch.equal(told(controlled, x, 300, control=image, **cond), told(base, x, 300, **cond))


@pytest.mark.parametrize(
    "scale", [0.7, torch.tensor([0.7, 0.2], dtype=D)], ids=["one scale", "per image"]
)
def test_controlnet_is_diffusers_own(scale: Any, tmp_path: Path) -> None:
    net, control, folder, path = control_folder(tmp_path, zero=False)
    denoiser = load(folder, controlnet=path)
    x, text, image = rand(2, 3, 8, 8), rand(2, 5, 6, seed=1), rand(2, 3, 16, 16, seed=4)
    expected = []
    for k in range(2):  # image by image: diffusers' scale is one number
        one = slice(k, k + 1)
        s = float(scale[k]) if isinstance(scale, Tensor) else scale
        down, middle = control(
            x[one],
            300,
            text[one],
            controlnet_cond=image[one],
            conditioning_scale=s,
            return_dict=False,
        )
        expected.append(
            net(
                x[one],
                300,
                text[one],
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
            )[0]
        )
    out = told(denoiser, x, 300, encoder_hidden_states=text, control=image, control_scale=scale)
    torch.testing.assert_close(out, torch.cat(expected))
    without = told(load(folder), x, 300, encoder_hidden_states=text)
    assert float((out - without).abs().max()) > 0.01
    torch.testing.assert_close(
        told(denoiser, x, 300, encoder_hidden_states=text, control=image, control_scale=0.0),
        without,
    )


def test_controlnet_under_guidance_and_on_padded_sizes(tmp_path: Path) -> None:
    _, _, folder, path = control_folder(tmp_path, zero=False)
    denoiser = load(folder, controlnet=path)
    text, image, empty = rand(2, 5, 6, seed=1), rand(2, 3, 14, 18, seed=4), rand(1, 5, 6, seed=2)
    results = []
    for batched in (True, False):
        method = CFG(negative={"encoder_hidden_states": empty}, w=2.0, batched=batched)
        run = generate(
            denoiser,
            (2, 3, 7, 9),
            method,
            steps=3,
            dtype=D,
            encoder_hidden_states=text,
            control=image,
            control_scale=0.5,
        )
        results.append(run.x)
    torch.testing.assert_close(*results)
    with pytest.raises(
        ValueError,
        match=r"conditioned on an image of shape \(2, 3, 16, 16\).*control of shape \(2, 3, 8, 8\)",
    ):
        told(denoiser, rand(2, 3, 8, 8), 300, encoder_hidden_states=text, control=rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="cannot run without control"):
        generate(denoiser, (2, 3, 8, 8), steps=2, encoder_hidden_states=text)


def test_a_controlnet_of_another_network_is_refused(tmp_path: Path) -> None:
    _, _, _, path = control_folder(tmp_path, zero=True)
    plain = saved(tmp_path / "plain", built(UNet2DModel, **UNET), DDPMScheduler())
    with pytest.raises(ValueError, match="guides a UNet2DConditionModel or .*, not a UNet2DModel"):
        load(plain, controlnet=path)
    other = saved(
        tmp_path / "other",
        built(UNet2DConditionModel, **TEXT_UNET | {"block_out_channels": (8, 24)}),
        DDPMScheduler(),
    )
    with pytest.raises(
        ValueError,
        match=r"another network: its blocks have \(8, 16\) channels, the network's \(8, 24\)",
    ):
        load(other, controlnet=path)


# One network, every schedule ----------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["ve", "edm", "flow", "subvp"])
def test_an_eps_network_of_a_vp_schedule_runs_on_every_grid(grid: str, tmp_path: Path) -> None:
    """The same clean image and noise, put into the frame of another schedule, are denoised to the
    same image."""
    denoiser = load(saved(tmp_path, built(UNet2DModel, **UNET), DDPMScheduler()))
    foreign = getattr(schedules, grid)()
    x0, eps = rand(2, 3, 8, 8).clamp(-1, 1), rand(2, 3, 8, 8, seed=1)
    for t in (20.0, 300.0, 700.0):
        own = denoiser.schedule(t)
        other = foreign.at(own.ratio)
        expected = denoiser(own.alpha * x0 + own.sigma * eps, own)
        found = denoiser(other.alpha * x0 + other.sigma * eps, other)
        torch.testing.assert_close(found.x0, expected.x0, atol=1e-6, rtol=0)
        torch.testing.assert_close(found.eps, expected.eps, atol=1e-6, rtol=1e-6)
    levels = Straight()(foreign, 4)
    x = sample(
        denoiser,
        levels[0].sigma * eps,
        levels,
        schedule=foreign,
        noise=NoNoise(),
        transition=DDIM(),
    )
    assert bool(torch.isfinite(x).all()) and float(x.abs().max()) <= 1


# What a folder may hold ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A lone network with its scheduler."""
    return saved(tmp_path / "net", built(UNet2DModel, **UNET), DDPMScheduler())


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_latents_have_no_image_range(tmp_path: Path) -> None:
    four = saved(
        tmp_path / "four",
        built(UNet2DModel, **UNET | {"in_channels": 4, "out_channels": 4}),
        DDPMScheduler(),
    )
    assert load(four).data_range is None and not load(four).clip
    three = saved(tmp_path / "three", built(UNet2DModel, **UNET), DDPMScheduler())
    assert load(three).data_range == (-1.0, 1.0) and load(three).clip
    (three / "vqvae").mkdir()
    (three / "vqvae" / "config.json").write_text('{"_class_name": "VQModel"}')
    assert load(three, autoencoder=False).data_range is None
    assert load(three, autoencoder=False, data_range=(0.0, 1.0)).data_range == (0.0, 1.0)


def test_averaged_weights_are_preferred(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    DDPMPipeline(built(UNet2DModel, seed=1, **UNET), DDPMScheduler()).save_pretrained(run)
    shutil.copytree(run / "unet", run / "unet_ema")
    built(UNet2DModel, seed=2, **UNET).save_pretrained(run / "unet_ema")
    with pytest.warns(
        UserWarning, match="averaged weights 'unet_ema' are used; weights='unet' takes the others"
    ):
        assert (
            load(run).hash == Denoiser(load(run).net, schedule=schedules.linear()).hash
        )  # of the adapter's weights
    shutil.copy(run / "unet_ema" / "diffusion_pytorch_model.safetensors", folder)
    assert load(run).hash == load(folder).hash and "unet_ema" in load(run).source["weights"]
    assert (
        load(run, weights="unet").source["weights"].startswith("unet/")
        and load(run, weights="unet").hash != load(run).hash
    )
    with pytest.raises(ValueError, match="no network 'unet_em'; it has 'unet_ema', 'unet'"):
        load(run, weights="unet_em")
    shutil.copy(
        run / "unet" / "diffusion_pytorch_model.safetensors",
        folder / "diffusion_pytorch_model.non_ema.safetensors",
    )
    with pytest.warns(
        UserWarning,
        match="averaged weights diffusion_pytorch_model.safetensors are used, not .*non_ema",
    ):
        assert load(folder).hash == load(run).hash


def test_only_half_precision_weights(folder: Path) -> None:
    UNet2DModel.from_pretrained(folder).half().save_pretrained(folder, variant="fp16")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    denoiser = load(folder)
    assert (
        denoiser.source["storage"] == "F16"
        and denoiser.source["weights"] == "diffusion_pytorch_model.fp16.safetensors"
    )


def test_pickles_only_when_allowed(folder: Path) -> None:
    expected = load(folder).hash
    UNet2DModel.from_pretrained(folder, torch_dtype=D).save_pretrained(
        folder, safe_serialization=False
    )
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="as a pickle .*allow_pickle=True"):
        load(folder)
    assert load(folder, allow_pickle=True).hash == expected


@pytest.mark.parametrize("how", ["script", "auto_map", "class list", "pipeline class"])
def test_custom_code_is_refused(how: str, folder: Path) -> None:
    marker = folder / "ran"
    (folder / "my_net.py").write_text(f"open({str(marker)!r}, 'w')")
    if how != "script":
        (folder / "my_net.py").rename(folder.parent / "my_net.py")
    if how == "auto_map":
        edit(folder / "config.json", auto_map={"AutoModel": "my_net.Net"})
    if how == "class list":
        edit(folder / "config.json", _class_name=["my_net", "Net"])
    if how == "pipeline class":
        (folder / "model_index.json").write_text('{"_class_name": ["my_net", "Pipeline"]}')
    with pytest.raises(ValueError, match="custom code.*never run"):
        load(folder)
    assert not marker.exists()


def test_nothing_loads_half(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({k: v for k, v in weights.items() if k != "conv_in.bias"}, file)
    with pytest.raises(ValueError, match="1 missing keys, nothing was loaded: conv_in.bias"):
        load(folder)
    save_file(weights | {"extra.bias": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="1 unexpected keys, nothing was loaded: extra.bias"):
        load(folder)
    save_file(weights | {"conv_in.bias": weights["conv_in.bias"] / 0}, file)
    with pytest.raises(ValueError, match="not finite.*: conv_in.bias"):
        load(folder)


def test_networks_that_are_not_covered_are_named(tmp_path: Path) -> None:
    net = AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=4,
        num_attention_heads=1,
        joint_attention_dim=6,
        caption_projection_dim=4,
        pos_embed_max_size=16,
    )
    with pytest.raises(
        ValueError,
        match="holds a AuraFlowTransformer2DModel.*read from a folder: UNet2DModel, .*wrap it",
    ):
        load(saved(tmp_path, net, FlowMatchEulerDiscreteScheduler()))


def test_variance_that_is_not_understood(folder: Path) -> None:
    edit(folder / "scheduler_config.json", variance_type="learned")
    with pytest.raises(ValueError, match="variance_type 'learned' is not understood"):
        load(folder)


def test_a_schedule_of_one_s_own(folder: Path) -> None:
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(folder)
    assert isinstance(load(folder).schedule, schedules.SizedFlow)
    denoiser = load(folder, schedule=schedules.flow(shift=2.0))
    assert denoiser.predicts == "velocity" and denoiser.schedule.times(4)[-1] == pytest.approx(0.4)
    (folder / "scheduler_config.json").unlink()
    with pytest.raises(ValueError, match="no scheduler_config.json.*give schedule= and predicts="):
        load(folder)
    assert load(folder, schedule=schedules.cosine(), predicts="v").predicts == "v"


def shown(denoiser: Denoiser, ratio: float) -> float:
    """The time the network is shown at a noise-to-signal ratio."""
    times: list[float] = []
    denoiser.net.register_forward_pre_hook(lambda _, args: times.append(float(args[1][0])))  # type: ignore[attr-defined]
    denoiser(rand(1, 3, 8, 8), denoiser.schedule.at(ratio))
    return times[0]


@pytest.mark.parametrize(
    ("scheduler", "options", "time"),
    [
        (FlowMatchEulerDiscreteScheduler(), {"schedule": schedules.flow(3.0)}, 500.0),
        (
            FlowMatchEulerDiscreteScheduler(),
            {"schedule": schedules.flow(3.0), "predicts": "velocity"},
            500.0,
        ),
        (
            FlowMatchEulerDiscreteScheduler(),
            {"schedule": "flow", "predicts": "velocity", "time": lambda t: 7 * t},
            3.5,
        ),
        (EDMEulerScheduler(), {"schedule": schedules.edm(0.01, 50.0), "predicts": "edm"}, 0.0),
        (ScoreSdeVeScheduler(), {"schedule": schedules.ve(0.01, 348.0)}, 1.0),
        (ScoreSdeVeScheduler(), {"schedule": schedules.edm(), "predicts": "score"}, 1.0),
        (
            FlowMatchEulerDiscreteScheduler(),
            {"schedule": schedules.linear(), "predicts": "eps"},
            float(schedules.linear().at(1.0).t),
        ),
    ],
    ids=["flow", "flow and velocity", "time", "EDM", "VE", "VE on EDM", "flow to betas"],
)
def test_a_schedule_of_one_s_own_is_counted_as_the_configuration_says(
    scheduler: Any,
    options: dict[str, Any],
    time: float,
    folder: Path,
    recwarn: pytest.WarningsRecorder,
) -> None:
    scheduler.save_pretrained(folder)
    assert shown(load(folder, **options), 1.0) == pytest.approx(time)
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_what_else_the_configuration_says_holds_under_options_that_do_not_contradict_it(
    folder: Path,
) -> None:
    EDMEulerScheduler(prediction_type="v_prediction", sigma_data=1.0).save_pretrained(folder)
    denoiser = load(folder, schedule=schedules.edm(), predicts="edm")
    assert (denoiser.sigma_data, denoiser.net.sign) == (1.0, -1.0)
    assert load(folder, schedule=schedules.linear(), predicts="eps").net.sign == 1.0


@pytest.mark.parametrize("config", [None, '{"_class_name": "MyScheduler"}'])
def test_a_time_that_nothing_explains_is_warned_about(config: str | None, folder: Path) -> None:
    (folder / "scheduler_config.json").unlink()
    if config is not None:
        (folder / "scheduler_config.json").write_text(config)
    options = {"schedule": schedules.flow(), "predicts": "velocity"}
    with pytest.warns(
        UserWarning,
        match=r"Flow schedule is not known, so its time input is t from 0.001 to 1; .*time=",
    ):
        assert shown(load(folder, **options), 1.0) == 0.5
    assert shown(load(folder, **options, time=lambda t: 1000 * t), 1.0) == 500


def test_a_distilled_network_is_said_to_be_one(tmp_path: Path) -> None:
    net = built(UNet2DConditionModel, **TEXT_UNET, time_cond_proj_dim=12)
    with pytest.warns(UserWarning, match=r"distilled network.*Renoise.*timestep_cond= \(B, 12\)"):
        denoiser = load(saved(tmp_path, net, LCMScheduler()))
    assert denoiser.takes("timestep_cond")


def test_unknown_options_are_refused_before_anything_is_read(folder: Path) -> None:
    with pytest.raises(ValueError, match="no parameter 'controlnets'. Did you mean 'controlnet'"):
        load(folder, controlnets="x")


# The hub ------------------------------------------------------------------------------------------


def test_what_is_a_hub_id() -> None:
    assert parse_hub_id("google/ddpm-cifar10-32") == HubId("google/ddpm-cifar10-32", "main", "")
    assert parse_hub_id("a/b@refs/pr/3:sd/unet") == HubId("a/b", "refs/pr/3", "sd/unet")
    for path in (
        "./foo",
        "../foo/bar",
        "foo/bar/baz",
        "/foo/bar",
        "~/foo",
        "foo",
        "runs/model.pt",
        "runs/model.safetensors",
        "a/b:../c",
    ):
        assert parse_hub_id(path) is None, path


@pytest.mark.parametrize("path", ["./foo", "foo/bar/baz", "runs/model.pt", Path("foo/bar")])
def test_a_path_that_is_not_there_never_reaches_the_hub(
    path: str | Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "download", lambda _: pytest.fail("the hub was asked"))
    with pytest.raises(
        ValueError,
        match="no folder or file .*not a model of the hub either, which is written owner/name",
    ):
        invdiff.load_model(path)


def test_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Once with the switch that huggingface_hub has for it, once with a hub that takes calls and
    never answers."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with monkeypatch.context() as m:
        m.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(
            ValueError,
            match="no local folder a/b, .* revision 'main': .*HF_HUB_OFFLINE is set.*--local-dir "
            "FOLDER",
        ):
            invdiff.load_model("a/b")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub, "TIMEOUT", 0.5)
        begun = time.monotonic()
        with pytest.raises(ValueError, match="127.0.0.1.* gave nothing .*Timeout"):
            invdiff.load_model("a/b@v2")
        assert time.monotonic() - begun < 10


def test_from_the_hub_s_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub's own cache layout, read offline, with a revision and a folder within."""
    from huggingface_hub import constants

    repo = tmp_path / "cache" / "models--a--b"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "v2").write_text("0123456789" * 4)
    shutil.copytree(folder, repo / "snapshots" / ("0123456789" * 4) / "sub" / "net")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    denoiser = load("a/b@v2:sub/net")
    assert (
        denoiser.hash == load(folder).hash
        and denoiser.name == "a/b"
        and denoiser.source["id"] == "a/b@v2:sub/net"
    )
    with pytest.raises(ValueError, match="'main'"):
        load("a/b")


def test_what_is_asked_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations and safetensors; never code, never pickles."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, Any] = {}
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **k: asked.update(info=k))
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda repo, **k: asked.update(k, repo=repo) or str(folder),
    )
    assert load("a/b@v2").name == "a/b"
    assert (
        asked["repo"] == "a/b"
        and asked["revision"] == "v2"
        and not asked["local_files_only"]
        and asked["info"]["timeout"] <= 10
    )
    there = [
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/net.py",
        "x.pt",
    ]
    there += [
        "diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "big.safetensors",
    ]
    taken = filter_repo_objects(
        there, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(taken) == [there[0], there[1], there[5]]


# invdiff info -------------------------------------------------------------------------------------


def test_info_says_what_was_recognised(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "README.md").write_text(
        "---\nlicense: cc-by-4.0\ndatasets:\n- bsd500\n- t91\n---\n# A network\n"
    )
    assert main(["info", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    expected = {
        "kind": "diffusers folder",
        "network": "UNet2DModel",
        "predicts": "eps",
        "schedule": "Discrete, 1000 levels",
        "spacing": "leading",
        "data range": [-1.0, 1.0],
        "trained at": 8,
        "classes": None,
        "parameters": sum(p.numel() for p in UNet2DModel(**UNET).parameters()),
        "stored as": "F64",
        "licence": "cc-by-4.0",
        "training data": "bsd500, t91",
        "SHA-256 of the weights": invdiff.load_model(folder).hash,
    }
    assert {k: facts.get(k) for k in expected} == expected
    (folder / "README.md").write_text("---\n: broken [\n---\n")
    assert "licence" not in invdiff.load_model(folder).source


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "loading-your-checkpoint.md").read_text()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(
        r"```python\n(.*?)```", page.split("## Checkpoint files")[0], re.DOTALL
    ):  # test_checkpoints runs the rest
        exec(block, names)
    assert names["dit"].null_label == 10 and names["controlled"].required == (
        "encoder_hidden_states",
        "control",
    )
