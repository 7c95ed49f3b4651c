"""The recipes of the shipped networks: resumable training of small diffusers networks.

    python -m invdiff.zoo.train photo64 --data PHOTOS --holdout OTHERS --run RUN --hours 2
    python -m invdiff.zoo.train sr3x4 --data PHOTOS --holdout OTHERS --run RUN --hours 2 \\
        --init invdiff/zoo/photo64
    python -m invdiff.zoo.train palette_jpeg --data PHOTOS --holdout OTHERS --run RUN \\
        --hours 0.7 --init invdiff/zoo/sr3x4
    python -m invdiff.zoo.train digits32 --data mnist.npz --run RUN --hours 1
    python -m invdiff.zoo.train kernels16 --run RUN --hours 0.5
    python -m invdiff.zoo.train digits32-classifier --data mnist.npz --run RUN --hours 0.3

A run folder holds ``state.pt`` (network, average, optimiser, step), ``log.jsonl`` and ``export/``:
a diffusers folder with the averaged weights in fp16, ready to be used with ``--model RUN/export``.
Starting the same command again goes on from ``state.pt``; ``--init FOLDER`` starts from the weights
of a diffusers folder. The learning rate stays constant and falls to zero over the last fifth of
``--hours``, so every session ends on good weights and a later one may go on.

Chosen for a CPU: bf16 autocast with channels_last, and noise levels drawn where denoising is
hard instead of uniformly in t (log-normal as in EDM, Karras et al. 2022, table 1, with a share of
the draws uniform so that no level is forgotten). eps networks are weighted like a v-prediction loss
(Salimans & Ho 2022) with a ceiling. What a network must get right on its own from pure noise (a
digit, the colours of an upscaled photograph) is learnt as v: eps leaves x0 = (x_t − sigma
eps)/alpha, where alpha = 0.006 asks for more digits than bf16 has. A classifier sees every level
alike.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.zoo.data import (
    Batch,
    Crops,
    Digits,
    Kernels,
    Source,
    compressed,
    degraded,
    label_dropout,
)


@dataclass(frozen=True)
class Recipe:
    """A recipe: the network and its training. Denoisers are unconditional unless ``num_classes``,
    ``factor`` or ``qualities`` is set.

    Attributes:
        num_classes: class-conditional; label ``num_classes`` is the null class, shown instead of
            ``label_dropout`` of the labels.
        factor: conditioned on the bicubic upsampling of the ``factor`` times smaller image (SR3,
            Saharia et al. 2021).
        qualities: conditioned on the image out of a JPEG file of a quality between these two
            (Palette, Saharia et al. 2022).
        kernels: blur kernels, that many drawn at random (the operator's prior of BlindDPS, Chung et
            al. 2023); there is no ``--data``.
        classifier: the network returns the logits of the label of x_t (Dhariwal & Nichol 2021,
            section 4).
    """

    channels: tuple[int, ...]
    size: int
    image_channels: int = 3
    predicts: str = "eps"
    num_classes: int | None = None
    label_dropout: float = 0.1
    factor: int | None = None
    qualities: tuple[int, int] | None = None
    max_noise: float = 0.05
    kernels: int | None = None
    classifier: bool = False
    layers_per_block: int = 1
    attention: bool = False
    scales: tuple[float, ...] = (0.5, 0.6, 0.7, 0.85, 1.0)
    batch_size: int = 16
    learning_rate: float = 6e-4
    weight_decay: float = 1e-3
    ema: float = 0.999
    log_sigma_mean: float = -1.2
    log_sigma_std: float = 1.4
    uniform_share: float = 0.2
    max_weight: float = 10.0
    sigma_data: float = 0.5

    @property
    def conditional(self) -> bool:
        """Whether an image is given beside x_t."""
        return self.factor is not None or self.qualities is not None


DIGITS = Recipe(
    channels=(32, 64, 128),
    size=32,
    image_channels=1,
    num_classes=10,
    batch_size=64,
    learning_rate=1e-3,
)
RECIPES = {
    "photo64": Recipe(channels=(32, 64, 128, 128), size=64),
    "sr3x4": Recipe(
        channels=(32, 64, 128, 128), size=64, factor=4, predicts="v", uniform_share=0.4
    ),
    "palette_jpeg": Recipe(
        channels=(32, 64, 128, 128), size=64, qualities=(5, 30), predicts="v", uniform_share=0.4
    ),
    "kernels16": Recipe(
        channels=(32, 64, 64),
        size=16,
        image_channels=1,
        kernels=20_000,
        predicts="v",
        uniform_share=0.4,
        batch_size=64,
        learning_rate=1e-3,
    ),
    "digits32": replace(DIGITS, attention=True, predicts="v", uniform_share=0.4),
    "digits32-classifier": replace(
        DIGITS,
        channels=(32, 64, 64),
        classifier=True,
        label_dropout=0.0,
        uniform_share=1.0,
        weight_decay=0.05,
    ),
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "timestep_spacing": "linspace",
}


def draw_from(recipe: Recipe, path: Path | None, seed: int, *, train: bool) -> Source:
    """Batches of a recipe's data, from a folder of photographs or an npz file of digits; kernels
    are made, others than for training where it is not that."""
    generator = torch.Generator().manual_seed(seed)
    source: Source
    if recipe.kernels is not None:
        source = Kernels(recipe.size, recipe.kernels if train else 1000, 2 * seed + (not train))
    elif path is None:
        raise ValueError("this recipe needs --data")
    elif path.is_dir():
        source = Crops(path, recipe.size, recipe.scales, seed)
    else:
        source = Digits(path, recipe.size, "train" if train else "test", seed)
    if recipe.factor is not None:
        source = degraded(source, recipe.factor, recipe.max_noise, generator)
    if recipe.qualities is not None:
        source = compressed(source, recipe.qualities, generator)
    if recipe.num_classes is not None and train and recipe.label_dropout:
        source = label_dropout(source, recipe.label_dropout, recipe.num_classes, generator)
    return source


class Noise:
    """Draws the discrete times of a batch and says what the loss at each weighs."""

    def __init__(self, recipe: Recipe, generator: torch.Generator) -> None:
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        alpha_bar = torch.cumprod(1 - betas, 0)
        self.alpha, self.sigma = alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
        self.ratio = self.sigma / self.alpha
        self.weight = (1 + (self.ratio / recipe.sigma_data) ** 2).clamp(max=recipe.max_weight)
        self.recipe, self.generator = recipe, generator

    def times(self, n: int) -> Tensor:
        r = self.recipe
        log_sigma = r.log_sigma_mean + r.log_sigma_std * torch.randn(n, generator=self.generator)
        t = torch.searchsorted(self.ratio, log_sigma.exp()).clamp(max=999)
        uniform = torch.randint(0, 1000, (n,), generator=self.generator)
        return torch.where(torch.rand(n, generator=self.generator) < r.uniform_share, uniform, t)


def build(recipe: Recipe) -> Any:
    """The network of a recipe; it takes any size that divides by 2^(levels - 1)."""
    if recipe.classifier:
        from invdiff.loading.time_classifier import TimeClassifier

        assert recipe.num_classes is not None
        return TimeClassifier(
            recipe.image_channels, recipe.num_classes, recipe.channels, recipe.layers_per_block
        )
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=recipe.size,
        in_channels=recipe.image_channels * (2 if recipe.conditional else 1),
        out_channels=recipe.image_channels,
        layers_per_block=recipe.layers_per_block,
        block_out_channels=recipe.channels,
        down_block_types=("DownBlock2D",) * len(recipe.channels),
        up_block_types=("UpBlock2D",) * len(recipe.channels),
        add_attention=recipe.attention,
        num_class_embeds=None if recipe.num_classes is None else recipe.num_classes + 1,
        norm_num_groups=8,
    )


def predict(net: Any, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
    """The network's eps or v, shown the conditions before the state: [cond, x_t]."""
    x = x_t if batch.cond is None else torch.cat([batch.cond, x_t], dim=1)
    return net(
        x.contiguous(memory_format=torch.channels_last), t, class_labels=batch.label
    ).sample.float()


def write_atomically(path: Path, write: Any) -> None:
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    os.replace(temporary, path)


def export(ema: torch.nn.Module, recipe: Recipe, folder: Path) -> None:
    """Writes the averaged network as a diffusers folder (fp16 storage) with its scheduler's
    configuration."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() for k, v in ema.state_dict().items()}
    config = json.loads(ema.to_json_string())  # type: ignore[operator]
    config.pop("_name_or_path", None)
    if recipe.num_classes is not None and not recipe.classifier:
        config["_null_label"] = (
            recipe.num_classes
        )  # diffusers ignores keys that begin so, load_folder reads this one
    scheduler = SCHEDULER | {
        "prediction_type": {"eps": "epsilon", "v": "v_prediction"}[recipe.predicts]
    }
    texts = {"config.json": config, "scheduler_config.json": scheduler}
    for name, content in texts.items():
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(folder / name, lambda p, text=text: p.write_text(text))
    write_atomically(
        folder / "diffusion_pytorch_model.safetensors", lambda p: save_file(weights, p)
    )


def initialise(net: torch.nn.Module, folder: Path) -> None:
    """Starts from the weights of a diffusers folder; input channels it does not know come first and
    start at zero."""
    from safetensors.torch import load_file

    weights = {
        k: v.float() for k, v in load_file(folder / "diffusion_pytorch_model.safetensors").items()
    }
    first = weights["conv_in.weight"]
    missing = net.get_parameter("conv_in.weight").shape[1] - first.shape[1]
    weights["conv_in.weight"] = F.pad(first, (0, 0, 0, 0, missing, 0))
    net.load_state_dict(weights)


@torch.no_grad()
def held_out(net: torch.nn.Module, batch: Batch, noise: Noise, recipe: Recipe) -> dict[str, float]:
    """PSNR (dB) of one-step denoising, or a classifier's accuracy, at some noise levels, sigma in
    units of [0, 1] pixels."""
    result = {}
    x0, n = batch.x0, len(batch.x0)
    for sigma in (0.05, 0.17, 0.5, 10.0) if not recipe.classifier else (0.05, 0.5, 2.0):
        t = int(torch.searchsorted(noise.ratio, torch.tensor(2 * sigma)))
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
        x_t = noise.alpha[t] * x0 + noise.sigma[t] * eps
        times = torch.full((n,), t)
        if recipe.classifier:
            result[f"accuracy_at_{sigma}"] = round(
                (net(x_t, times).argmax(1) == batch.label).float().mean().item(), 4
            )
            continue
        out = predict(net, x_t, times, batch)
        estimate = (
            (x_t - noise.sigma[t] * out) / noise.alpha[t]
            if recipe.predicts == "eps"
            else noise.alpha[t] * x_t - noise.sigma[t] * out
        )
        estimate = estimate.clamp(-1, 1)
        mse = ((estimate - x0) / 2).square().mean(dim=(1, 2, 3))
        result[f"psnr_at_{sigma}"] = round((-10 * mse.log10()).mean().item(), 3)
    return result


def train(recipe: Recipe, args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    args.run.mkdir(parents=True, exist_ok=True)
    net = build(recipe)
    state_file = args.run / "state.pt"
    step, before = 0, 0.0
    if args.init is not None and not state_file.exists():
        initialise(net, args.init)
    net = net.to(memory_format=torch.channels_last).train()
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(
        net.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        net.load_state_dict(state["net"])
        ema.load_state_dict(state["ema"])
        optimiser.load_state_dict(state["optimiser"])
        step, before = state["step"], state["seconds"]
    generator = torch.Generator().manual_seed(step)
    batches, noise = draw_from(recipe, args.data, step, train=True), Noise(recipe, generator)
    validation = draw_from(recipe, args.holdout or args.data, 0, train=False)(
        64 if not recipe.classifier else 1000
    )

    start = last_save = time.monotonic()
    seconds = args.hours * 3600
    first, loss_sum, count = step, 0.0, 0
    while (elapsed := time.monotonic() - start) < seconds:
        warm = min(1.0, (step - first + 1) / 100)
        cool = min(1.0, (seconds - elapsed) / (args.cooldown * seconds))
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * warm * cool
        batch = batches(recipe.batch_size)
        t = noise.times(len(batch.x0))
        eps = torch.randn(batch.x0.shape, generator=generator)
        alpha, sigma = (v[t].view(-1, 1, 1, 1) for v in (noise.alpha, noise.sigma))
        x_t = alpha * batch.x0 + sigma * eps
        with torch.autocast("cpu", torch.bfloat16):
            if recipe.classifier:
                assert batch.label is not None
                loss = F.cross_entropy(
                    net(x_t.contiguous(memory_format=torch.channels_last), t).float(), batch.label
                )
            else:
                target, weight = (
                    (eps, noise.weight[t])
                    if recipe.predicts == "eps"
                    else (alpha * eps - sigma * batch.x0, torch.ones(len(t)))
                )
                loss = (
                    weight * (predict(net, x_t, t, batch) - target).square().mean(dim=(1, 2, 3))
                ).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step += 1
        decay = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - decay)
        loss_sum, count = loss_sum + loss.item(), count + 1
        finished = time.monotonic() - start >= seconds
        if finished or time.monotonic() - last_save > args.save_every:
            last_save = time.monotonic()
            with torch.autocast("cpu", torch.bfloat16):
                record = {
                    "step": step,
                    "seconds": round(before + last_save - start),
                    "loss": round(loss_sum / count, 5),
                }
                record |= held_out(ema, validation, noise, recipe) | {
                    "lr": optimiser.param_groups[0]["lr"]
                }
            loss_sum, count = 0.0, 0
            if not math.isfinite(record["loss"]):
                raise RuntimeError(
                    f"training diverged at step {step}; {state_file} holds the last good state"
                )
            state = {
                "net": net.state_dict(),
                "ema": ema.state_dict(),
                "optimiser": optimiser.state_dict(),
            }
            state |= {"step": step, "seconds": before + last_save - start}
            write_atomically(state_file, lambda p, state=state: torch.save(state, p))
            export(ema, recipe, args.run / "export")
            with (args.run / "log.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
            print(json.dumps(record), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m invdiff.zoo.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument(
        "--data", type=Path, help="folder of training photographs, or mnist.npz; none for kernels"
    )
    parser.add_argument(
        "--holdout",
        type=Path,
        help="folder of photographs for the held-out figures (digits: the test part)",
    )
    parser.add_argument(
        "--run", type=Path, required=True, help="folder of this run; an existing one is resumed"
    )
    parser.add_argument("--init", type=Path, help="diffusers folder to start a new run from")
    parser.add_argument("--hours", type=float, required=True, help="how long this session trains")
    parser.add_argument(
        "--cooldown",
        type=float,
        default=0.2,
        help="share of the session in which the rate falls to 0",
    )
    parser.add_argument("--save-every", type=float, default=180, help="seconds between checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    train(RECIPES[args.recipe], args)


if __name__ == "__main__":
    main()
