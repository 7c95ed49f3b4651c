"""The recipe of the shipped networks: resumable training of a small diffusers ``UNet2DModel``.

    python -m invdiff.zoo.train photo64 --data PHOTOS --holdout OTHER_PHOTOS --run RUN --hours 2

A run folder holds ``state.pt`` (network, average, optimiser, step), ``log.jsonl`` and ``export/``: a diffusers folder
with the averaged weights in fp16, ready to be used with ``--model RUN/export``. Starting the same command again goes on
from ``state.pt``; ``--init FOLDER`` starts from the weights of a diffusers folder. The learning rate stays constant and
falls to zero over the last fifth of ``--hours``, so every session ends on good weights and a later one may go on.

Chosen for two cores: bf16 autocast with channels_last, and noise levels drawn where denoising is
hard instead of uniformly in t (log-normal as in EDM, Karras et al. 2022, table 1, with a fifth of the draws uniform so
that no level is forgotten), weighted like a v-prediction loss (Salimans & Ho 2022) with a ceiling.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how."""

    channels: tuple[int, ...]
    crop: int
    in_channels: int = 3
    layers_per_block: int = 1
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


RECIPES = {"photo64": Recipe(channels=(32, 64, 128, 128), crop=64)}
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
    "timestep_spacing": "leading",
}


class Crops:
    """Random square crops of photographs held in memory at several scales, as float in [-1, 1]."""

    def __init__(self, folder: Path, recipe: Recipe, seed: int) -> None:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png", ".tif"})
        if not files:
            raise ValueError(f"no photographs found below {folder}")
        self.crop = recipe.crop
        self.photos: list[list[np.ndarray]] = []
        for file in files:
            with Image.open(file) as opened:
                photo = opened.convert("RGB")
            sizes = [(round(photo.width * s), round(photo.height * s)) for s in recipe.scales]
            fit = [size for size in sizes if min(size) >= recipe.crop]
            if fit:
                self.photos.append([np.asarray(photo.resize(s, Image.Resampling.LANCZOS)) for s in fit])
        self.rng = np.random.default_rng(seed)

    def __call__(self, n: int) -> Tensor:
        batch = np.empty((n, self.crop, self.crop, 3), np.uint8)
        for k in range(n):
            scales = self.photos[self.rng.integers(len(self.photos))]
            photo = scales[self.rng.integers(len(scales))]
            top = self.rng.integers(photo.shape[0] - self.crop + 1)
            left = self.rng.integers(photo.shape[1] - self.crop + 1)
            patch = photo[top : top + self.crop, left : left + self.crop]
            batch[k] = patch[:, ::-1] if self.rng.random() < 0.5 else patch
        return torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1


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
    """The network of a recipe; without attention, so it takes any size that divides by 2^(levels - 1)."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=recipe.crop,
        in_channels=recipe.in_channels,
        out_channels=recipe.in_channels,
        layers_per_block=recipe.layers_per_block,
        block_out_channels=recipe.channels,
        down_block_types=("DownBlock2D",) * len(recipe.channels),
        up_block_types=("UpBlock2D",) * len(recipe.channels),
        add_attention=False,
        norm_num_groups=8,
    )


def write_atomically(path: Path, write: Any) -> None:
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    os.replace(temporary, path)


def export(ema: torch.nn.Module, folder: Path) -> None:
    """Writes the averaged network as a diffusers folder (fp16 storage) with its scheduler's configuration."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() for k, v in ema.state_dict().items()}
    config = json.loads(ema.to_json_string())  # type: ignore[operator]
    config.pop("_name_or_path", None)
    texts = {"config.json": config, "scheduler_config.json": SCHEDULER}
    for name, content in texts.items():
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(folder / name, lambda p, text=text: p.write_text(text))
    write_atomically(folder / "diffusion_pytorch_model.safetensors", lambda p: save_file(weights, p))


@torch.no_grad()
def held_out(net: torch.nn.Module, photos: Tensor, noise: Noise) -> dict[str, float]:
    """PSNR (dB) of one-step denoising at three noise levels, sigma in units of [0, 1] pixels."""
    result = {}
    for sigma in (0.05, 0.17, 0.5):
        t = int(torch.searchsorted(noise.ratio, torch.tensor(2 * sigma)))
        eps = torch.randn(photos.shape, generator=torch.Generator().manual_seed(0))
        x_t = noise.alpha[t] * photos + noise.sigma[t] * eps
        predicted = torch.cat([net(x, torch.tensor(t)).sample for x in x_t.split(16)])
        x0 = ((x_t - noise.sigma[t] * predicted) / noise.alpha[t]).clamp(-1, 1)
        mse = ((x0 - photos) / 2).square().mean(dim=(1, 2, 3))
        result[f"psnr_at_{sigma}"] = round((-10 * mse.log10()).mean().item(), 3)
    return result


def train(recipe: Recipe, args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    args.run.mkdir(parents=True, exist_ok=True)
    net = build(recipe)
    state_file = args.run / "state.pt"
    step, before = 0, 0.0
    if args.init is not None and not state_file.exists():
        from safetensors.torch import load_file

        net.load_state_dict({k: v.float() for k, v in load_file(args.init / "diffusion_pytorch_model.safetensors").items()})
    net = net.to(memory_format=torch.channels_last).train()
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(
        net.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True
    )
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        net.load_state_dict(state["net"])
        ema.load_state_dict(state["ema"])
        optimiser.load_state_dict(state["optimiser"])
        step, before = state["step"], state["seconds"]
    generator = torch.Generator().manual_seed(step)
    crops, noise = Crops(args.data, recipe, seed=step), Noise(recipe, generator)
    validation = Crops(args.holdout, recipe, seed=0)(64)

    start = last_save = time.monotonic()
    seconds = args.hours * 3600
    first, loss_sum, count = step, 0.0, 0
    while (elapsed := time.monotonic() - start) < seconds:
        warm = min(1.0, (step - first + 1) / 100)
        cool = min(1.0, (seconds - elapsed) / (args.cooldown * seconds))
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * warm * cool
        x0 = crops(recipe.batch_size).contiguous(memory_format=torch.channels_last)
        t = noise.times(len(x0))
        eps = torch.randn(x0.shape, generator=generator)
        alpha, sigma = (v[t].view(-1, 1, 1, 1) for v in (noise.alpha, noise.sigma))
        with torch.autocast("cpu", torch.bfloat16):
            predicted = net(alpha * x0 + sigma * eps, t).sample
        per_image = (predicted.float() - eps).square().mean(dim=(1, 2, 3))
        loss = (noise.weight[t] * per_image).mean()
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
                record = {"step": step, "seconds": round(before + last_save - start), "loss": round(loss_sum / count, 5)}
                record |= held_out(ema, validation, noise) | {"lr": optimiser.param_groups[0]["lr"]}
            loss_sum, count = 0.0, 0
            if not math.isfinite(record["loss"]):
                raise RuntimeError(f"training diverged at step {step}; {state_file} holds the last good state")
            state = {"net": net.state_dict(), "ema": ema.state_dict(), "optimiser": optimiser.state_dict()}
            state |= {"step": step, "seconds": before + last_save - start}
            write_atomically(state_file, lambda p, state=state: torch.save(state, p))
            export(ema, args.run / "export")
            with (args.run / "log.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
            print(json.dumps(record), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m invdiff.zoo.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, required=True, help="folder of training photographs")
    parser.add_argument("--holdout", type=Path, required=True, help="folder of photographs for the held-out figures")
    parser.add_argument("--run", type=Path, required=True, help="folder of this run; an existing one is resumed")
    parser.add_argument("--init", type=Path, help="diffusers folder to start a new run from")
    parser.add_argument("--hours", type=float, required=True, help="how long this session trains")
    parser.add_argument("--cooldown", type=float, default=0.2, help="share of the session in which the rate falls to 0")
    parser.add_argument("--save-every", type=float, default=180, help="seconds between checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    train(RECIPES[args.recipe], args)


if __name__ == "__main__":
    main()
