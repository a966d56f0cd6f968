"""Regression: p(y|x) by a network for its mean and one for its noise, whose weights are points or random variables."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae.data import Batch, Split
from vae.distributions import Normal
from vae.errors import UsageError
from vae.models.bayesian import Sampling, VariationalLinear, networks, through, weights_kl
from vae.models.vae import CHUNK, Standardise, evaluating
from vae.networks import ACTIVATIONS, Activation
from vae.randomness import Draws, datum_noise
from vae.schema import Count, Interval, Positive, validated

SMALLEST_STD = 1e-3  # of the noise, in standard deviations of the training targets, so that no density is infinite
BISECTIONS = 50  # of a quantile, to 1e-15 of where those of the networks lie


@validated
class Regression(nn.Module):
    """log p(y|x, w) = sum_t log N(y_t; m_t(x, w), s_t(x, w)^2), with q(w) over the weights w of m and s.

    `noise` is what s is: a network of x (heteroscedastic; Li 2021, Kendall & Gal 2017), one number per target that is
    learned (constant), or `noise_std` (fixed), in the units of y. `weights` are points or variational (Blundell et al.
    2015): those of the last `layers`, or of all, where independent weights underfit small data. Their prior is N(0,
    prior_std^2), and `sampling` is what training draws: activations (local reparameterization) or weights. Inputs and
    targets are standardised inside by the training data unless `standardise` is false; the density is that of y as
    given.
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        targets: int,
        *,
        noise: Literal["heteroscedastic", "constant", "fixed"] = "heteroscedastic",
        weights: Literal["variational", "point"] = "variational",
        layers: Literal["last", "all"] = "last",
        hidden: tuple[Count, ...] = (50, 50),
        activation: Activation = "leaky_relu",
        dropout: Annotated[float, Interval(0, 0.99)] = 0.0,
        noise_std: Positive = 0.1,
        prior_std: Positive = 1.0,
        initial_std: Positive = 0.05,
        sampling: Sampling = "activations",
        standardise: bool = True,
    ) -> None:
        super().__init__()
        self.noise, self.weights, self.layers = noise, weights, layers
        self.hidden, self.activation = tuple(hidden), activation
        self.dropout, self.noise_std, self.prior_std, self.initial_std = dropout, noise_std, prior_std, initial_std
        self.sampling, self.standardise = sampling, standardise
        self.data_shape, self.targets = tuple(data_shape), targets
        sizes = (math.prod(data_shape), *hidden)

        def linear(inputs: int, outputs: int, last: bool = False) -> nn.Module:
            if weights == "variational" and (last or layers == "all"):
                return VariationalLinear(inputs, outputs, prior_std=prior_std, initial_std=initial_std)
            return nn.Linear(inputs, outputs)

        def network() -> nn.Sequential:
            dense = [m for pair in itertools.pairwise(sizes) for m in (linear(*pair), ACTIVATIONS[activation]())]
            return nn.Sequential(*dense, nn.Dropout(dropout), linear(sizes[-1], targets, last=True))

        self.mean = network()
        if noise == "heteroscedastic":
            self.spread = network()
        if noise == "constant":
            self.raw_std = nn.Parameter(torch.full((targets,), math.log(math.expm1(0.5))))
        self.inputs = Standardise(torch.zeros(data_shape), torch.ones(data_shape))
        self.outputs = Standardise(torch.zeros(targets), torch.ones(targets))
        self.register_buffer("num_data", torch.tensor(1))  # N, of the training data

    num_data: Tensor

    def prepare(self, train: Split) -> None:
        """Take N and, if asked to standardise, means and standard deviations from the training data."""
        self.num_data.fill_(len(train))
        if self.standardise:
            self.inputs.load_state_dict(Standardise.of(train.images().flatten(1)).state_dict())
            self.outputs.load_state_dict(Standardise.of(self.as_targets(train.y)).state_dict())

    def as_targets(self, y: Tensor | None) -> Tensor:  # (M,), (M, T) -> (M, T)
        """Targets in the model's type. UsageError if there are none, or of another number."""
        if y is None:
            raise UsageError("a regression needs targets y beside x")
        y = y.reshape(len(y), -1).to(self.inputs.mean)
        if y.shape[1] != self.targets:
            raise UsageError(f"y has {y.shape[1]} targets per datum, and the model is of {self.targets}")
        return y

    def on(self, batch: Batch) -> tuple["Regression", Batch]:
        """What an objective is given of a minibatch."""
        return self, batch

    def likelihood(self, x: Tensor, draws: Draws) -> Normal:  # (M, *data_shape) -> elements (1 or S, M, T)
        """p(y|x, w) for the weights of each draw, in the units of y."""
        x = self.inputs(x.flatten(1))[None]
        mean = through(self.mean, x, draws, "mean")
        if self.noise == "fixed":
            log_std = torch.full_like(mean, math.log(self.noise_std)) - self.outputs.std.log()
        else:
            raw = through(self.spread, x, draws, "spread") if self.noise == "heteroscedastic" else self.raw_std
            log_std = (F.softplus(raw) + SMALLEST_STD).log()
        location, scale = self.outputs.mean, self.outputs.std
        return Normal(mean * scale + location, (log_std + scale.log()).expand_as(mean))

    def kl(self) -> Tensor:  # ()
        """KL(q(w) || p(w)), nats for the whole training set; 0 for point weights."""
        return weights_kl(self).to(self.inputs.mean)


@dataclass(frozen=True)
class Predictive:
    """p(y|x) = (1/S) sum_s N(y; m_s(x), s_s(x)^2), a mixture over S networks drawn from q(w); one for point weights."""

    of_networks: Normal  # elements (S, N, T), in the units of y

    @classmethod
    def of(cls, model: Regression, x: Tensor, samples: int, seed: int) -> "Predictive":  # (N, *data_shape)
        """By `samples` networks, of which network s depends only on (seed, s)."""
        draws = networks(model, samples, seed)
        with evaluating(model):
            parts = [model.likelihood(rows, draws) for rows in x.split(CHUNK)]
        mean, log_std = (torch.cat([getattr(p, key) for p in parts], 1).double() for key in ("mean", "log_std"))
        return cls(Normal(mean.cpu(), log_std.cpu()))

    @property
    def mean(self) -> Tensor:  # (N, T)
        """E y."""
        return self.of_networks.mean.mean(0)

    def variances(self) -> dict[str, Tensor]:  # (N, T) each
        """Var y = E_w Var(y|w) + Var_w E(y|w): total, aleatoric and epistemic (the law of total variance)."""
        aleatoric, epistemic = self.of_networks.variance.mean(0), self.of_networks.mean.var(0, correction=0)
        return {"total": aleatoric + epistemic, "aleatoric": aleatoric, "epistemic": epistemic}

    def log_prob(self, y: Tensor) -> Tensor:  # (N, T) -> (N,)
        """log p(y|x) of all targets together, nats."""
        each = self.of_networks.log_prob(y).sum(2)
        return torch.logsumexp(each, 0) - math.log(len(each))

    def cdf(self, y: Tensor) -> Tensor:  # (N, T) -> (N, T), or more axes before
        """P(Y <= y) of each target; of an observed y, its probability integral transform (PIT)."""
        return torch.special.ndtr((y.unsqueeze(-3) - self.of_networks.mean) / self.of_networks.std).mean(-3)

    def quantile(self, alpha: Sequence[float]) -> Tensor:  # -> (A, N, T)
        """Where the distribution function is alpha, by bisection between the smallest and largest of the networks'."""
        level = torch.tensor(alpha, dtype=torch.float64)[:, None, None]
        of_each = self.of_networks.transform(torch.special.ndtri(level)[:, None])  # (A, S, N, T)
        low, high = of_each.amin(1), of_each.amax(1)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            above = self.cdf(middle) > level
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def draws(self, n: int, seed: int) -> Tensor:  # (n, N, T)
        """n draws of y, by the networks in turn: the same weights for all data, noise of its own for each."""
        S, N, T = self.of_networks.mean.shape
        turn = torch.arange(n) % S
        of_draws = Normal(self.of_networks.mean[turn], self.of_networks.log_std[turn])
        return of_draws.transform(datum_noise("normal", seed, "predictive", range(N), (n, T)).transpose(0, 1))
