"""CLIP guidance beside transformers' own CLIPModel, tiny, with random weights, saved and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from oracles import D, NoNoise, rand, step_of
from pipelines import clip_words
from torch import Tensor

from invdiff import schedules
from invdiff.guidance.classifier import ClassifierGuidance, classifier
from invdiff.loading.clip import Clip, crops_of
from invdiff.network import Denoiser
from invdiff.noise import NoiseSource
from invdiff.sampling import Setting
from invdiff.solving import generate

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = ["a cat on the moon", "the dog"]
SIZE, SHAPE = 16, (2, 3, 20, 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("clip")
    words = clip_words(place / "words")
    layers: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    layers["num_attention_heads"] = 2
    ends = {k: getattr(words, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = transformers.CLIPConfig(
        text_config={**layers, **ends, "vocab_size": len(words), "max_position_embeddings": 8},
        vision_config={**layers, "image_size": SIZE, "patch_size": 4},
        projection_dim=8,
    )
    model = transformers.CLIPModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=generator) / p[0].numel() ** 0.5)
    model.save_pretrained(place / "model")
    words.save_pretrained(place / "model")
    return place / "model"


def logits(folder: Path, views: Tensor, prompts: list[str]) -> Tensor:
    """Of transformers, (views, prompts)."""
    model = transformers.CLIPModel.from_pretrained(folder)
    words = transformers.CLIPTokenizer.from_pretrained(folder)
    tokens = words(prompts, padding=True, return_tensors="pt")
    mean, std = (
        torch.tensor(v).view(-1, 1, 1)
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    out: Tensor = model(pixel_values=(views.float() - mean) / std, **tokens).logits_per_image
    return out.to(views.dtype)


def test_the_logit_is_that_of_transformers(folder: Path) -> None:
    clip, x = Clip(folder, PROMPTS, crops=3), rand(2, 3, SIZE, SIZE).sigmoid()
    whole = torch.ones(2, 3, 3, dtype=D)
    expected = logits(folder, x, PROMPTS).diagonal()
    torch.testing.assert_close(clip(x, whole, clip.text), expected, atol=1e-4, rtol=1e-4)
    assert float((expected[0] - expected[1]).abs()) > 0.1
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    other = Clip(folder, PROMPTS, crops=3)
    (folder / "preprocessor_config.json").unlink()
    assert float((other(x, whole, clip.text) - expected).abs().max()) > 1e-3


def test_crops_are_where_they_are_said_to_be() -> None:
    x = rand(1, 2, 20, 24)
    places = torch.tensor([[[0.6, 0.0, 0.0], [0.6, 1.0, 1.0]]], dtype=D)  # of 16 pixels
    views = crops_of(x, places, 16)
    torch.testing.assert_close(views[0], x[0, :, :16, :16], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(views[1], x[0, :, 4:, 8:], atol=1e-6, rtol=1e-6)
    halved = crops_of(x, places, 8)
    means = torch.nn.functional.avg_pool2d(views, 2)
    assert float((halved - means).abs().max()) < float(means.abs().max()) / 2
    flat = crops_of(torch.full((2, 3, 9, 7), 0.3, dtype=D), rand(2, 4, 3).sigmoid(), 5)
    torch.testing.assert_close(flat, torch.full((8, 3, 5, 5), 0.3, dtype=D))


def network() -> Denoiser:
    return Denoiser(
        lambda x, t: torch.tanh(0.8 * x),
        schedule=schedules.linear(),
        data_range=(-1, 1),
        clip=False,
    )


def test_the_gradient_is_through_the_network(folder: Path) -> None:
    denoiser, x, s, crops = network(), rand(*SHAPE), 0.7, 3
    level = denoiser.schedule(400.0)
    guidance = ClassifierGuidance(s=s, classifier=f"clip:{folder}", prompt=PROMPTS, crops=crops)
    setting = Setting(denoiser, SHAPE, None, {}, torch.device("cpu"), D)
    step = step_of(denoiser.schedule, level, level, NoiseSource([5, 6]))
    p = guidance.bind(setting)(denoiser, x, step, None)
    uniform = torch.special.ndtr(NoiseSource([5, 6]).randn_like(rand(2, crops, 3)))
    z = x.clone().requires_grad_()
    plain = denoiser(z, level)
    seen = logits(folder, crops_of((plain.x0 + 1) / 2, uniform, SIZE), PROMPTS)
    own = sum(seen[k * crops : (k + 1) * crops, k].mean() for k in range(2))
    (grad,) = torch.autograd.grad(own, z)  # type: ignore[arg-type]
    expected = plain.eps.detach() - s * level.sigma * grad
    torch.testing.assert_close(p.eps, expected, atol=1e-5, rtol=1e-4)
    assert float((s * level.sigma * grad).abs().max()) > 1e-3


def test_images_come_nearer_to_their_prompts_each_by_itself(folder: Path) -> None:
    def run(images: int, prompt: Any, ids: list[int], s: float = 3.0) -> Tensor:
        method = classifier(classifier=f"clip:{folder}", prompt=prompt, crops=4, s=s)
        return generate(network(), (images, *SHAPE[1:]), method, steps=8, image_ids=ids).x

    guided = run(2, PROMPTS, [0, 1])
    torch.testing.assert_close(guided[1:], run(1, PROMPTS[1], [1]), atol=1e-4, rtol=1e-4)
    clip, places = Clip(folder, PROMPTS, crops=16), torch.rand(2, 16, 3)
    fits = [clip(x, places, clip.text) for x in (guided, run(2, PROMPTS, [0, 1], 0.0))]
    assert bool((fits[0] > fits[1] + 0.05).all()), fits


def test_what_cannot_work_is_refused(folder: Path, tmp_path: Path) -> None:
    setting = Setting(network(), SHAPE, None, {}, torch.device("cpu"), D)
    with pytest.raises(ValueError, match="both a prompt"):
        ClassifierGuidance(classifier=f"clip:{folder}")
    with pytest.raises(ValueError, match="both a prompt"):
        ClassifierGuidance(prompt="a cat")
    with pytest.raises(ValueError, match="in the place of label"):
        ClassifierGuidance(3, classifier=f"clip:{folder}", prompt="a cat")
    three = ClassifierGuidance(classifier=f"clip:{folder}", prompt=["a", "cat", "dog"])
    with pytest.raises(ValueError, match="3 prompts do not go with 2 images"):
        three.bind(setting)
    grey = Setting(network(), (2, 1, 8, 8), None, {}, torch.device("cpu"), D)
    with pytest.raises(ValueError, match="images in colour"):
        ClassifierGuidance(classifier=f"clip:{folder}", prompt="cat").bind(grey)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="a bert, not a clip model"):
        ClassifierGuidance(classifier=f"clip:{tmp_path}", prompt="cat").bind(setting)
    with pytest.raises(AssertionError, match="drew noise"):  # crops are random
        bound = ClassifierGuidance(classifier=f"clip:{folder}", prompt="cat").bind(setting)
        level = setting.denoiser.schedule(400.0)
        step = step_of(setting.denoiser.schedule, level, level, NoNoise())
        bound(setting.denoiser, rand(*SHAPE), step, None)
