# %% [markdown]
# # A text-conditioned latent network
#
# Stable Diffusion and its like: an operator acts on the decoded image, the
# network on latents, under a condition made from text. None ships in the
# package, so this one is made here, with random weights: it shows the calls,
# not a restoration. With a pipeline of yours, `invdiff.load_model("folder")`
# replaces the next cell.

# %%
import shutil

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torchvision.transforms.functional import to_pil_image

import invdiff
from invdiff.images import grid, sample_photo

torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=16,
    in_channels=4,
    out_channels=4,
    block_out_channels=(16, 32),
    layers_per_block=1,
    norm_num_groups=8,
    cross_attention_dim=32,
    attention_head_dim=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
vae = AutoencoderKL(
    block_out_channels=(16, 32),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    norm_num_groups=8,
    sample_size=32,
)
unet.save_pretrained("pipeline/unet")
vae.save_pretrained("pipeline/vae")
DDIMScheduler(beta_schedule="scaled_linear").save_pretrained(
    "pipeline/scheduler"
)

# %% [markdown]
# ## Restore under a condition
#
# With the pipeline's own text encoder the condition is
# `denoiser.conditions_of("a cat")`, `--prompt` on the command line; here it
# is the embedding of seven tokens. [PSLD](../../guidance/psld.py) is DPS
# through the decoder, with a term that keeps the latent consistent.

# %%
denoiser = invdiff.load_model("pipeline")
x, _ = sample_photo(32)
measurement = invdiff.make_operator("inpaint", mask="box").measure(
    x, sigma=0.025, seed=0
)
text = torch.randn(1, 7, 32)
method = invdiff.make_method("psld")
result = invdiff.solve(
    measurement, denoiser, method, steps=5, seed=0, encoder_hidden_states=text
)
print(tuple(result.x.shape), f"{result.nfe:g} evaluations")

# %%
shutil.rmtree("pipeline")
panels = {
    "measured": measurement.y[0],
    "no training yet": result.x[0].clamp(0, 1),
}
to_pil_image(grid(list(panels.values()), labels=list(panels), height=192))
