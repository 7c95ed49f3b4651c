"""Checkpoint files of other packages, denoisers and plain functions as priors.

The numbers under "official" were computed once with the code of openai/guided-diffusion and
yang-song/score_sde_pytorch, from the parameters and inputs that :func:`fill` and :func:`image`
make; none of that code is here.
"""

from __future__ import annotations

import inspect
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import deepinv
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import D, OneStream, correlated, in_floors, rand
from safetensors.torch import save_file
from torch import Tensor

from invdiff import Denoiser, Measurement, generate, load_model, make_operator, schedules, solve
from invdiff.guidance.classifier import ClassifierGuidance
from invdiff.guidance.dps import DPS
from invdiff.guidance.sr3 import SR3
from invdiff.itineraries import Straight
from invdiff.loading import adm_network as adm_module
from invdiff.loading import adm_published, from_deepinv, load_classifier
from invdiff.loading.adm import ADM, ADMClassifier, Architecture, _divided, architecture
from invdiff.loading.checkpoint import Found
from invdiff.loading.source import Source
from invdiff.network import NoisyClassifier
from invdiff.sampling import sample
from invdiff.transitions import DDIM

pytestmark = pytest.mark.usefixtures("one_thread")

T, LABELS = torch.tensor([3.0, 777.5]), torch.tensor([1, 6])
SMALL: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 6,
    "model_channels": 64,
    "channels": (64, 128),
    "blocks": 1,
    "attention": (1,),
}


def fill(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Parameters that need no random numbers."""
    made = {}
    for i, name in enumerate(sorted(shapes)):
        k = torch.arange(math.prod(shapes[name]), dtype=D, device="cpu")
        scale = 1.0 if "qkv" in name or "NIN" in name else 0.1  # an attention that is not uniform
        made[name] = (
            (scale * torch.sin(k * (0.7 + 0.01 * (i % 7)) ** 2 + i)).float().view(shapes[name])
        )
    return made


def image(*shape: int, at: float = 0.0) -> Tensor:
    return torch.cos(0.37 * torch.arange(math.prod(shape), dtype=D) + at).float().view(shape)


def shapes_of(net: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def tiny(**changes: Any) -> dict[str, Tensor]:
    """A state dict with guided-diffusion's names."""
    with torch.device("meta"):
        return fill(shapes_of(ADM(Architecture(**(SMALL | changes)))))


def saved(folder: Path, held: Any, name: str = "net.pt") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(held, path)
    else:
        torch.save(held, path)
    return path


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is assumed of attention heads and schedules is tested once."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* does not say ")
        yield


# guided-diffusion ---------------------------------------------------------------------------------

OFFICIAL: dict[str, tuple[dict[str, Any], dict[str, Any], list[float]]] = {
    "class_conditional": (
        {"rows": 7},
        {},
        [
            -0.028077,
            0.025926,
            0.070088,
            0.090276,
            0.080439,
            0.044452,
            -0.045388,
            0.017568,
            0.072758,
            0.10331,
            0.100605,
            0.066747,
        ],
    ),
    "upsampler": (
        {"rows": 7, "in_channels": 6},
        {},
        [
            -0.029136,
            0.025467,
            0.070344,
            0.091182,
            0.081772,
            0.04588,
            -0.048739,
            0.015255,
            0.072056,
            0.104394,
            0.103205,
            0.07022,
        ],
    ),
    "improved_diffusion": (  # convolutions between resolutions, the embedding is added, 4 heads
        {"out_channels": 3, "resample": "conv", "scale_shift": False},
        {},
        [-0.053053, -0.069196, -0.08779, -0.026104, -0.093331, -0.070585],
    ),
    "new_attention_order": (
        {"out_channels": 3},
        {"num_head_channels": 32, "new_attention_order": True},
        [-0.136204, -0.121633, -0.084245, -0.124158, -0.12137, -0.095789],
    ),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_guided_diffusion_is_equal_to_the_official_code(name: str, tmp_path: Path) -> None:
    changes, options, official = OFFICIAL[name]
    denoiser = load_model(saved(tmp_path, tiny(**changes)), **options)
    x = image(2, 3, 16, 16)
    if name == "upsampler":
        low = F.interpolate(image(2, 3, 4, 4, at=1.0), (16, 16), mode="bilinear")
        x = torch.cat([low, x], dim=1)  # as a Denoiser joins them
    with torch.no_grad():
        out = denoiser.net(x, T, **({"label": LABELS} if "rows" in changes else {}))
    torch.testing.assert_close(
        out[:, :, 5, 9].flatten(), torch.tensor(official), atol=2e-6, rtol=1e-5
    )
    made = changes.get("out_channels", 6)
    assert (denoiser.channels, denoiser.learned_variance, denoiser.multiple) == (3, made == 6, 2)
    assert (denoiser.num_classes, denoiser.null_label) == (changes.get("rows"), None)
    assert (denoiser.predicts, denoiser.data_range) == ("eps", (-1.0, 1.0))


def shrunken_diffunet() -> Any:
    """deepinv's DiffUNet by its own constructor, a quarter as wide."""
    source = inspect.getsource(deepinv.models.DiffUNet)
    for old, new in (
        ("model_channels = 128", "model_channels = 32"),
        ("num_head_channels = 64", "num_head_channels = 32"),
    ):
        assert source.count(old) == 1
        source = source.replace(old, new)
    space: dict[str, Any] = dict(vars(inspect.getmodule(deepinv.models.DiffUNet)))
    exec(compile(textwrap.dedent(source), "diffunet", "exec"), space)
    return space["DiffUNet"]


@pytest.mark.parametrize("size", ["quarter", pytest.param("full", marks=pytest.mark.slow)])
def test_state_dicts_of_diffunet_go_in_and_out(size: str, tmp_path: Path) -> None:
    make = shrunken_diffunet() if size == "quarter" else deepinv.models.DiffUNet
    theirs, again = make(pretrained=None).eval(), make(pretrained=None).eval()
    constants = {k: v for k, v in theirs.state_dict().items() if k.startswith("sqrt_")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, p in theirs.named_parameters():
            torch.nn.init.normal_(p, std=0.3 if "qkv" in name else 0.1)
    denoiser = load_model(
        saved(tmp_path, theirs.state_dict()), num_head_channels=32 if size == "quarter" else 64
    )
    again.load_state_dict(denoiser.net.state_dict() | constants)
    x, t = image(2, 3, 64, 32), torch.tensor([5.0, 431.0])
    with torch.no_grad():
        expected, out, back = (
            theirs.forward_diffusion(x, t),
            denoiser.net(x, t),
            again.forward_diffusion(x, t),
        )
    assert expected.shape == out.shape == (2, 6, 64, 32), "the variance's channels are kept"
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(back, expected, atol=1e-5, rtol=1e-5)
    assert (denoiser.learned_variance, denoiser.multiple) == (True, 32)
    assert denoiser.image_size == (256 if size == "full" else None)


def test_levels_padding_and_variance_through_the_denoiser(tmp_path: Path) -> None:
    denoiser = load_model(saved(tmp_path, tiny()))
    x, level = image(2, 3, 13, 10), schedules.linear(1000)(400)
    with torch.no_grad():
        p = denoiser(x, level, clip_x0=False)
        eps, v = denoiser.net(F.pad(x, (0, 0, 0, 1), mode="reflect"), torch.full((2,), 400.0))[
            :, :, :13
        ].chunk(2, dim=1)
    torch.testing.assert_close(p.eps, eps)
    torch.testing.assert_close(p.variance_fraction, (v + 1) / 2)
    result = solve(
        make_operator("inpaint", mask="box").measure(image(1, 3, 13, 10).abs(), sigma=0.05),
        denoiser,
        DPS(),
        steps=2,
    )
    assert result.x.shape == (1, 3, 13, 10) and (result.nfe, result.nbe) == (2, 2)


def test_gradient_checkpointing_is_equal(tmp_path: Path) -> None:
    path = saved(tmp_path, tiny())
    grads = []
    for on in (False, True):
        x = image(1, 3, 16, 16).requires_grad_()
        load_model(path, gradient_checkpointing=on)(
            x, schedules.linear(1000)(400)
        ).x0.square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


def published(classifier: bool) -> Iterator[tuple[Architecture, Any]]:
    for (shown, width, mult, blocks, attention), known in (
        adm_published.CLASSIFIERS if classifier else adm_published.DENOISERS
    ).items():
        channels = tuple(int(width * m) for m in mult)
        head = (
            {"pool": "attention", "pool_size": known.size // 2 ** (len(mult) - 1)}
            if classifier
            else {"rows": 1000}
        )
        yield (
            Architecture(
                shown, 1000 if classifier else 6, width, channels, blocks, attention, **head
            ),
            known,
        )


@pytest.mark.parametrize("classifier", [False, True])
def test_every_published_architecture_is_recognised(
    classifier: bool, recwarn: pytest.WarningsRecorder
) -> None:
    seen = []
    for expected, known in published(classifier):
        with torch.device("meta"):
            net = (ADMClassifier if classifier else ADM)(expected)
        assert architecture(shapes_of(net)) == expected
        a, assumed = _divided(
            Source("net.pt"),
            Found("", dict(net.state_dict()), False),
            (None, None, None),
            ask_schedule=True,
        )
        assert assumed is known
        seen.append(
            (
                known.size,
                a.heads or f"{a.head_channels} channels",
                a.new_order,
                assumed.schedule.__name__,
            )
        )
    each = "64 channels"
    if classifier:
        assert seen == [
            (64, each, False, "cosine"),
            (128, each, False, "linear"),
            (256, each, False, "linear"),
            (512, each, False, "linear"),
        ]
    else:  # as in guided-diffusion's README, then FFHQ
        assert seen == [
            (64, each, True, "cosine"),
            (128, 4, False, "linear"),
            (256, each, False, "linear"),
            (512, each, False, "linear"),
            (256, 4, False, "linear"),
            (512, each, False, "linear"),
            (256, each, False, "linear"),
        ]
    assert not recwarn.list, "nothing was assumed"


@pytest.mark.parametrize("resample", ["block", "conv", "plain"])
@pytest.mark.parametrize("channels", [(64,), (32, 64, 64), (64, 64, 64, 128)])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_architectures_are_read_back(resample: str, channels: tuple[int, ...], blocks: int) -> None:
    for attention in ((), (len(channels) - 1,), tuple(range(len(channels)))):
        a = Architecture(3, 3, 64, channels, blocks, attention, None, False, resample, 32)
        with torch.device("meta"):
            found = architecture(shapes_of(ADM(a)))
        expected = "block" if len(channels) == 1 else resample  # nothing is resampled
        assert found == Architecture(
            3, 3, 64, channels, blocks, attention, None, False, expected, 64
        )


def test_what_the_file_does_not_say_is_said_or_asked(tmp_path: Path) -> None:
    path = saved(tmp_path, tiny())
    x, outputs = image(1, 3, 16, 16), []
    with pytest.warns(
        UserWarning,
        match=r"64 channels a head are assumed.*num_heads=.*; nor its noise schedule: "
        r"linear\(1000\) is assumed",
    ):
        outputs.append(load_model(path).net(x, T[:1]))
    with pytest.warns(UserWarning, match="does not say its noise schedule"):
        load_model(path, num_heads=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(
            saved(tmp_path, {"betas": torch.full((5,), 0.1), **tiny()}, "betas.pt"), num_heads=2
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = ({"num_heads": 2}, {"num_heads": 8}, {"num_head_channels": 16})
        outputs += [load_model(path, schedule=schedules.linear(), **o).net(x, T[:1]) for o in given]
    assert (
        torch.equal(outputs[0], outputs[1])
        and torch.equal(outputs[2], outputs[3])
        and not torch.equal(outputs[0], outputs[2])
    )
    with pytest.raises(ValueError, match="num_heads or num_head_channels, not both"):
        load_model(path, num_heads=2, num_head_channels=64)
    with pytest.raises(ValueError, match="128 channels cannot be divided by num_heads=3"):
        load_model(path, num_heads=3)


def test_null_labels_only_where_they_are_said(tmp_path: Path) -> None:
    path, x, level = saved(tmp_path, tiny(rows=7)), image(2, 3, 16, 16), schedules.linear(1000)(400)
    with pytest.raises(ValueError, match="no null class"):
        load_model(path)(x, level)
    denoiser = load_model(path, null_label=6)
    assert (denoiser.num_classes, denoiser.null_label) == (6, 6)
    torch.testing.assert_close(denoiser(x, level).eps, load_model(path)(x, level, label=6).eps)


def test_an_upsampler_sees_the_image_after_the_state_enlarged_bilinearly(tmp_path: Path) -> None:
    denoiser = load_model(saved(tmp_path, tiny(in_channels=6)))
    assert (denoiser.cond_channels, denoiser.channels, denoiser.learned_variance) == (3, 3, True)
    small = image(1, 3, 4, 4).abs()
    seen: list[Tensor] = []
    denoiser.net.input_blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # type: ignore[union-attr, operator]
    solve(Measurement(small, make_operator("sr", factor=4), sigma=0.0), denoiser, SR3(), steps=1)
    torch.testing.assert_close(
        seen[0][:, 3:],
        F.interpolate(2 * small - 1, (16, 16), mode="bilinear"),
        atol=1e-5,
        rtol=1e-5,
    )
    assert float(seen[0][:, :3].abs().max()) > 2, "the state, which is noise"


def test_other_numbers_of_channels(tmp_path: Path) -> None:
    """(in, out) -> (channels, shown beside, learned variance)."""
    cases = {
        (1, 1): (1, None, False),
        (1, 2): (1, None, True),
        (4, 3): (3, 1, False),
        (4, 6): (3, 1, True),
        (2, 1): (1, 1, False),
    }
    for (shown, made), expected in cases.items():
        denoiser = load_model(saved(tmp_path, tiny(in_channels=shown, out_channels=made)))
        assert (denoiser.channels, denoiser.cond_channels, denoiser.learned_variance) == expected
    denoiser = load_model(saved(tmp_path, tiny(in_channels=6, out_channels=5)), cond_channels=1)
    assert (denoiser.channels, denoiser.cond_channels) == (5, 1)


def test_betas_beside_the_network_are_its_schedule(tmp_path: Path) -> None:
    betas = torch.linspace(1e-3, 0.05, 50, dtype=D)
    denoiser = load_model(
        saved(
            tmp_path,
            {
                "betas": betas,
                "alphas_cumprod": betas,
                **{f"model.{k}": v for k, v in tiny().items()},
            },
        )
    )
    torch.testing.assert_close(denoiser.schedule(49).ratio, schedules.from_betas(betas)(49).ratio)
    assert load_model(saved(tmp_path, tiny()), schedule=schedules.cosine(100)).schedule(99).t == 99


CLASSIFIERS = {
    "adaptive": [
        -0.003131,
        0.047535,
        0.073279,
        0.078519,
        0.073522,
        -0.003137,
        0.047541,
        0.073292,
        0.078528,
        0.073519,
    ],
    "attention": [
        1.593217,
        3.462503,
        2.294046,
        -0.854162,
        -3.189761,
        1.593106,
        3.462872,
        2.29457,
        -0.853947,
        -3.190042,
    ],
    "spatial": [
        -0.005365,
        0.007085,
        0.095819,
        0.073049,
        0.121288,
        -0.006211,
        0.007882,
        0.095073,
        0.07374,
        0.120654,
    ],
    "spatial_v2": [
        0.109869,
        0.172609,
        -0.008139,
        -0.120525,
        -0.020607,
        0.109846,
        0.172619,
        -0.008118,
        -0.12054,
        -0.020625,
    ],
}


def tiny_classifier(pool: str) -> dict[str, Tensor]:
    size = 8 if pool == "attention" else None
    with torch.device("meta"):
        return fill(
            shapes_of(
                ADMClassifier(
                    Architecture(
                        **(
                            SMALL
                            | {"out_channels": 5, "blocks": 2, "pool": pool, "pool_size": size}
                        )
                    )
                )
            )
        )


@pytest.mark.parametrize("pool", CLASSIFIERS)
def test_noisy_classifiers_are_equal_to_the_official_code(pool: str, tmp_path: Path) -> None:
    path = saved(tmp_path, tiny_classifier(pool))
    classifier = load_classifier(path)
    assert isinstance(classifier, NoisyClassifier) and classifier.channels == 3
    x = image(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            classifier.net(x, T).flatten(), torch.tensor(CLASSIFIERS[pool]), atol=1e-5, rtol=1e-5
        )
        log_p = classifier(x, schedules.linear(1000)(300))
        torch.testing.assert_close(log_p, classifier.net(x, torch.full((2,), 300.0)).log_softmax(1))
    denoiser = load_model(saved(tmp_path, tiny(), "net2.pt"))
    guided = generate(
        denoiser, (1, 3, 16, 16), ClassifierGuidance(label=3, classifier=str(path)), steps=2
    )
    assert not torch.equal(guided.x, generate(denoiser, (1, 3, 16, 16), steps=2).x)
    with pytest.raises(ValueError, match="holds a classifier.*load_classifier"):
        load_model(path)
    with pytest.raises(ValueError, match="holds a denoiser"):
        load_classifier(saved(tmp_path, tiny(), "net2.pt"))


def test_classifiers_say_what_does_not_fit(tmp_path: Path) -> None:
    classifier = load_classifier(saved(tmp_path, tiny_classifier("attention")))
    with pytest.raises(ValueError, match="pools 8x8 features and was given 4x4"):
        classifier.net(image(1, 3, 8, 8), T[:1])
    a = Architecture(
        3, 5, 64, (64, 64, 64, 64), 1, (), pool="adaptive"
    )  # eight alike blocks: 4 x 2 or 2 x 4
    with torch.device("meta"):
        path = saved(tmp_path, fill(shapes_of(ADMClassifier(a))))
    with pytest.raises(
        ValueError, match="more than one number of residual blocks.*num_res_blocks="
    ):
        load_classifier(path)
    net = load_classifier(path, num_res_blocks=3).net
    assert isinstance(net, ADMClassifier) and net.architecture.channels == (64, 64)


# EDM and score_sde --------------------------------------------------------------------------------

EDM_NETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ncsn": (
        deepinv.models.NCSNpp,
        {"model_type": "ncsn", "augment_dim": 9, "model_channels": 32, "num_blocks": 1},
    ),
    "ddpm": (
        deepinv.models.NCSNpp,
        {
            "model_type": "ddpm",
            "augment_dim": 0,
            "label_dim": 5,
            "model_channels": 32,
            "num_blocks": 2,
        },
    ),
    "adm": (
        deepinv.models.ADMUNet,
        {"augment_dim": 9, "label_dim": 4, "model_channels": 64, "num_blocks": 2},
    ),
}


def edm_net(name: str) -> Any:
    make, config = EDM_NETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = make(
            pretrained=None,
            img_resolution=16,
            channel_mult=[1, 2],
            attn_resolutions=[8],
            pixel_std=0.5,
            _was_trained_on_minus_one_one=True,
            **config,
        ).eval()
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.1)
    return net


@pytest.mark.parametrize("name", EDM_NETS)
def test_edm_is_equal_to_deepinv(name: str, tmp_path: Path) -> None:
    theirs = edm_net(name)
    denoiser = load_model(
        saved(tmp_path, {f"model.{k}": v for k, v in theirs.state_dict().items()})
    )
    classes = EDM_NETS[name][1].get("label_dim")
    label = None if classes is None else torch.tensor([1, 3])
    for sigma in (0.01, 0.3, 5.0, 40.0):
        x = image(2, 3, 16, 16).abs() + sigma * rand(2, 3, 16, 16).float()
        with torch.no_grad():
            expected = theirs(
                x,
                torch.full((2,), sigma),
                class_labels=None if label is None else F.one_hot(label, classes),
            )
            p = denoiser(2 * x - 1, schedules.edm()(2 * sigma), clip_x0=False, label=label)
        assert float((expected - x).abs().max()) > 1e-3
        torch.testing.assert_close((p.x0 + 1) / 2, expected, atol=1e-5, rtol=1e-5)
    assert (denoiser.predicts, denoiser.sigma_data, denoiser.data_range) == (
        "edm",
        0.5,
        (-1.0, 1.0),
    )
    assert (denoiser.num_classes, denoiser.null_label, denoiser.multiple, denoiser.image_size) == (
        classes,
        None,
        2,
        16,
    )


def test_augment_and_null_labels(tmp_path: Path) -> None:
    theirs, x = edm_net("adm"), image(2, 3, 16, 16)
    path = saved(tmp_path, theirs.state_dict())
    level, labels = schedules.edm()(0.6), torch.tensor([1, 4])
    denoiser = load_model(path, null_label=4)
    with torch.no_grad():
        p = denoiser(2 * x - 1, level, label=labels, augment_labels=image(2, 9), clip_x0=False)
        one_hot = F.one_hot(labels, 5)[:, :4]
        expected = theirs(
            x, torch.full((2,), 0.3), class_labels=one_hot, augment_labels=image(2, 9)
        )
        torch.testing.assert_close((p.x0 + 1) / 2, expected, atol=1e-5, rtol=1e-5)
        none = denoiser(2 * x - 1, level, label=labels, clip_x0=False)
        zeros = denoiser(
            2 * x - 1, level, label=labels, augment_labels=torch.zeros(2, 9), clip_x0=False
        )
    torch.testing.assert_close(none.x0, zeros.x0)
    assert not torch.allclose(none.x0, p.x0)
    with pytest.raises(ValueError, match="no null class"):
        load_model(path)(x, level)


def test_song_preconditioning_is_karras_table_1(tmp_path: Path) -> None:
    """VP: D = x - sigma F(x / sqrt(sigma^2 + 1); 999 t(sigma)). VE: D = x + sigma F(x; log(sigma /
    2))."""
    x = image(2, 3, 16, 16)
    for name, kind in (("adm", "vp"), ("ncsn", "ve")):
        theirs = edm_net(name)
        denoiser = load_model(saved(tmp_path, theirs.state_dict()), preconditioning=kind)
        label = {"label": 2} if name == "adm" else {}
        given = {"class_labels": F.one_hot(torch.tensor([2, 2]), 4).float()} if label else {}
        for sigma in (0.05, 1.0, 20.0):
            with torch.no_grad():
                if kind == "vp":
                    t = (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + sigma**2)) - 0.1) / 19.9
                    raw = theirs.forward_unet(
                        x / math.sqrt(sigma**2 + 1), torch.full((2,), 999 * t), **given
                    )
                    expected = x - sigma * raw
                else:
                    expected = x + sigma * theirs.forward_unet(
                        x, torch.full((2,), math.log(sigma / 2)), **given
                    )
                p = denoiser(x, schedules.edm()(sigma), clip_x0=False, **label)
            torch.testing.assert_close(p.x0, expected, atol=1e-5 * max(1, sigma), rtol=1e-5)
    with pytest.raises(ValueError, match="unknown preconditioning 'vpp'; known: edm, vp, ve"):
        load_model(saved(tmp_path, edm_net("adm").state_dict()), preconditioning="vpp")


def test_the_time_of_a_song_network_follows_the_level_on_any_schedule(tmp_path: Path) -> None:
    ve = saved(tmp_path, edm_net("ncsn").state_dict())
    x, level = image(1, 3, 16, 16), schedules.edm()(1.3)
    expected = load_model(ve, preconditioning="ve")(x, level).x0
    for schedule in (schedules.ve(0.01, 348.0), schedules.edm()):
        for denoiser in (
            load_model(ve, preconditioning="ve", schedule=schedule),
            load_model(ve, preconditioning="ve").read_as(schedule=schedule),
        ):
            torch.testing.assert_close(denoiser(x, level).x0, expected)


def score_sde_shapes(ve: bool) -> dict[str, tuple[int, ...]]:
    """The parameters of score_sde's NCSN++ (VE) or DDPM++ (VP): 128 channels, 32x32 and 16x16, one
    block, attention at 16x16."""
    n = 128

    def conv(before: int, after: int, kernel: int, name: str = "") -> dict[str, tuple[int, ...]]:
        return {f"{name}weight": (after, before, kernel, kernel), f"{name}bias": (after,)}

    def block(before: int, shortcut: bool) -> dict[str, tuple[int, ...]]:
        norms = {
            f"GroupNorm_{i}.{k}": (c,) for i, c in ((0, before), (1, n)) for k in ("weight", "bias")
        }
        parts = (
            conv(before, n, 3, "Conv_0.")
            | conv(n, n, 3, "Conv_1.")
            | {"Dense_0.weight": (n, 4 * n), "Dense_0.bias": (n,)}
        )
        return norms | parts | (conv(before, n, 1, "Conv_2.") if shortcut else {})

    norm: dict[str, tuple[int, ...]] = {"weight": (n,), "bias": (n,)}
    attention = {f"NIN_{i}.{k}": (n, n) if k == "W" else (n,) for i in range(4) for k in "Wb"}
    attention |= {"GroupNorm_0.weight": (n,), "GroupNorm_0.bias": (n,)}
    modules = [{"W": (n,)}] if ve else []
    modules += [
        {"weight": (4 * n, 2 * n if ve else n), "bias": (4 * n,)},
        {"weight": (4 * n, 4 * n), "bias": (4 * n,)},
        conv(3, n, 3),
    ]
    modules += [
        block(n, False),
        block(n, True),
        *([conv(3, n, 3, "Conv2d_0.")] if ve else []),
        block(n, False),
        attention,
    ]
    modules += [block(n, False), attention, block(n, False)]
    modules += [
        block(2 * n, True),
        block(2 * n, True),
        attention,
        block(n, True),
        block(2 * n, True),
        block(2 * n, True),
    ]
    modules += [norm, conv(n, 3, 3)]
    return {
        f"all_modules.{i}.{name}": shape
        for i, parts in enumerate(modules)
        for name, shape in parts.items()
    }


def score_sde_file(folder: Path, ve: bool) -> Path:
    """As run_lib.py saves it: DataParallel's prefix, and the average as a list of what is
    trained."""
    weights = fill(score_sde_shapes(ve))
    order = list(score_sde_shapes(ve))
    sigmas = torch.exp(torch.linspace(math.log(50), math.log(0.01), 1000, dtype=D))
    model = {"module.sigmas": sigmas} | {
        f"module.{k}": weights[k] + (0.0 if k.endswith("0.W") else 0.01) for k in order
    }
    model["module.all_modules.0.W" if ve else "module.sigmas"] = (
        weights["all_modules.0.W"] if ve else sigmas
    )
    shadow = [weights[k] for k in order if k != "all_modules.0.W"]
    held = {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "model": model, "step": 5}
    return saved(
        folder,
        held | {"ema": {"decay": 0.999, "num_updates": 3, "shadow_params": shadow}},
        "checkpoint_8.pth",
    )


@pytest.mark.parametrize("ve", [True, False])
def test_score_sde_is_equal_to_the_official_code(ve: bool, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="averaged weights 'ema' are used; weights='model.module'"):
        denoiser = load_model(score_sde_file(tmp_path, ve))
    x = image(1, 3, 32, 32)
    with torch.no_grad():
        if ve:  # the state and sigma = 0.5 of [0, 1] images
            out = (denoiser(2 * x - 1, schedules.edm()(1.0), clip_x0=False).x0 + 1) / 2
            official = [1.001714, 0.07272, -0.854376, -0.931809, 0.468296, 0.807731]
        else:
            out = denoiser(x, denoiser.schedule(0.5), clip_x0=False).eps
            official = [0.06944, 0.082433, 0.074745, 0.065765, 0.081349, 0.077261]
    torch.testing.assert_close(
        torch.cat([out[0, :, 5, 9], out[0, :, 20, 31]]),
        torch.tensor(official),
        atol=3e-6,
        rtol=1e-5,
    )
    assert (denoiser.image_size, denoiser.multiple, denoiser.predicts) == (32, 2, "eps")
    if ve:  # from the sigmas in the file, which are for [0, 1]
        assert isinstance(denoiser.schedule, schedules.VE)
        assert (denoiser.schedule.sigma_min, denoiser.schedule.sigma_max) == pytest.approx(
            (0.02, 100.0)
        )


def test_edm_and_score_sde_say_what_they_cannot(tmp_path: Path) -> None:
    whole = fill(score_sde_shapes(True))
    cases: list[tuple[dict[str, Tensor], str]] = [
        (
            {k: v for k, v in whole.items() if "all_modules.9." not in k},
            "all parameters of all_modules.9 are missing",
        ),
        (
            {k: v for k, v in whole.items() if k != "all_modules.8.NIN_2.b"},
            "missing: all_modules.8.NIN_2.b",
        ),
        (
            {k: v for k, v in whole.items() if k != "all_modules.12.GroupNorm_1.bias"},
            "missing: dec.16x16_block0.norm1.bias",
        ),
        (
            whole | {"all_modules.20.weight": torch.zeros(3)},
            "unexpected parameters of all_modules.20",
        ),
        (whole | {"all_modules.3.what": torch.zeros(3)}, "unexpected: enc.32x32_conv.what"),
    ]
    edm = edm_net("ncsn").state_dict()
    skip = {k.replace("aux_residual", "aux_skip"): v for k, v in edm.items()}
    cases += [
        (
            {k: v for k, v in edm.items() if k != "enc.16x16_block0.conv1.bias"},
            "missing: enc.16x16_block0.conv1.bias",
        ),
        (
            {k: v for k, v in edm.items() if k != "enc.16x16_conv.weight"},
            "missing: enc.16x16_conv.weight",
        ),
        (edm | {"u": torch.zeros(7)}, "unexpected: u"),
        (
            edm | {"enc.16x16_block0.conv1.bias": torch.zeros(7)},
            r"of another shape: enc.16x16_block0.conv1.bias \(7,\) instead of \(32,\)",
        ),
        (skip, "Fourier features with a residual encoder"),
    ]
    for held, says in cases:
        with pytest.raises(ValueError, match=says):
            load_model(saved(tmp_path, held))


# Files --------------------------------------------------------------------------------------------


def times(state: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {k: factor * v for k, v in state.items()}


STATE = tiny()
RAW = times(STATE, 0.5)
LAYOUTS: dict[
    str, tuple[Callable[[], Any], str | None]
] = {  # what the file holds, and the name of the other weights
    "plain": (lambda: STATE, None),
    "state_dict": (lambda: {"state_dict": STATE, "epoch": 3}, None),
    "nested, with an optimizer": (
        lambda: {"step": 1, "net": {"model": STATE}, "optimizer": {"state": {0: dict(RAW)}}},
        None,
    ),
    "compiled and distributed": (
        lambda: {"model": {f"module._orig_mod.{k}": v for k, v in STATE.items()}},
        None,
    ),
    "model and ema": (lambda: {"model": RAW, "ema": STATE}, "model"),
    "state_dict_ema": (
        lambda: {"state_dict": RAW, "state_dict_ema": {f"module.{k}": v for k, v in STATE.items()}},
        "state_dict",
    ),
    "prefixes": (
        lambda: (
            {f"model.{k}": v for k, v in RAW.items()}
            | {f"ema_model.{k}": v for k, v in STATE.items()}
        ),
        "model",
    ),
    "ema-pytorch": (
        lambda: {
            "ema": {f"online_model.{k}": v for k, v in RAW.items()}
            | {f"ema_model.{k}": v for k, v in STATE.items()}
        },
        "ema.online_model",
    ),
    "latent-diffusion": (
        lambda: {
            "state_dict": {f"model.diffusion_model.{k}": v for k, v in RAW.items()}
            | {"model_ema." + f"diffusion_model.{k}".replace(".", ""): v for k, v in STATE.items()}
            | {"model_ema.decay": torch.tensor(0.9999), "alphas_cumprod": torch.ones(4)}
        },
        "state_dict.model.diffusion_model",
    ),
    "averaged by torch": (
        lambda: {
            "net": RAW,
            "avg": {"n_averaged": torch.tensor(5)} | {f"module.{k}": v for k, v in STATE.items()},
        },
        "net",
    ),
    "a list in the parameters' order": (
        lambda: {"model": RAW, "ema": {"decay": 0.9, "shadow_params": list(STATE.values())}},
        "model",
    ),
    "half precision": (lambda: {k: v.half() for k, v in STATE.items()}, None),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_networks_are_found_and_averages_preferred(layout: str, tmp_path: Path) -> None:
    make, other = LAYOUTS[layout]
    path = saved(tmp_path, make())
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=".*averaged weights")
        loaded = load_model(path, num_heads=2).net.state_dict()
    said = [str(w.message) for w in caught if "averaged" in str(w.message)]
    tolerance = 1e-3 if layout == "half precision" else 0.0
    for name, tensor in STATE.items():
        assert loaded[name].dtype == torch.float32
        torch.testing.assert_close(
            loaded[name], tensor, atol=tolerance, rtol=0, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert len(said) == (other is not None)
    if other is not None:
        assert f"weights={other!r}" in said[0]
        raw = load_model(path, num_heads=2, weights=other).net.state_dict()
        torch.testing.assert_close(raw["out.2.bias"], RAW["out.2.bias"])


def test_safetensors_and_load_model(tmp_path: Path) -> None:
    paths = [saved(tmp_path, STATE, name) for name in ("a.safetensors", "a.pth", "a.ckpt", "a.bin")]
    denoisers = [load_model(path, num_heads=2) for path in (*paths, str(paths[0]))]
    assert len({d.hash for d in denoisers}) == 1 and denoisers[0].name == "a"
    assert denoisers[0].source["kind"] == "guided-diffusion checkpoint"
    with pytest.raises(ValueError, match="no parameter 'num_head'.*Did you mean 'num_heads'"):
        load_model(paths[0], num_head=2)


def test_loading_leaves_random_numbers_alone(tmp_path: Path) -> None:
    paths = [saved(tmp_path, STATE, "a.pt"), saved(tmp_path, edm_net("ncsn").state_dict(), "b.pt")]
    before = torch.get_rng_state()
    for path in paths:
        load_model(path)
    assert torch.equal(before, torch.get_rng_state())


class Secret:
    """An object whose unpickling leaves a trace."""

    ran = 0

    def __reduce__(self) -> Any:
        return _trace, ()


def _trace() -> int:
    Secret.ran += 1
    return 1


def test_pickles_are_read_only_when_allowed(tmp_path: Path) -> None:
    path = saved(tmp_path, {"state_dict": STATE, "config": Secret()})
    with pytest.raises(ValueError, match="runs code from the file.*allow_pickle=True") as caught:
        load_model(path, num_heads=2)
    assert "_trace" in str(caught.value) and Secret.ran == 0
    assert torch.equal(
        load_model(path, num_heads=2, allow_pickle=True).net.state_dict()["out.2.bias"],
        STATE["out.2.bias"],
    )
    assert Secret.ran == 1
    with torch.device("meta"):
        net = ADM(Architecture(**SMALL))
    net.load_state_dict(STATE, assign=True)
    whole = saved(tmp_path, net)  # a pickled module
    with pytest.raises(ValueError, match="allow_pickle=True"):
        load_model(whole)
    assert load_model(whole, allow_pickle=True).hash == load_model(path, allow_pickle=True).hash


def test_a_pickle_whose_code_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, {"state_dict": STATE, "config": adm_module.Stem(1, 1, 1)})
    monkeypatch.delattr(adm_module, "Stem")
    with pytest.raises(ValueError, match="cannot be unpickled: AttributeError"):
        load_model(path, allow_pickle=True)


def broken(name: str, folder: Path) -> Path:
    """A file that cannot be loaded."""
    match name:
        case "truncated.pt" | "truncated.safetensors":
            path = saved(folder, STATE, name)
            path.write_bytes(path.read_bytes()[:-1000])
            return path
        case "empty.pt":
            path = folder / name
            path.write_bytes(b"")
            return path
        case "page.pt" | "pointer.safetensors" | "text.pt":
            path = folder / name
            said = {
                "page.pt": "\n<html>404: not found</html>",
                "pointer.safetensors": "version https://git-lfs.github.com/spec/v1\noid",
            }
            path.write_text(said.get(name, "not a network"))
            return path
        case "nan.pt":
            return saved(
                folder,
                STATE
                | {
                    "middle_block.1.qkv.bias": torch.full_like(
                        STATE["middle_block.1.qkv.bias"], math.nan
                    )
                },
                name,
            )
        case "missing.pt":
            return saved(
                folder,
                {k: v for k, v in STATE.items() if "middle_block.2.out_layers" not in k},
                name,
            )
        case "no_time.pt":
            return saved(
                folder, {k: v for k, v in STATE.items() if k != "time_embed.0.weight"}, name
            )
        case "no_block.pt":
            return saved(
                folder,
                {k: v for k, v in STATE.items() if not k.startswith("input_blocks.1.0.in_layers")},
                name,
            )
        case "unexpected.pt":
            return saved(
                folder,
                STATE | {f"input_blocks.1.0.extra.{i}": torch.zeros(2) for i in range(10)},
                name,
            )
        case "beside.pt":
            return saved(
                folder,
                {f"unet.{k}": v for k, v in STATE.items()}
                | {"text_encoder.weight": torch.zeros(2, 2)},
                name,
            )
        case "misshapen.pt":
            return saved(folder, STATE | {"middle_block.1.qkv.bias": torch.zeros(3)}, name)
        case "several.pt":
            return saved(folder, {"generator": STATE, "teacher": STATE}, name)
        case "two_averages.pt":
            return saved(folder, {"model": RAW, "ema_0.999": STATE, "ema_0.9999": STATE}, name)
        case "unrelated.safetensors":
            return saved(folder, {f"layer{i}.weight": torch.zeros(2) for i in range(12)}, name)
        case "diffusers.safetensors":
            return saved(folder, {"down_blocks.0.resnets.0.conv1.weight": torch.zeros(2)}, name)
        case "latent.ckpt":
            held = {f"model.diffusion_model.{k}": v for k, v in STATE.items()} | {
                "first_stage_model.decoder.weight": torch.zeros(2, 2)
            }
            return saved(folder, {"state_dict": held}, name)
        case "no_tensors.pt":
            return saved(folder, {"epoch": 3}, name)
        case "list.pt":
            return saved(folder, [torch.zeros(2)], name)
        case _:
            path = folder / name
            path.write_bytes(b"\x89PNG" if name == "picture.png" else b"\x80\x04N.")
            return path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("truncated.pt", "cannot be read, is it complete"),
        ("truncated.safetensors", "cannot be read, is it complete"),
        ("empty.pt", "is empty"),
        ("page.pt", "a page of the web"),
        ("pointer.safetensors", "git lfs pull"),
        ("text.pt", "other objects or is damaged.*net.state_dict"),
        ("nan.pt", "not finite.*: middle_block.1.qkv.bias"),
        ("missing.pt", "missing: middle_block.2.out_layers.0.bias, .*Nothing was loaded"),
        ("no_time.pt", "missing: time_embed.0.weight"),
        ("no_block.pt", "residual blocks per resolution fits|missing"),
        ("unexpected.pt", "unexpected: input_blocks.1.0.extra.0, .* and 2 more"),
        ("beside.pt", "belong to no network known here: text_encoder.weight"),
        ("misshapen.pt", r"of another shape: middle_block.1.qkv.bias \(3,\) instead of \(384,\)"),
        ("several.pt", "several networks: 'generator', 'teacher'; choose one: weights='generator'"),
        ("two_averages.pt", "several networks.*weights='ema_0.999'"),
        (
            "unrelated.safetensors",
            "no network known here: its parameters begin with layer0.weight.*and 4 "
            "more.*invdiff.Denoiser",
        ),
        ("diffusers.safetensors", "diffusers model.*give the folder"),
        ("latent.ckpt", "latent diffusion model.*diffusers folder"),
        ("no_tensors.pt", "no tensors by name"),
        ("list.pt", "no tensors by name"),
        ("network.pkl", "NVIDIA.*torch.save\\(net.model.state_dict"),
        ("picture.png", "of no kind that is read here; the installed loaders are adm, .*onnx"),
    ],
)
def test_bad_files_are_refused_with_what_is_wrong(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"(?s){says}") as caught:
        load_model(broken(name, tmp_path), num_heads=2)
    assert name in str(caught.value), "says which file"


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no network 'emma'; it holds 'model', 'ema'"):
        load_model(saved(tmp_path, {"model": RAW, "ema": STATE}), weights="emma")
    with pytest.raises(ValueError, match="there is no folder or file"):
        load_model(tmp_path / "nothing.pt")


# Denoisers and functions --------------------------------------------------------------------------

PRIOR = correlated(4)
A, NOISE = rand(2, 4, seed=3), 0.3
Y = rand(2, seed=4)
POSTERIOR = PRIOR.posterior(A, Y, NOISE)


class Exact(deepinv.models.Denoiser):  # type: ignore[misc, name-defined]
    """The posterior mean of PRIOR in deepinv's convention; remembers the noise levels it was asked
    for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs: Any) -> Tensor:
        level = float(self._handle_sigma(sigma, batch_size=len(x))[0])
        self.asked.append(level)
        return PRIOR.posterior_mean(x, 1.0, level)


def log_p_of_y(x_t: Tensor, level: Any) -> Tensor:
    """log p(y | x_t) up to a constant, exact."""
    alpha, sigma = float(level.alpha), float(level.sigma)
    precision = torch.linalg.inv(alpha**2 * PRIOR.covariance + sigma**2 * torch.eye(4, dtype=D))
    rest = PRIOR.covariance - alpha**2 * PRIOR.covariance @ precision @ PRIOR.covariance
    s = A @ rest @ A.T + NOISE**2 * torch.eye(2, dtype=D)
    r = Y - PRIOR.posterior_mean(x_t, alpha, sigma) @ A.T
    return -0.5 * torch.einsum("bi,ij,bj->b", r, torch.linalg.inv(s), r)


def chains(
    denoiser: Denoiser,
    guidance: list[Any],
    start: Tensor | None = None,
    n: int = 2000,
    steps: int = 100,
) -> Tensor:
    noise, levels = OneStream(5), Straight()(denoiser.schedule, steps)
    x = float(levels[0].sigma) * noise.randn_like(torch.empty(n, 4, dtype=D))
    x = x if start is None else start + x
    return sample(
        denoiser,
        x,
        levels,
        schedule=denoiser.schedule,
        noise=noise,
        transition=DDIM(1.0),
        guidance=guidance,
    )


def test_a_deepinv_denoiser_samples_the_gaussian_posterior() -> None:
    net = Exact()
    denoiser = from_deepinv(net, (0.01, 50.0), clip=False)
    prior = chains(denoiser, [])
    assert in_floors(prior, PRIOR) < 3
    assert (min(net.asked), max(net.asked)) == pytest.approx((0.01, 50.0)), (
        "never outside its range"
    )
    x = chains(denoiser, [ClassifierGuidance(log_prob=log_p_of_y)])
    error = 4 / math.sqrt(len(x))
    torch.testing.assert_close(
        x.mean(0),
        POSTERIOR.mean,
        atol=error * float(POSTERIOR.covariance.diagonal().max().sqrt()),
        rtol=0,
    )
    torch.testing.assert_close(
        torch.cov(x.T), POSTERIOR.covariance, atol=0.05 * float(PRIOR.covariance.max()), rtol=0
    )
    assert in_floors(x, POSTERIOR) < 3 and in_floors(x, PRIOR) > 10


def test_a_narrow_range_starts_from_an_image() -> None:
    """Noise of sigma_max on a draw of the prior is a state of the run, and its end again a draw."""
    denoiser = from_deepinv(Exact(), (0.01, 0.4), clip=False)
    assert in_floors(chains(denoiser, [], start=PRIOR.draw(2000, seed=9), steps=60), PRIOR) < 3
    assert in_floors(chains(denoiser, [], steps=60), PRIOR) > 10, "from noise alone it is not"
    with pytest.raises(
        ValueError,
        match=r"ends at sigma = 0.4, too little to start from pure noise; give .*start=",
    ):
        generate(denoiser, (2, 4), steps=5)
    assert generate(denoiser, (2, 4), steps=5, start=PRIOR.draw(2, seed=1), dtype=D).x.shape == (
        2,
        4,
    )


def test_a_denoiser_is_asked_for_no_noise_it_was_not_trained_for() -> None:
    denoiser = from_deepinv(Exact(), (0.02, 0.4), clip=False)
    x = rand(2, 4)
    for ratio in (0.019, 0.41):
        with pytest.raises(
            ValueError,
            match=rf"Exact denoises sigma in \[0.02, 0.4\] .* asked for {ratio:g}; .*no schedule=",
        ):
            denoiser(x, schedules.linear().at(ratio))
    level = schedules.linear().at(0.3)  # within, another frame
    torch.testing.assert_close(
        denoiser(x * level.alpha, level).x0, PRIOR.posterior_mean(x, 1.0, 0.3)
    )
    for wrong in ((0.0, 0.2), (0.3, 0.1), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="sigma_range is"):
            from_deepinv(Exact(), wrong)
    with pytest.raises(ValueError, match="follows from its sigma_range"):
        from_deepinv(Exact(), (0.01, 0.5), schedule=schedules.ve(0.02, 0.3))
    with pytest.raises(TypeError, match="callable denoiser"):
        from_deepinv("drunet", (0.01, 0.2))  # type: ignore[arg-type]


@pytest.mark.parametrize("make", ["DRUNet", "DnCNN", "TVDenoiser", "MedianFilter"])
def test_deepinv_denoisers_restore(make: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given = {
            "DRUNet": {"pretrained": None, "nc": [8, 8, 8, 8], "nb": 1},
            "DnCNN": {"pretrained": None, "depth": 3, "nf": 8},
        }
        given["TVDenoiser"] = {"n_it_max": 5}
        net = getattr(deepinv.models, make)(**given.get(make, {})).eval()
    operator = make_operator("inpaint", mask="random", fraction=0.5)
    measurement = operator.measure(image(2, 3, 16, 16).abs(), sigma=0.02, seed=0)
    denoiser = from_deepinv(net, (0.01, 0.2))
    result = solve(
        measurement, denoiser, "replace", steps=4, start=measurement.operator.pinv(measurement.y)
    )
    assert result.x.isfinite().all() and float(result.x.min()) >= 0 and float(result.x.max()) <= 1
    if make == "DRUNet":
        assert (
            solve(
                measurement,
                denoiser,
                DPS(0.1),
                steps=2,
                start=measurement.operator.pinv(measurement.y),
            ).nbe
            == 2
        )
        assert denoiser.hash is not None and not any(p.requires_grad for p in net.parameters())


def numpy_score(x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The score of N(0, I) under linear(1000), in NumPy: the state is N(0, I) at every level."""
    return -x


def wrapped(x: Tensor, t: Tensor) -> Tensor:
    return torch.from_numpy(numpy_score(x.numpy(), t.numpy()))


def wrapped_detached(x: Tensor, t: Tensor) -> Tensor:
    return torch.from_numpy(numpy_score(x.detach().numpy(), t.numpy()))


@pytest.mark.parametrize("net", [wrapped, wrapped_detached])
@pytest.mark.parametrize("predicts", ["score", "eps", "x0"])
def test_a_numpy_function_is_a_network(net: Callable[..., Tensor], predicts: str) -> None:
    """It samples with what needs no gradient; what differentiates blames it, and not the order of a
    chain."""
    denoiser = Denoiser(
        net, predicts=predicts, schedule=schedules.linear(1000), name="my_numpy_net"
    )
    operator = make_operator("inpaint", mask="box")
    measurement = operator.measure(rand(2, 1, 8, 8).float(), sigma=0.1, seed=0)
    if predicts == "score":
        x = generate(denoiser, (500, 4), steps=200, transition=DDIM(1.0)).x
        assert float(x.mean()) == pytest.approx(0, abs=0.1) and float(x.std()) == pytest.approx(
            1, abs=0.06
        )
        assert solve(measurement, denoiser, "replace", steps=3).nfe == 3
    for method in (
        DPS(),
        ClassifierGuidance(log_prob=lambda x0: -x0.square().flatten(1).sum(1), of="x0"),
    ):
        with pytest.raises(
            ValueError, match="my_numpy_net gives no gradient.*use a method that needs none"
        ) as caught:
            solve(
                measurement,
                denoiser,
                [method, "replace"] if isinstance(method, ClassifierGuidance) else method,
                steps=3,
            )
        assert "nearest" not in str(caught.value)


def test_the_examples_of_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks, in order, in one empty folder."""
    page = (Path(__file__).parents[2] / "docs" / "loading-your-checkpoint.md").read_text()
    section = page[page.index("\n## Checkpoint files") + 1 :].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len(blocks) >= 6
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        for block in blocks:
            exec(compile(block, "docs", "exec"), space)
    assert space["restored"].shape == (1, 3, 64, 64) and space["made"].shape == (4, 2)
