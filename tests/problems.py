"""Models with known answers. The linear-Gaussian VAE first: every quantity of it has a closed form.

x|z ~ N(W z + b, s^2 I), q(z|x) = N(A x + c, diag S); z in R^J, x in R^D, nats.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import vae


@dataclass
class LinearGaussian:
    W: Tensor  # (D, J)
    b: Tensor  # (D,)
    s2: float
    A: Tensor  # (J, D)
    c: Tensor  # (J,)
    S: Tensor  # (J,)

    @classmethod
    def random(cls, D=5, J=3, seed=0):
        g = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
        return cls(draw(D, J), draw(D), 0.7, 0.3 * draw(J, D), 0.2 * draw(J), (0.5 * draw(J)).exp())

    @classmethod
    def scalar(cls):
        """The case of the variance table: w = 1.3, b = .2, s^2 = .5; at x = 1.7, q has mean .3 and deviation .6."""
        one = lambda v: torch.tensor([[v]], dtype=torch.float64)  # noqa: E731
        return cls(one(1.3), one(0.2)[0], 0.5, one(0.0), one(0.3)[0], one(0.36)[0])

    def data(self, M, seed=1):
        g = torch.Generator().manual_seed(seed)
        return self.b + 2 * torch.randn(M, len(self.b), generator=g, dtype=torch.float64)

    # ---------------------------------------------------------------- the same model, built from the library's parts

    def model(self):
        D, J = self.W.shape
        encoder, decoder = nn.Linear(D, 2 * J, dtype=torch.float64), nn.Linear(J, D, dtype=torch.float64)
        with torch.no_grad():
            encoder.weight.copy_(torch.cat([self.A, torch.zeros(J, D)]))
            encoder.bias.copy_(torch.cat([self.c, self.S.log()]))
            decoder.weight.copy_(self.W)
            decoder.bias.copy_(self.b)
        likelihood = vae.Gaussian((D,), variance="fixed", std=math.sqrt(self.s2))
        return vae.VAE(encoder, decoder, likelihood).double()

    # ---------------------------------------------------------------- closed forms

    @property
    def precision(self):  # of the posterior
        return torch.eye(self.W.shape[1]) + self.W.T @ self.W / self.s2

    def posterior_mean(self, x):
        return (x - self.b) @ self.W @ torch.linalg.inv(self.precision) / self.s2

    def posterior_samples(self, x, noise):  # noise (L, M, J), standard normal -> exact draws
        factor = torch.linalg.cholesky(torch.linalg.inv(self.precision))
        return self.posterior_mean(x) + noise @ factor.T

    def log_p_x(self, x):
        C = self.W @ self.W.T + self.s2 * torch.eye(len(self.b))
        return torch.distributions.MultivariateNormal(self.b, C).log_prob(x)

    def kl_to_posterior(self, x):
        """KL(q(z|x) || p(z|x)) = [tr(Lambda S) - J - log det(Lambda S) + (mu - m)' Lambda (mu - m)] / 2."""
        precision, J = self.precision, self.W.shape[1]
        m = (x - self.b) @ self.W @ torch.linalg.inv(precision) / self.s2
        d = x @ self.A.T + self.c - m
        LS = precision * self.S
        return 0.5 * (LS.trace() - J - torch.linalg.slogdet(LS)[1] + ((d @ precision) * d).sum(1))

    def elbo(self, x):
        return self.log_p_x(x) - self.kl_to_posterior(x)

    def log_p_x_given_z(self, x):
        """E_q log p(x|z)."""
        D = len(self.b)
        r = x - self.b - (x @ self.A.T + self.c) @ self.W.T
        spread = (self.W.square() * self.S).sum()
        return -0.5 * D * math.log(2 * math.pi * self.s2) - (r.square().sum(1) + spread) / (2 * self.s2)

    def gradients(self, x):
        """Of the mean ELBO over x, with respect to mu (M, J), log S / 2, W, b and log s^2."""
        mu = x @ self.A.T + self.c
        m = (x - self.b) @ self.W @ torch.linalg.inv(self.precision) / self.s2
        r = x - self.b - mu @ self.W.T
        d_mu = -(mu - m) @ self.precision
        M = len(x)
        return {
            "A": d_mu.T @ x / M,
            "c": d_mu.mean(0),
            "log_std": 1 - self.precision.diagonal() * self.S,
            "W": (r.T @ mu / M - self.W * self.S) / self.s2,
            "b": r.mean(0) / self.s2,
        }


class Squared(nn.Module):
    """Pixel logits a + b z^2 of one latent: z and -z look alike, so the posterior has two modes."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, z):  # (B, 1) -> (B, D)
        return self.a + self.b * z.square()


def two_modes(D=50, seed=3):
    """A Bernoulli VAE whose posteriors are symmetric with two modes, and an encoder that sees one of them."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    encoder = nn.Linear(D, 2, dtype=torch.float64)
    with torch.no_grad():
        encoder.weight.zero_()
        encoder.bias.copy_(torch.tensor([1.3, -3.0]))
    return vae.VAE(encoder, Squared(-draw(D).abs(), 1.2 * draw(D)), vae.Bernoulli((D,))).double()


def cubature(J):
    """2 J points with mean 0 and covariance I, of equal weight: the mean over them of a cubic is its normal mean.

    Passed as noise (L = 2 J, 1, J), they turn an estimator of the linear-Gaussian bound into an exact number.
    """
    points = math.sqrt(J) * torch.cat([torch.eye(J), -torch.eye(J)])
    return points[:, None, :]


def probabilistic_pca(x, J):
    """The largest mean log-likelihood of a linear-Gaussian model with J latents, and its variance s^2 (Tipping 1999)."""
    D = x.shape[1]
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    s2 = values[J:].mean()
    best = -0.5 * (D * math.log(2 * math.pi) + values[:J].log().sum() + (D - J) * s2.log() + D)
    return best, s2, values
