"""Models with known answers. The linear-Gaussian VAE first: every quantity of it has a closed form.

x|z ~ N(W z + b, s^2 I), q(z|x) = N(A x + c, diag S); z in R^J, x in R^D, nats.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import vae
from tests.oracles import finite_difference, importance_gap


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
    def scalar(cls, w=1.3, b=0.2, s2=0.5, mean=0.3, std=0.6):
        """One latent, one pixel, q the same for every x; by default the case of the variance table, at x = 1.7."""
        one = lambda v: torch.tensor([[v]], dtype=torch.float64)  # noqa: E731
        return cls(one(w), one(b)[0], s2, one(0.0), one(mean)[0], one(std**2)[0])

    @classmethod
    def reference(cls, mean=0.4, std=0.7):
        """The case of the importance-weighted bounds, at x = 1: the posterior is N(2/3, 1/3)."""
        return cls.scalar(1.0, 0.0, 0.5, mean, std)

    @classmethod
    def correlated(cls, precision, S=None, d=(0.0, 0.0)):
        """Two latents whose posterior, N(0, precision^-1) at x = 0, is correlated; q = N(d, S), by default the best."""
        precision = torch.tensor(precision, dtype=torch.float64)
        S = 1 / precision.diagonal() if S is None else torch.tensor(S, dtype=torch.float64)
        W = torch.linalg.cholesky(precision - torch.eye(2, dtype=torch.float64)).T
        zeros = torch.zeros(2, dtype=torch.float64)
        return cls(W, zeros, 1.0, torch.zeros(2, 2, dtype=torch.float64), torch.tensor(d, dtype=torch.float64), S)

    def at_posterior(self):
        """The same with q(z|x) = p(z|x), where that is diagonal."""
        A = torch.linalg.inv(self.precision) @ self.W.T / self.s2
        return replace(self, A=A, c=-A @ self.b, S=1 / self.precision.diagonal())

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

    def model_of_rows(self, rows):
        """The model of one latent and one pixel with parameters of their own for each row, so that gradients are too.

        `encoder.value` is (rows, 2): mean and log-variance; `decoder.value` is (rows, 2): w and b.
        """
        model = self.model()
        mean_and_log_variance = torch.cat([self.c, self.S.log()])
        model.encoder = PerRow(mean_and_log_variance, rows, lambda value, x: value[: len(x)])
        model.decoder = PerRow(
            torch.cat([self.W[0], self.b]),
            rows,
            lambda value, z: (z.view(-1, len(value)) * value[:, 0] + value[:, 1]).view(-1, 1),
        )
        return model

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

    def chi2(self, x):
        """The variance of p(z|x) / q(z|x) under q; infinite unless 2 Lambda > S^-1."""
        precision, S = self.precision, self.S.diag()
        if torch.linalg.eigvalsh(2 * precision - torch.linalg.inv(S)).min() <= 0:
            return torch.tensor(math.inf)
        covariance = torch.linalg.inv(precision)
        d = x @ self.A.T + self.c - (x - self.b) @ self.W @ covariance / self.s2
        LS = precision @ S
        scale = torch.linalg.det(LS) / torch.linalg.det(2 * LS - torch.eye(len(S))).sqrt()
        return scale * (0.5 * ((d @ torch.linalg.inv(S - covariance / 2)) * d).sum(1)).exp() - 1

    def importance_bound(self, x, K):
        """L_K at one x of one pixel, for one latent: log p(x) less the nested integral."""
        precision, std = self.precision[0, 0], self.S[0].sqrt()
        d = (self.c + x @ self.A[0] - (x - self.b) @ self.W[:, 0] / self.s2 / precision)[0]

        def log_v(eps):
            return 0.5 * (eps.square() - precision * (d + std * eps).square() + (precision * self.S[0]).log())

        return self.log_p_x(x)[0] - importance_gap(log_v, K)

    def importance_gradients(self, x, K):
        """Of L_K with respect to q's mean and log std, and to w and b, by central differences."""

        def bound(values):
            mean, log_std, w, b = values
            return self.scalar(w.item(), b.item(), self.s2, mean.item(), log_std.exp().item()).importance_bound(x, K)

        values = torch.stack([self.c[0], 0.5 * self.S[0].log(), self.W[0, 0], self.b[0]])
        return finite_difference(bound, values, step=1e-4)

    def path_gradients(self, x, eps):  # eps (K, R) -> (R, 2)
        """sum_k v_k (d log w_k / dz) dz of one latent, in q's mean and log std: no gradient of any bound for K > 1."""
        precision, std = self.precision[0, 0], self.S[0].sqrt()
        m = (x[0] - self.b) @ self.W[:, 0] / self.s2 / precision
        z = self.c[0] + std * eps
        v = (0.5 * (eps.square() - precision * (z - m).square())).softmax(0)
        path = v * (eps / std - precision * (z - m))
        return torch.stack([path.sum(0), (path * std * eps).sum(0)], 1)

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


class PerRow(nn.Module):
    """A function of the input and of parameters that each row has for itself."""

    def __init__(self, value, rows, function):
        super().__init__()
        self.value = nn.Parameter(value.expand(rows, -1).clone())
        self.function = function

    def forward(self, x):
        return self.function(self.value, x)


def gradients_of_rows(model):
    """(rows, 4) after a backward pass: with respect to q's mean and log std, and to w and b."""
    encoder, decoder = model.encoder.value.grad, model.decoder.value.grad
    return torch.cat([encoder[:, :1], 2 * encoder[:, 1:], decoder], 1)


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
