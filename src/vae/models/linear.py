"""Linear latent-variable models: PCA, probabilistic PCA and factor analysis (Chen 2020, section 2.1).

    x = mean + W z + e,   z ~ N(0, I),   e ~ N(0, Psi);   z in R^J, x in R^D

Psi is diagonal in factor analysis, s^2 I in probabilistic PCA, and tends to 0 in PCA. Everything that a
variational auto-encoder estimates has a closed form here, so these models are its reference: a VAE with linear
networks and one shared variance has the optimum of probabilistic PCA (Lucas et al. 2019), and one with a variance per
pixel that of factor analysis with a diagonal posterior. Everything is float64; covariances are divided by N, as maximum
likelihood does.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from vae.distributions import Noise, Normal, sum_from
from vae.errors import UsageError
from vae.randomness import datum_noise
from vae.schema import Count, Index, NonNegative, validated

S = TypeVar("S")


class NotConverged(UserWarning):
    """EM reached its last step before its tolerance; the fit is the best so far."""


# ------------------------------------------------------------------------------------- fitted models


def _empty() -> Tensor:
    return torch.zeros(0, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class PCA:
    """Principal components: the J orthonormal directions of largest variance, largest first.

    Each column of W has its largest entry positive. `trace` holds the share of the variance explained at each step of
    EM. PCA is the limit Psi -> 0, in which the posterior is a point and x has no density.
    """

    mean: Tensor  # (D,)
    W: Tensor  # (D, J), orthonormal columns
    variances: Tensor  # (J,) of the data along W
    trace: Tensor = field(default_factory=_empty)  # (steps,)

    def transform(self, x: Any) -> Tensor:  # (N, D) -> (N, J)
        """z = W' (x - mean), the least-squares projection."""
        return (_rows(x, len(self.mean)) - self.mean) @ self.W

    def reconstruct(self, x: Any) -> Tensor:  # (N, D) -> (N, D)
        """mean + W z at the projection z."""
        return self.mean + self.transform(x) @ self.W.T

    def log_p_x(self, x: Any) -> Tensor:
        """UsageError: PCA defines no density of x."""
        raise UsageError("PCA defines no density of x, so it has no likelihood; probabilistic_pca has one")


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(mean + W z, Psi): what probabilistic_pca and factor_analysis give.

    `variance` is the diagonal of Psi, or one number for s^2 I. The density of x depends only on W W', so the
    latents may be rotated; W is stored in the rotation that makes W' Psi^-1 W diagonal, largest first (each column's
    largest entry positive). In it the posterior has independent dimensions, N(m, diag(1 / precision)), which a diagonal
    q can equal: the ELBO of a VAE is largest in this rotation. `trace` holds the mean log p(x) of the training data at
    each step of EM, nats per datum.
    """

    mean: Tensor  # (D,)
    W: Tensor  # (D, J)
    variance: Tensor  # (D,) or ()
    trace: Tensor = field(default_factory=_empty)  # (steps,)

    def __post_init__(self) -> None:
        D, J = self.W.shape if self.W.ndim == 2 else (0, 0)
        if self.mean.shape != (D,) or self.variance.shape not in ((), (D,)) or not 1 <= J <= D:
            shapes = ", ".join(str(tuple(t.shape)) for t in (self.mean, self.W, self.variance))
            raise UsageError(f"mean, W, variance must have shapes (D,), (D, J), (D,) or (), J <= D, not {shapes}")
        if not (self.variance > 0).all():
            raise UsageError("every variance must be greater than 0")
        for name in ("mean", "W", "variance"):
            object.__setattr__(self, name, getattr(self, name).detach().double())
        std = self.variance.sqrt().expand(D)[:, None]  # (D, 1)
        U, s, _ = torch.linalg.svd(self.W / std, full_matrices=False)
        object.__setattr__(self, "W", _signed(std * U * s))

    @property
    def _precision(self) -> Tensor:  # (J,)
        """The diagonal of I + W' Psi^-1 W."""
        return 1 + (self.W.square() / self.variance.expand(len(self.mean))[:, None]).sum(0)

    @property
    def noise(self) -> Noise:
        """The distribution of the posterior's eps, and its shape for one sample of one datum."""
        return Noise("normal", (self.W.shape[1],))

    @property
    def prior(self) -> Normal:
        """p(z) = N(0, I), elements (J,)."""
        zeros = self.W.new_zeros(self.W.shape[1])
        return Normal(zeros, zeros)

    def posterior(self, x: Any) -> Normal:  # (M, D) -> elements (M, J)
        """p(z|x), exact: precision I + W' Psi^-1 W, mean precision^-1 W' Psi^-1 (x - mean)."""
        return Normal(self.transform(x), -0.5 * self._precision.log())

    def likelihood(self, z: Tensor) -> Normal:  # (L, M, J) -> elements (L, M, D)
        """p(x|z)."""
        return Normal(self.mean + z @ self.W.T, 0.5 * self.variance.log())

    def log_joint(self, x: Any, z: Tensor) -> Tensor:  # (M, D), (L, M, J) -> (L, M)
        """log p(x, z) = log p(z) + log p(x|z), nats."""
        x = _rows(x, len(self.mean))
        return sum_from(self.prior.log_prob(z), 2) + sum_from(self.likelihood(z).log_prob(x), 2)

    def log_p_x(self, x: Any) -> Tensor:  # (N, D) -> (N,)
        """log p(x) = log N(x; mean, W W' + Psi) of each datum, nats.

        With r = x - mean and the posterior mean m, r' (W W' + Psi)^-1 r = r' Psi^-1 r - m' precision m and
        |W W' + Psi| = |Psi| |precision|: nothing of size D x D is formed.
        """
        x, D = _rows(x, len(self.mean)), len(self.mean)
        m, precision, variance = self.transform(x), self._precision, self.variance.expand(D)
        square = ((x - self.mean).square() / variance).sum(1) - (precision * m.square()).sum(1)
        return -0.5 * (D * math.log(2 * math.pi) + variance.log().sum() + precision.log().sum() + square)

    def transform(self, x: Any) -> Tensor:  # (N, D) -> (N, J)
        """The posterior means."""
        r = _rows(x, len(self.mean)) - self.mean
        return (r / self.variance) @ self.W / self._precision

    @property
    def posterior_covariance(self) -> Tensor:  # (J, J)
        """(I + W' Psi^-1 W)^-1, the same for every x; diagonal in the rotation that W is stored in."""
        return torch.diag(1 / self._precision)

    def reconstruct(self, x: Any) -> Tensor:  # (N, D) -> (N, D)
        """The mean of p(x|z) at the posterior mean."""
        return self.mean + self.transform(x) @ self.W.T

    def sample(self, noise: Tensor) -> Tensor:  # (N, J + D) -> (N, D)
        """x = mean + W z + Psi^(1/2) eps, where the standard normal `noise` holds z, then eps, of each datum."""
        D, J = self.W.shape
        z, eps = _rows(noise, J + D, "noise").split([J, D], dim=1)
        return self.mean + z @ self.W.T + self.variance.sqrt() * eps


# ------------------------------------------------------------------------------------- expectation maximisation


@validated
@dataclass(frozen=True, kw_only=True)
class EM:
    """Expectation maximisation: steps that never lower the likelihood, until one raises it by less than `tolerance`.

    It starts from random directions drawn from `seed`. The tolerance is in nats per datum (for PCA, a share of the
    variance). Warns (NotConverged) if `max_steps` comes first.
    """

    tolerance: NonNegative = 1e-9
    max_steps: Count = 10_000
    seed: Index = 0

    def start(self, x: Tensor, latent_dim: int) -> Tensor:  # (N, D) -> (D, J)
        """Random directions on the scale of the data; EM never leaves an invariant subspace that it starts in."""
        scale = (x.var(0, correction=0).mean() / latent_dim).sqrt()
        return scale * datum_noise("normal", self.seed, "em", range(x.shape[1]), (latent_dim,)).to(x)

    def run(self, step: Callable[[S], tuple[S, float]], state: S) -> tuple[S, Tensor]:
        """The last state and the values of all; `step` returns the next state, and the value of its argument."""
        following, value = step(state)
        trace = [value]
        for _ in range(self.max_steps):
            state = following
            following, value = step(state)
            trace.append(value)
            if value - trace[-2] < self.tolerance:
                break
        else:
            warnings.warn(
                f"EM did not converge: step {self.max_steps} still gained {value - trace[-2]:.2g}, with a tolerance of "
                f"{self.tolerance:.2g}; raise max_steps or the tolerance",
                NotConverged,
                stacklevel=3,
            )
        return state, torch.tensor(trace, dtype=torch.float64)


def _pca_step(covariance: Tensor) -> Callable[[Tensor], tuple[Tensor, float]]:
    """A step of EM on the subspace of orthonormal W (Roweis 1998), with the share of the variance explained before it.

    The E step is z = W' r, the M step W = E[r z'] E[z z']^-1; orthonormal columns span the same subspace.
    """

    def step(W: Tensor) -> tuple[Tensor, float]:
        cross = covariance @ W  # E[r z'] (D, J)
        second = W.T @ cross  # E[z z'] (J, J)
        following = torch.linalg.qr(torch.linalg.solve(second, cross, left=False)).Q
        return following, (second.trace() / covariance.trace()).item()

    return step


def _gaussian_step(
    covariance: Tensor, restrict: Callable[[Tensor], Tensor]
) -> Callable[[tuple[Tensor, Tensor]], tuple[tuple[Tensor, Tensor], float]]:
    """A step of EM on (W, diagonal of Psi) (Rubin & Thayer 1982), with the mean log p(x) before it, nats per datum.

    `restrict` maps the D noise variances that the M step finds to the best that the model allows; this is the only
    difference between probabilistic PCA and factor analysis.
    """
    D = len(covariance)

    def step(state: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], float]:
        W, variance = state
        V = W / variance[:, None]  # Psi^-1 W (D, J)
        precision = torch.eye(W.shape[1]).to(W) + W.T @ V  # of the posterior (J, J)
        cross = torch.linalg.solve(precision, covariance @ V, left=False)  # E[r z'] (D, J)
        second = torch.linalg.solve(precision, torch.eye(W.shape[1]).to(W) + V.T @ cross)  # E[z z'] (J, J)
        square = (covariance.diagonal() / variance).sum() - (V * cross).sum()  # E[r' (W W' + Psi)^-1 r]
        value = -0.5 * (D * math.log(2 * math.pi) + variance.log().sum() + torch.logdet(precision) + square)
        W = torch.linalg.solve(second, cross, left=False)
        return (W, restrict(covariance.diagonal() - (W * cross).sum(1))), value.item()

    return step


# ------------------------------------------------------------------------------------- fitting


def pca(x: Any, latent_dim: int, *, em: EM | None = None) -> PCA:  # (N, D)
    """The first J principal components, by singular value decomposition, or by EM (Roweis 1998) if `em` is given.

    UsageError if the data vary in fewer directions.
    """
    x = _training_data(x, latent_dim)
    if em is None:
        mean, axes, variances = _principal_axes(x)
        _check_rank(latent_dim, int((variances > 0).sum()))
        return PCA(mean, _signed(axes[:, :latent_dim]), variances[:latent_dim])
    mean, covariance = _moments(x)
    _check_rank(latent_dim, int(torch.linalg.matrix_rank(covariance, hermitian=True)))
    W, trace = em.run(_pca_step(covariance), torch.linalg.qr(em.start(x, latent_dim)).Q)
    variances, R = torch.linalg.eigh(W.T @ covariance @ W)  # the smallest first
    return PCA(mean, _signed(W @ R.flip(1)), variances.flip(0), trace)


def probabilistic_pca(x: Any, latent_dim: int, *, em: EM | None = None) -> LinearGaussian:  # (N, D)
    """The maximum-likelihood probabilistic PCA, in closed form, or by EM if `em` is given (Tipping & Bishop 1999).

    With the eigenvalues of the 1/N covariance, s^2 is the mean of the D - J smallest, and W = U (Lambda - s^2 I)^(1/2)
    (their equations 7 and 8). At J = D, every s^2 up to the smallest eigenvalue gives the same, largest likelihood; the
    closed form takes that eigenvalue. UsageError if J latents explain all of the data, so that the likelihood has no
    maximum.
    """
    x = _training_data(x, latent_dim)
    J, D = latent_dim, x.shape[1]
    if em is None:
        mean, axes, variances = _principal_axes(x)
        _check_rank(J, int((variances > 0).sum()), D)
        s2 = variances[J:].sum() / (D - J) if J < D else variances[-1]
        return LinearGaussian(mean, axes[:, :J] * (variances[:J] - s2).clamp(min=0).sqrt(), s2)
    mean, covariance = _moments(x)
    _check_rank(J, int(torch.linalg.matrix_rank(covariance, hermitian=True)), D)
    shared = _gaussian_step(covariance, lambda variances: variances.mean().expand(D))
    (W, variance), trace = em.run(shared, (em.start(x, J), covariance.diagonal().mean().expand(D)))
    return LinearGaussian(mean, W, variance[0], trace)


def factor_analysis(x: Any, latent_dim: int, *, em: EM = EM(), floor: float = 1 / 510) -> LinearGaussian:  # (N, D)
    """Maximum-likelihood factor analysis: a noise variance for each of the D elements, by EM (Rubin & Thayer 1982).

    There is no closed form, and EM can end in a local maximum. No noise has a standard deviation below `floor`, half a
    grey level as in vae.Gaussian: without it, an element that is constant, or that the latents explain wholly (a
    Heywood case), drives the likelihood to infinity. UsageError if all of the data vary less than that.
    """
    x = _training_data(x, latent_dim)
    mean, covariance = _moments(x)
    largest = covariance.diagonal().max().sqrt().item()
    if not 0 < floor < largest:
        raise UsageError(
            f"floor: must be greater than 0 and below the largest standard deviation of an element, {largest:.3g}, "
            f"not {floor!r}"
        )
    step = _gaussian_step(covariance, lambda variances: variances.clamp(min=floor**2))
    start = covariance.diagonal().clamp(min=floor**2)
    (W, variance), trace = em.run(step, (em.start(x, latent_dim), start))
    return LinearGaussian(mean, W, variance, trace)


# ------------------------------------------------------------------------------------- small pieces


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:  # (N, D) -> (D,), (D, D)
    """Mean and 1/N covariance: all that EM needs of the data."""
    mean = x.mean(0)
    return mean, (x - mean).T @ (x - mean) / len(x)


def _principal_axes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, right singular vectors (D, min(N, D)), variances along them, largest first, rounding errors set to 0."""
    mean = x.mean(0)
    # R of the QR has the same singular values and right vectors, and at most as many rows as columns.
    _, s, Vh = torch.linalg.svd(torch.linalg.qr(x - mean, mode="r").R, full_matrices=False)
    s = torch.where(s > s[0] * max(x.shape) * torch.finfo(x.dtype).eps, s, 0)
    return mean, Vh.T, s.square() / len(x)


def _check_rank(latent_dim: int, rank: int, D: int | None = None) -> None:
    """UsageError if the data vary in fewer than J directions, or (given D) if J leave no variance for the noise."""
    if latent_dim > rank:
        raise UsageError(f"latent_dim: the data vary in {rank} directions, fewer than the {latent_dim} latents")
    if D is not None and latent_dim == rank < D:
        raise UsageError(
            f"latent_dim: the data vary in {rank} directions of {D}, so that {latent_dim} latents leave no variance "
            f"for the noise and the likelihood has no maximum; give at most {rank - 1}"
        )


def _signed(W: Tensor) -> Tensor:  # (D, J)
    """Columns with their largest entry positive, as the likelihood does not depend on their signs."""
    largest = W.gather(0, W.abs().argmax(0, keepdim=True))  # (1, J)
    return W * torch.where(largest < 0, -1.0, 1.0)


def _training_data(x: Any, latent_dim: int) -> Tensor:  # (N, D)
    x = _rows(x)
    N, D = x.shape
    if N < 2:
        raise UsageError(f"x must hold at least two data, not {N}")
    if not isinstance(latent_dim, int) or not 1 <= latent_dim <= D:
        raise UsageError(f"latent_dim must be a whole number from 1 to the {D} elements of a datum, not {latent_dim!r}")
    return x


def _rows(x: Any, D: int | None = None, name: str = "x") -> Tensor:  # (N, D)
    """Data as a float64 matrix; UsageError if x is not a matrix, or not finite."""
    try:
        x = torch.as_tensor(x).detach().double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name} must be a tensor or an array, not {type(x).__name__} ({error})") from None
    if x.ndim != 2 or x.shape[1] != (x.shape[1] if D is None else D) or x.shape[1] == 0:
        wanted = "D" if D is None else D
        raise UsageError(f"{name} must have shape (N, {wanted}), not {tuple(x.shape)}; flatten images: x.flatten(1)")
    if not torch.isfinite(x).all():
        raise UsageError(f"{name} has values that are not finite")
    return x
