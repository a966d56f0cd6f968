"""log p(x) by quadrature, for up to three latents: a lattice over the latent space, refined where the integrand is.

The sum of a smooth, decaying function over a lattice converges faster than any power of the spacing: for a Gaussian
posterior of deviation s, spacing h leaves a relative error below 2 exp(-2 pi^2 s^2 / h^2). No mode is assumed, and
none is missed that the first lattice sees.
"""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vae.errors import UsageError
from vae.evaluation.base import DatumNoise
from vae.models import VAE

HALF_WIDTH = 10.0  # the lattice begins on [-10, 10]^J, beyond which the prior leaves 1e-23
NEGLIGIBLE = 32.0  # nats below the largest value of the integrand at which a point is not refined any more
TOLERANCE = 1e-6  # nats, to which the estimate is refined
LEVELS = 12  # halvings at most
POINTS = 4_000_000  # points of a minibatch at most, at one level
ELEMENTS = 4_000_000  # values of pixels in memory together
AXIS = {1: 512, 2: 128, 3: 40}  # points an axis to start from, by the number of latents


class Level(NamedTuple):
    """Points of one spacing in sibling blocks: the 2^J halves, quarters or eighths of a coarser cell."""

    z: Tensor  # (B, 2^J, J)
    datum: Tensor  # (B,)
    spacing: float


def children(parents: Tensor, datum: Tensor, spacing: float) -> Level:  # (B, J), (B,)
    """The 2^J cells of half the spacing that each parent's cell is made of."""
    corners = torch.tensor(list(itertools.product((-0.25, 0.25), repeat=parents.shape[1])), dtype=parents.dtype)
    return Level(parents[:, None] + spacing * corners.to(parents), datum, spacing / 2)


def log_integral(level: Level, log_f: Tensor, num_data: int) -> tuple[Tensor, Tensor]:  # log_f (B, 2^J) -> (M,), (M,)
    """The logarithm of the lattice sum of each datum, and how far its 2^J sublattices of double spacing disagree.

    A sublattice alone is a sum at twice the spacing, whose error is far larger; so their spread bounds that of all.
    """
    corners, latent_dim = log_f.shape[1], level.z.shape[-1]
    sums = torch.stack([_log_sum(log_f[:, c], level.datum, num_data) for c in range(corners)])  # (2^J, M)
    volume = latent_dim * math.log(level.spacing)
    whole = torch.logsumexp(sums, 0) + volume
    return whole, (sums + math.log(corners) + volume - whole).abs().amax(0)


def _log_sum(values: Tensor, datum: Tensor, num_data: int) -> Tensor:
    """log sum exp of the values of each datum; -inf where it has none."""
    largest = values.new_full((num_data,), -torch.inf).scatter_reduce(0, datum, values, "amax")
    safe = torch.where(torch.isfinite(largest), largest, 0.0)
    return safe + values.new_zeros(num_data).index_add(0, datum, (values - safe[datum]).exp()).log()


@dataclass(frozen=True)
class Quadrature:
    """log of the integral of p(z) p(x|z) over z by a lattice, refined to 1e-6 nats, in double precision.

    `num_samples` is the number of points an axis to start from. UsageError beyond three latents.
    """

    num_samples: int | None = None
    method = "quadrature"
    is_lower_bound = False

    def data_at_once(self, model: VAE) -> int:
        """How many data share the decoding of the first lattice."""
        return 50

    def __call__(self, model: VAE, x: Tensor, noise: DatumNoise, tick: Callable[[float], None]) -> dict[str, Tensor]:
        """Columns (M,): log_p_x, error (the tolerance that was reached), points."""
        if model.latent_dim > 3:
            raise UsageError(f"quadrature is for up to 3 latents, and the model has {model.latent_dim}; use is or ais")
        model, x = copy.deepcopy(model).double(), x.double()
        level = self._first(model, x)
        log_f = self._on_lattice(model, x, level, tick)
        value, error = log_integral(level, log_f, len(x))
        points = torch.bincount(level.datum, minlength=len(x)) * level.z.shape[1]
        for _ in range(LEVELS):
            unfinished = error > TOLERANCE
            level = self._refined(level, log_f, unfinished)
            if not len(level.z) or level.z[..., 0].numel() > POINTS:
                break
            log_f = self._at_points(model, x, level)
            finer, spread = log_integral(level, log_f, len(x))
            value, error = torch.where(unfinished, finer, value), torch.where(unfinished, spread, error)
            points = points + torch.bincount(level.datum, minlength=len(x)) * level.z.shape[1]
        return {"log_p_x": value, "error": error, "points": points.double()}

    def _first(self, model: VAE, x: Tensor) -> Level:
        """The lattice to start from, the same for each datum."""
        count = self.num_samples or AXIS[model.latent_dim]
        half = max(1, count // 2)
        spacing = 2 * HALF_WIDTH / half
        axis = torch.arange(half, dtype=x.dtype, device=x.device) * spacing + (0.5 * spacing - HALF_WIDTH)
        parents = torch.cartesian_prod(*[axis] * model.latent_dim).view(-1, model.latent_dim)
        once = children(parents, parents.new_zeros(len(parents), dtype=torch.long), spacing)
        datum = torch.arange(len(x), device=x.device).repeat_interleave(len(parents))
        return Level(once.z.repeat(len(x), 1, 1), datum, once.spacing)

    def _on_lattice(self, model: VAE, x: Tensor, level: Level, tick: Callable[[float], None]) -> Tensor:
        """log p(x, z) on the first lattice: a point is decoded once for all data."""
        blocks, corners, latent_dim = level.z.shape
        z = level.z[: blocks // len(x)].reshape(-1, 1, latent_dim)
        size = max(1, ELEMENTS // x.numel())
        parts = []
        for rows in z.split(size):
            parts.append(model.log_joint(x, rows))  # (L, M)
            tick(len(rows) / len(z))
        return torch.cat(parts).T.reshape(blocks, corners)

    def _at_points(self, model: VAE, x: Tensor, level: Level) -> Tensor:
        """log p(x, z) where each point belongs to one datum."""
        blocks, corners, latent_dim = level.z.shape
        z, datum = level.z.view(1, -1, latent_dim), level.datum.repeat_interleave(corners)
        size = max(1, ELEMENTS // x[0].numel())
        pairs = zip(z.split(size, 1), datum.split(size), strict=True)
        return torch.cat([model.log_joint(x[places], rows)[0] for rows, places in pairs]).view(blocks, corners)

    def _refined(self, level: Level, log_f: Tensor, unfinished: Tensor) -> Level:
        """Half the spacing where the integrand may matter: where a value, plus how much it varies among its siblings,
        comes near the largest."""
        best = log_f.new_full((len(unfinished),), -torch.inf).scatter_reduce(0, level.datum, log_f.amax(1), "amax")
        variation = log_f.amax(1) - log_f.amin(1)  # (B,)
        near = log_f + variation[:, None] > (best - NEGLIGIBLE)[level.datum][:, None]  # (B, 2^J)
        block, corner = torch.nonzero(near & unfinished[level.datum][:, None], as_tuple=True)
        return children(level.z[block, corner], level.datum[block], level.spacing)

    def verdict(self, columns: dict[str, Tensor], latent_dim: int) -> tuple[bool, str]:
        """Whether the tolerance was reached."""
        worst = columns["error"].max().item()
        if worst > TOLERANCE:
            open_ = (columns["error"] > TOLERANCE).double().mean().item()
            return False, (
                f"not exact: {open_:.0%} of the data did not reach the tolerance of {TOLERANCE:g} nats (largest error "
                f"{worst:.1g}); start from more points an axis, or use ais"
            )
        return True, f"exact to {worst:.1g} nats, as far as the first lattice sees every mode"
