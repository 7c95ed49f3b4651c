"""How right methods are: samples against posteriors that are known exactly (``invdiff bench --suite
exact``).

Every prior is a mixture of Gaussians that share one covariance, so the posterior mean at each noise
level (which is what the network says), the posterior under ``y = A x + n`` and draws of it are
exact.

gaussian  one Gaussian of correlated small images, under every linear operator: error of the
          posterior's mean, in posterior standard deviations (root mean square), and of its
          covariance, relative (Frobenius).
mixture   the 25 components of Cardoso et al. (ICLR 2024, arXiv:2308.07983, section 5.1): means
          (−8i, −8j) repeated d/2 times, i and j in −2..2, identity covariance, weights prop. to
          N(0, 1)²; A = U diag(s) Vᵀ from the SVD of randn(d_y, d) with s sorted U(0, 1), sigma =
          U(0, 1) max s, y from a draw of the prior; betas falling from 0.02 to 1e-4. First-order
          sliced Wasserstein distance to exact draws, over 1000 directions.

Beside every method stand the floor (as many exact draws against others) and the prior (the method
``none``).
"""

from invdiff.benchmarks.exact.mixture import Mixture
from invdiff.benchmarks.exact.problems import Problem, gaussian_problem, mixture_problem
from invdiff.benchmarks.exact.suite import Exact

__all__ = ["Exact", "Mixture", "Problem", "gaussian_problem", "mixture_problem"]
