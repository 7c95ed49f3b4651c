# %% [markdown]
# # A leaderboard
#
# Methods and a classical baseline restore the same stored measurements; a
# record is one JSON file for each image, and tables are made from records.
# What is finished is never run again.

# %%
import contextlib
import io
import shutil

from invdiff.commands.main import main


def command(line):
    with contextlib.redirect_stderr(io.StringIO()):
        assert main(line.split()) == 0, line


command(
    "bench --operator inpaint --method ddrm --baseline pinv "
    "images.crop=64 images.size=64 images.limit=1 steps=4 "
    "--output board --quiet"
)

# %% [markdown]
# Differences are paired by image and come with an interval; two images are
# too few for a claim.

# %%
command("leaderboard board --baseline ddrm --format markdown")

# %%
shutil.rmtree("board")

# %% [markdown]
# `--format html` makes one page that needs no network; [running a
# leaderboard](../leaderboard.md) has the rest.
