"""The cost of the framework: every figure is a ratio of things measured side by side, in turn, in
this one run, beside its goal.

    python -m invdiff.benchmarks.speed [--output FOLDER] [--only overhead conditional free peers
    operators solvers tiled windows start together board]

overhead     DPS and DDIM loops beside the bare network evaluations they need (64x64, B = 8; and B =
             1 beside 8).
conditional  likewise CFG, its branches in two calls or in one, and classifier guidance (digits,
             32x32, B = 16), and SR3 (64x64, B = 8).
free         steps of DDIM, DPS, DiffPIR, RED-diff, DDRM, DDNM and CFG with a network that costs
             nothing, beside the same updates written by hand in a few lines of torch (B = 1, 8).
peers        whole DPS runs beside deepinv's and azula's, same network, steps, images and threads;
             time and peak memory.
operators    pseudo-inverses of 4x3x256x256.
solvers      conjugate gradients beside deepinv's on the same system; calls of A by DiffPIR on CT.
tiled        what a step on a large image in windows allocates, beside one on an image of a single
             window; windows against whole.
windows      the time of 256x256 in tiles of 128 over that of the whole.
start        `solve` with a single step beside `import torch`, in processes of their own.
together     eight images restored as one batch beside one after the other.
board        `leaderboard` over 10,000 records.

Close other programs first: two busy cores make the ratios noisy. Medians over the rounds,
contenders taking turns.
"""
