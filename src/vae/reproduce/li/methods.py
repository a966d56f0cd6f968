"""Ways to predict y from x, on data of algorithm 2 of Li 2021: the report's networks, ours, and exact references."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from torch import Tensor, nn

from vae.algorithms import AEVB, OPTIMIZERS
from vae.data import Batch, Split
from vae.data.synthetic import li_data, li_law
from vae.distributions import Normal, sum_from
from vae.models import Predictive, Regression, variational_layers
from vae.objectives import Estimate, Memory, Objective, RegressionBound
from vae.randomness import Draws, Noise, Streams, derive, seeded
from vae.regression import VariationalRegressor

CPU = torch.device("cpu")
NETS: dict[str, Any] = {"hidden": (25, 25), "activation": "leaky_relu", "standardise": False}  # of the report

# ------------------------------------------------------------------------------------- what the report's code does


@dataclass(frozen=True)
class Published(Objective):
    """log N(z; m, s^2) + log N(z'; 0, 1) - log N(z'; m, s^2), z' = m + s eps, of each datum (the report's code).

    In the mean over eps it is the log-likelihood less KL(N(m, s^2) || N(0, 1)), in which the two log s cancel: the best
    s is not the residuals' standard deviation but its square root, s^4 = E (z - m)^2, and m is shrunk to 1 / (1 + s^2).
    """

    num_samples: int = 1

    def noises(self, model: Regression, batch_size: int) -> dict[str, Noise]:
        """eps, (1, M, T)."""
        return {"eps": Noise("normal", (1, batch_size, model.targets), data_axis=1)}

    def __call__(
        self, model: Regression, x: Batch, noise: Draws, memory: Memory, step: int | Tensor
    ) -> tuple[Estimate, Memory]:
        """What the report maximises."""
        law, standard = model.likelihood(x.x, {}), Normal(torch.zeros(()), torch.zeros(()))
        drawn, log_q = law.transform_and_log_prob(noise["eps"])
        log_likelihood = sum_from(law.log_prob(model.as_targets(x.y)), 2)[0]
        kl = sum_from(log_q - standard.log_prob(drawn), 2)[0]
        return Estimate(log_likelihood - kl, {"log_p_y_given_x": log_likelihood, "kl": kl}, log_likelihood - kl), memory


def learn(model: Regression, x: Tensor, y: Tensor, objective: Objective, steps: int, lr: float, seed: int) -> float:
    """Full-batch steps of the shared algorithm by Adam; the median of the objective over the last tenth of them."""
    algorithm = AEVB(objective, partial(OPTIMIZERS["adam"], lr=lr))
    state, streams, seen = algorithm.init(model.train()), Streams(seed, CPU), list[float]()
    model.prepare(Split(x, y, torch.arange(len(x))))
    with seeded(seed, "modules"):
        for _ in range(steps):
            noise = streams.draw(algorithm.noises(state, len(x)), torch.float32)
            seen.append(algorithm.step(state, Batch(x, y), noise)["elbo"].item() / len(x))
    return float(np.median(seen[-max(1, steps // 10) :]))


def network(seed: int, **options: Any) -> Regression:
    """A regression of one input and one target, its weights drawn from a seed."""
    with seeded(seed, "initialisation"):
        return Regression((1,), 1, **{**NETS, **options})


def as_in_the_code(model: Regression, seed: int) -> Regression:
    """The initial weights of the report's variational layers: biases begin with a standard deviation of 0.69."""
    with seeded(seed, "initialisation"), torch.no_grad():
        for _, layer in variational_layers(model):
            nn.init.normal_(layer.mean, std=0.002)
            nn.init.normal_(layer.rho, -2.5, 0.002)
            layer.mean[:, -1], layer.rho[:, -1] = 0, 0
    return model


@dataclass(frozen=True)
class Sample:
    """Data of algorithm 2: standardised y, fresh data of the same law, and the law itself in the same units."""

    x: Tensor  # (n, 1), float32, as y
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    location: float
    scale: float

    @classmethod
    def drawn(cls, seed: int, n: int = 150) -> "Sample":
        """By the generator of the report's code; 123 is the seed of its figures."""
        x, y = li_data(np.random.RandomState(seed), n)
        x_test, y_test = li_data(np.random.RandomState(derive(seed, "fresh") % 2**32), 1000)
        location, scale = y.mean(), y.std()
        y, y_test = (y - location) / scale, (y_test - location) / scale
        return cls(_column(x), _column(y), _column(x_test), _column(y_test), location, scale)

    def truth(self, x: Tensor) -> tuple[np.ndarray, np.ndarray]:  # (N, 1) -> (N,) both
        """Mean and standard deviation of standardised y."""
        mean, std = li_law(x[:, 0].double().numpy())
        return (mean - self.location) / self.scale, std / self.scale


def _column(values: np.ndarray) -> Tensor:  # (N,) -> (N, 1)
    return torch.from_numpy(values[:, None]).float()


def normal_law(mean: np.ndarray, std: np.ndarray) -> Predictive:  # (N,) both
    """A normal law of each datum."""
    return Predictive(
        Normal(*(torch.from_numpy(np.asarray(a, np.float64))[None, :, None] for a in (mean, np.log(std))))
    )


# ------------------------------------------------------------------------------------- ways to predict

Law = Callable[[Tensor], Predictive]  # of inputs (N, 1)
Method = Callable[[Sample, int, bool], Law]  # (data, seed, quick)


def _by_network(objective: Objective, steps: int, lr: float, **options: Any) -> Method:
    def method(data: Sample, seed: int, quick: bool) -> Law:
        model = network(seed, **options)
        learn(model, data.x, data.y, objective, 20 if quick else steps, lr, seed)
        return lambda x: Predictive.of(model, x, 300, seed)

    return method


def default_regressor(seed: int, quick: bool) -> VariationalRegressor:
    """With its defaults."""
    return VariationalRegressor(random_state=seed, steps=20) if quick else VariationalRegressor(random_state=seed)


def _by_default(data: Sample, seed: int, quick: bool) -> Law:
    fitted = default_regressor(seed, quick)
    fitted.fit(data.x.numpy(), data.y[:, 0].numpy())
    return lambda x: fitted.law(x.numpy())


def _gaussian_process(data: Sample, seed: int, quick: bool) -> Law:
    kernel = ConstantKernel(1.0) * RBF(5.0, (0.5, 100.0))
    process = GaussianProcessRegressor(kernel, alpha=data.truth(data.x)[1] ** 2, n_restarts_optimizer=0 if quick else 3)
    process.fit(data.x.double().numpy(), data.y[:, 0].double().numpy())

    def law(x: Tensor) -> Predictive:
        mean, std = process.predict(x.double().numpy(), return_std=True)
        return normal_law(mean, np.hypot(std, data.truth(x)[1]))

    return law


def _linear(data: Sample, seed: int, quick: bool) -> Law:
    """Bayesian linear regression, w ~ N(0, I) on 1 and x / 25, with the true noise: the exact posterior."""

    def design(x: Tensor) -> np.ndarray:
        return np.stack([np.ones(len(x)), x[:, 0].double().numpy() / 25], 1)

    weighted = design(data.x).T / data.truth(data.x)[1] ** 2
    covariance = np.linalg.inv(np.eye(2) + weighted @ design(data.x))
    mean = covariance @ weighted @ data.y[:, 0].double().numpy()

    def law(x: Tensor) -> Predictive:
        variance = np.einsum("ni,ij,nj->n", design(x), covariance, design(x))
        return normal_law(design(x) @ mean, np.sqrt(variance + data.truth(x)[1] ** 2))

    return law


def _truth(data: Sample, seed: int, quick: bool) -> Law:
    return lambda x: normal_law(*data.truth(x))


POINTS: dict[str, Any] = {"weights": "point", "dropout": 0.25}
METHODS: dict[str, Method] = {
    "true density": _truth,
    "Gaussian process, true noise": _gaussian_process,
    "Bayesian linear regression, true noise": _linear,
    "VariationalRegressor": _by_default,
    "heteroscedastic, points": _by_network(RegressionBound(), 1000, 0.005, **POINTS),
    "the report's objective": _by_network(Published(), 1000, 0.005, **POINTS),
    "the report's Bayesian network, noise 0.1": _by_network(RegressionBound(), 1000, 0.01, noise="fixed", layers="all"),
    "all layers variational": _by_network(RegressionBound(), 1000, 0.01, layers="all", standardise=True),
    "plain network, noise 0.1": _by_network(RegressionBound(), 1000, 0.005, weights="point", noise="fixed"),
}
