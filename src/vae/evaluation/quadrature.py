"""log p(x) by quadrature, for up to three latents: a lattice over the latent space, refined where the integrand is.

The sum of a smooth, decaying function over a lattice converges faster than any power of the spacing: for a Gaussian
posterior of deviation s, spacing h leaves a relative error below 2 exp(-2 pi^2 s^2 / h^2). Where the integrand has
kinks, as behind a ReLU decoder, the error falls with h^2. No mode is assumed, and none is missed that the first lattice
sees.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vae.distributions import sum_from
from vae.errors import UsageError
from vae.evaluation.base import DatumNoise, rows_at_once
from vae.models import VAE
from vae.schema import Count, validated

HALF_WIDTH = 10.0  # the lattice begins on [-10, 10]^J, beyond which the prior leaves 1e-23
NEGLIGIBLE = 20.0  # nats below the largest value of the integrand at which a point is not refined any more
TOLERANCE = 1e-4  # nats, to which the estimate is refined
STATED = 1e-3  # nats: a larger error than this is no exact answer
POINTS = 100_000  # of a datum, at one level, at most
CELLS = 4_096  # of the first lattice's coarser cells, together
LARGEST = 30_000_000  # points of the first lattice
AXIS = {1: 2000, 2: 400, 3: 64}  # points an axis to start from, by the number of latents


class Level(NamedTuple):
    """Points of one spacing in sibling blocks: the 2^J halves, quarters or eighths of a coarser cell."""

    z: Tensor  # (B, 2^J, J)
    datum: Tensor  # (B,)
    spacing: float


def children(parents: Tensor, datum: Tensor, spacing: float) -> Level:  # (B, J), (B,)
    """The 2^J cells of half the spacing that each parent's cell is made of."""
    corners = torch.tensor(list(itertools.product((-0.25, 0.25), repeat=parents.shape[1])), dtype=parents.dtype)
    return Level(parents[:, None] + spacing * corners.to(parents), datum, spacing / 2)


def log_integral(sums: Tensor, settled: Tensor) -> tuple[Tensor, Tensor]:  # (2^J, M), (M,) -> (M,), (M,)
    """The logarithm of the lattice sum of each datum, and its error.

    `sums` are those of the 2^J sublattices of double spacing, `settled` what coarser points have contributed for good.
    Where the error falls no faster than with the square of the spacing, that of all is a quarter of how far the
    sublattices are off.
    """
    whole = torch.logaddexp(torch.logsumexp(sums, 0), settled)
    alone = torch.logaddexp(sums + math.log(len(sums)), settled)  # each sublattice as if it were all
    return whole, (alone - whole).abs().amax(0) / 4


def _log_sum(values: Tensor, datum: Tensor, num_data: int) -> Tensor:
    """log sum exp of the values of each datum; -inf where it has none."""
    largest = values.new_full((num_data,), -torch.inf).scatter_reduce(0, datum, values, "amax")
    safe = torch.where(torch.isfinite(largest), largest, 0.0)
    return safe + values.new_zeros(num_data).index_add(0, datum, (values - safe[datum]).exp()).log()


@validated
@dataclass(frozen=True, kw_only=True)
class Quadrature:
    """log of the integral of p(z) p(x|z) over z by a lattice, refined to 1e-4 nats, in double precision.

    `num_samples` is the number of points an axis to start from. UsageError beyond three latents.
    """

    num_samples: Count | None = None
    method = "quadrature"
    double_precision = True

    def check(self, model: VAE) -> None:
        """UsageError where the lattice would be too large: beyond three latents, or too many points an axis."""
        J = model.latent_dim
        if J > 3:
            raise UsageError(f"quadrature is for up to 3 latents, and the model has {J}; use is or ais")
        if self.num_samples is not None and self.num_samples**J > LARGEST:
            most = int(LARGEST ** (1 / J))
            raise UsageError(f"quadrature of {J} latents takes at most {most} points an axis, not {self.num_samples}")

    def data_at_once(self, model: VAE) -> int:
        """How many data share the decoding of the first lattice."""
        return 100

    def __call__(self, model: VAE, x: Tensor, noise: DatumNoise, tick: Callable[[float], None]) -> dict[str, Tensor]:
        """Of a model in double precision, columns (M,): log_p_x, error (the tolerance that was reached), points."""
        x = x.double()
        (value, error), level, log_f, settled, points = self._survey(model, x, tick)
        while True:
            finer, left = self._refined(level, log_f, settled)
            count = torch.bincount(finer.datum, minlength=len(x)) * 2**model.latent_dim  # (M,), points
            allowed = (error > TOLERANCE) & (count > 0) & (count <= POINTS)
            rows = allowed[finer.datum]
            level = Level(finer.z[rows], finer.datum[rows], finer.spacing)
            if not len(level.z):
                return {"log_p_x": value, "error": error, "points": points.double()}
            settled, log_f = left, self._at_points(model, x, level)
            volume = model.latent_dim * math.log(level.spacing)
            sums = [_log_sum(values, level.datum, len(x)) + volume for values in log_f.unbind(1)]
            refined, refined_error = log_integral(torch.stack(sums), settled)
            value, error = torch.where(allowed, refined, value), torch.where(allowed, refined_error, error)
            points = points + count * allowed

    def _survey(
        self, model: VAE, x: Tensor, tick: Callable[[float], None]
    ) -> tuple[tuple[Tensor, Tensor], Level, Tensor, Tensor, Tensor]:
        """The first lattice, each point decoded once for all data: value and error; then, to be refined, the points
        where the integrand may matter with its values, what the others contribute, and how many there were."""
        J, count = model.latent_dim, self.num_samples or AXIS[model.latent_dim]
        half = max(1, count // 2)
        spacing = 2 * HALF_WIDTH / half
        axis = torch.arange(half, dtype=x.dtype, device=x.device) * spacing + (0.5 * spacing - HALF_WIDTH)
        parents = torch.cartesian_prod(*[axis] * J).view(-1, J)
        best = model.log_joint(x, model.posterior(x).mean[None])[0]  # (M,)
        best = torch.where(torch.isfinite(best), best, -torch.inf)
        sums = x.new_full((2**J, len(x)), -torch.inf)
        settled, kept = sums[0], []
        for rows in parents.split(CELLS):
            cells = children(rows, rows.new_zeros(len(rows), dtype=torch.long), spacing)
            log_f = self._of_all(model, x, cells.z)  # (B, 2^J, M)
            sums = torch.logaddexp(sums, torch.logsumexp(log_f, 0))
            high, low = log_f.amax(1), log_f.amin(1)  # (B, M)
            best = torch.maximum(best, high.amax(0))
            near = 2 * high - low > best - NEGLIGIBLE
            settled = torch.logaddexp(settled, log_f.masked_fill(near[:, None], -torch.inf).flatten(0, 1).logsumexp(0))
            block, datum = torch.nonzero(near, as_tuple=True)
            kept.append((cells.z[block], datum, log_f[block, :, datum]))
            tick(len(rows) / len(parents))
        z, datum, log_f = (torch.cat(column) for column in zip(*kept, strict=True))
        volume = J * math.log(spacing / 2)
        points = settled.new_full(settled.shape, parents.shape[0] * 2**J)
        nothing = torch.full_like(settled, -torch.inf)
        return log_integral(sums + volume, nothing), Level(z, datum, spacing / 2), log_f, settled + volume, points

    def _of_all(self, model: VAE, x: Tensor, z: Tensor) -> Tensor:  # z (B, 2^J, J) -> (B, 2^J, M)
        """log p(x, z) of every datum at every point."""
        points = z.view(-1, 1, z.shape[-1]).expand(-1, len(x) if model.classes else 1, -1)
        log_p_z = sum_from(model.prior.log_prob(points), 2)  # (L, 1)
        parts, as_product = [], hasattr(model.likelihood(points[:1]), "log_prob_of_all") and not model.classes
        size = rows_at_once(model)
        for rows in points.split(size):
            if as_product:
                parts.append(model.likelihood(rows).log_prob_of_all(x))
            else:
                few = rows.split(max(1, size // len(x)))
                parts += [sum_from(model.likelihood(part).log_prob(x), 2) for part in few]
        return (torch.cat(parts) + log_p_z).view(*z.shape[:2], len(x))

    def _at_points(self, model: VAE, x: Tensor, level: Level) -> Tensor:
        """log p(x, z) where each point belongs to one datum."""
        blocks, corners, latent_dim = level.z.shape
        z, datum = level.z.view(1, -1, latent_dim), level.datum.repeat_interleave(corners)
        size = rows_at_once(model)
        pairs = zip(z.split(size, 1), datum.split(size), strict=True)
        values = [model.at(places).log_joint(x[places], rows)[0] for rows, places in pairs]
        return torch.cat(values).view(blocks, corners)

    def _refined(self, level: Level, log_f: Tensor, settled: Tensor) -> tuple[Level, Tensor]:
        """Half the spacing where the integrand may matter, which is where a value, plus how much it varies among its
        siblings, comes near the largest; the rest is settled as it is."""
        best = log_f.new_full(settled.shape, -torch.inf).scatter_reduce(0, level.datum, log_f.amax(1), "amax")
        variation = log_f.amax(1) - log_f.amin(1)  # (B,)
        near = log_f + variation[:, None] > (best - NEGLIGIBLE)[level.datum][:, None]  # (B, 2^J)
        block, corner = torch.nonzero(~near, as_tuple=True)
        rest = _log_sum(log_f[block, corner], level.datum[block], len(settled))
        settled = torch.logaddexp(settled, rest + level.z.shape[-1] * math.log(level.spacing))
        block, corner = torch.nonzero(near, as_tuple=True)
        return children(level.z[block, corner], level.datum[block], level.spacing), settled

    def verdict(self, columns: dict[str, Tensor], latent_dim: int) -> tuple[bool, str]:
        """Whether the error is small enough to call the answer exact."""
        worst = columns["error"].max().item()
        if not worst <= STATED:
            open_ = (~(columns["error"] <= STATED)).double().mean().item()
            return False, (
                f"not exact: the error is above {STATED:g} nats for {open_:.0%} of the data (largest {worst:.1g}); "
                "start from more points an axis, or use ais"
            )
        return True, f"exact to {worst:.1g} nats, as far as the first lattice sees every mode"
