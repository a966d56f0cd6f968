"""The signal-to-noise ratio of importance-weighted gradients against the number of samples, measured and exact.

In a linear-Gaussian model, the encoder's falls with K with the total derivative (Rainforth et al. 2018) and rises with
the doubly reparameterized one (Tucker et al. 2019); the decoder's rises with both.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae.distributions import Normal, sum_from
from vae.objectives import IWAE, DReG, EstimatorA, Objective, StickingTheLanding
from vae.reproduce.estimators.gradients import Row, generator, moments

PARAMETERS = ("encoder mean", "encoder log std", "decoder bias")


class LinearGaussianRows(nn.Module):
    """p(z) = N(0, 1), p(x|z) = N(z + b, 1/2), q(z|x) = N(mean, exp(log_std)^2), with parameters for each row.

    So each row has its own gradient, and the variance over noise is that over rows. At x = 1 and the parameters given
    here, the posterior is N(2/3, 1/3) and chi^2, the variance of p(z|x) / q(z|x), is 0.178.
    """

    X, VARIANCE = 1.0, 0.5

    def __init__(self, rows: int, mean: float = 0.4, std: float = 0.7, b: float = 0.0) -> None:
        super().__init__()
        start = torch.tensor([mean, math.log(std), b], dtype=torch.float64)
        self.values = nn.Parameter(start.repeat(rows, 1))  # (R, 3)
        zeros = torch.zeros(1, dtype=torch.float64)
        self.prior = Normal(zeros, zeros)

    def posterior(self, x: Tensor) -> Normal:  # elements (R, 1)
        """q(z|x), the same for every x."""
        return Normal(self.values[:, :1], self.values[:, 1:2])

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:  # (R, 1), (K, R, 1) -> (K, R)
        """log p(x|z)."""
        log_std = torch.full((), 0.5 * math.log(self.VARIANCE), dtype=torch.float64)
        return sum_from(Normal(z + self.values[:, 2:], log_std).log_prob(x), 2)

    def log_p_x(self) -> Tensor:  # (R,)
        """log p(x), by x ~ N(b, 3/2)."""
        log_std = torch.full((), 0.5 * math.log(1 + self.VARIANCE), dtype=torch.float64)
        return Normal(self.values[:, 2], log_std).log_prob(torch.full((), self.X, dtype=torch.float64))

    def gradients(self, objective: Objective, noise: Tensor) -> tuple[Tensor, Tensor]:  # (K, R, 1) -> (R,), (R, 3)
        """The bound, and the gradient of the surrogate, row by row."""
        x = torch.full((len(self.values), 1), self.X, dtype=torch.float64)
        model: Any = self
        estimate, _ = objective(model, x, {"eps": noise}, {}, 0)
        return estimate.bound, torch.autograd.grad(estimate.surrogate.sum(), self.values)[0]


def _quadrature() -> tuple[Tensor, Tensor]:
    """Nodes and weights of the trapezoid rule for N(0, 1), which is exact to rounding for smooth integrands."""
    nodes = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    weights = (-0.5 * nodes.square()).exp()
    return nodes, weights / weights.sum()


def exact_gradient(num_samples: int) -> Tensor:  # (3,)
    """d L_K in the parameters of LinearGaussianRows, by two nested integrals, v(eps) = w / p(x):

    log p(x) - L_K = int phi(e^u / K)^K - exp(-e^u) du,  phi(t) = E exp(-t v).
    """
    model, (nodes, weights) = LinearGaussianRows(1), _quadrature()
    x = torch.full((1, 1), model.X, dtype=torch.float64)
    q, z = model.posterior(x), model.posterior(x).transform(nodes[:, None, None])  # (nodes, 1, 1)
    log_joint = model.log_likelihood(x, z) + model.prior.log_prob(z)[..., 0]
    v = (log_joint - q.log_prob(z)[..., 0] - model.log_p_x()).exp()[:, 0]  # (nodes,)
    step = 0.2
    u = torch.arange(-40, 58, step, dtype=torch.float64)
    missing = -torch.expm1(-(u.exp() / num_samples)[:, None] * v) @ weights  # 1 - phi; rounding can take it to 1
    powers = torch.expm1(num_samples * torch.log1p(-missing.clamp(max=1 - 2**-53)))  # phi^K - 1
    bound = model.log_p_x().sum() - (powers - torch.expm1(-u.exp())).sum() * step
    return torch.autograd.grad(bound, model.values)[0][0]


def predicted_constants() -> dict[tuple[str, str], float]:
    """{(estimator, parameter): c} of SNR -> c K^slope for many samples (Rainforth et al. 2018, theorem 1), exactly.

    The encoder's mean gradient tends to -d chi^2 / (2 K). Its deviation tends to that of v g / K^(1/2) for IWAE, g the
    total derivative of log w, and to that of v^2 h / K^(3/2) for DReG, h the derivative along the path, less
    2 v E v^2 h / K^(3/2) for the weights' own sum; the decoder's to that of v (g - E v g) / K^(1/2).
    """
    nodes, weights = _quadrature()
    model = LinearGaussianRows(len(nodes))
    bound, total = model.gradients(EstimatorA(), nodes[None, :, None])
    _, path = model.gradients(StickingTheLanding(), nodes[None, :, None])
    v = (bound - model.log_p_x()).detach().exp()[:, None]  # (nodes, 1)
    d_log_p = weights @ (v * total)  # 0 in the encoder's parameters
    d_log_v = total - d_log_p
    d_chi2 = weights @ (2 * v.square() * d_log_v)
    deviation = (weights @ (v * d_log_v).square()).sqrt()
    doubly = v.square() * path
    influence = doubly - 2 * v * (weights @ doubly)
    doubly_deviation = (weights @ (influence - weights @ influence).square()).sqrt()
    constants = {}
    for i, parameter in enumerate(PARAMETERS[:2]):
        constants["iwae", parameter] = (d_chi2[i].abs() / (2 * deviation[i])).item()
        constants["dreg", parameter] = (d_chi2[i].abs() / (2 * doubly_deviation[i])).item()
    for estimator in ("iwae", "dreg"):
        constants[estimator, PARAMETERS[2]] = (d_log_p[2].abs() / deviation[2]).item()
    return constants


def compare_signal_to_noise(num_samples: int, gradients: int, seed: int = 0, chunk: int = 2**20) -> list[Row]:
    """|mean| / deviation of each parameter's gradient of L_K by IWAE and by DReG, K = num_samples.

    The ratio uses the exact mean, because IWAE's cannot be measured for many samples; the measured one is given too.
    """
    exact, rows = exact_gradient(num_samples), []
    made: dict[str, Objective] = {"iwae": IWAE(num_samples=num_samples), "dreg": DReG(num_samples=num_samples)}
    generators = {name: generator(seed, "signal to noise", num_samples) for name in made}  # the same noise for both
    size = max(1, chunk // num_samples)
    for name, objective in made.items():
        pieces = []
        for start in range(0, gradients, size):
            count = min(size, gradients - start)
            noise = torch.randn(num_samples, count, 1, generator=generators[name], dtype=torch.float64)
            pieces.append(LinearGaussianRows(count).gradients(objective, noise)[1])
        for i, parameter in enumerate(PARAMETERS):
            found = moments(torch.cat(pieces)[:, i])
            ratio = abs(exact[i].item()) / math.sqrt(found["variance"])
            rows.append(
                {
                    "estimator": name,
                    "parameter": parameter,
                    "num_samples": num_samples,
                    "gradients": gradients,
                    **found,
                    "exact_mean": exact[i].item(),
                    "signal_to_noise": ratio,
                    "signal_to_noise_stderr": 0.5 * ratio * found["variance_stderr"] / found["variance"],
                }
            )
    return rows


def limit(estimator: str, parameter: str) -> float:
    """The slope in log K of a signal-to-noise ratio for many samples (Rainforth et al. 2018; Tucker et al. 2019)."""
    return -0.5 if estimator == "iwae" and parameter.startswith("encoder") else 0.5


def fitted_slopes(rows: Sequence[Row]) -> list[Row]:
    """The slope in log K of each signal-to-noise ratio by weighted least squares, and its limit."""
    slopes, constants = [], predicted_constants()
    for estimator, parameter in constants:
        chosen = [row for row in rows if (row["estimator"], row["parameter"]) == (estimator, parameter)]
        log_k = torch.tensor([math.log(row["num_samples"]) for row in chosen], dtype=torch.float64)
        ratios = torch.tensor([row["signal_to_noise"] for row in chosen], dtype=torch.float64)
        errors = torch.tensor([row["signal_to_noise_stderr"] for row in chosen], dtype=torch.float64) / ratios
        weights = errors.square().reciprocal()
        centred = log_k - (weights * log_k).sum() / weights.sum()
        slope = (weights * centred * ratios.log()).sum() / (weights * centred.square()).sum()
        slopes.append(
            {
                "estimator": estimator,
                "parameter": parameter,
                "slope": slope.item(),
                "slope_stderr": (weights * centred.square()).sum().rsqrt().item(),
                "exact_slope": limit(estimator, parameter),
                "exact_constant": constants[estimator, parameter],
            }
        )
    return slopes
