"""A mixture of Gaussians fitted to the codes, as a prior that the decoder has seen, and how far it is from N(0, I)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae.data import Split
from vae.evaluation.base import mean_and_stderr
from vae.evaluation.bound import posterior_codes
from vae.models import VAE

COMPONENTS = (1, 5, 10, 20, 40)  # of which the one is taken that suits codes of other data best
LIMIT = 10_000  # training data whose codes are used
FAR = 1.0  # nats between aggregate posterior and prior that are worth a word


@dataclass(frozen=True)
class AggregatePosterior:
    """q(z) = (1/N) sum_n q(z|x_n), as a mixture of Gaussians; `kl` is that of held-out codes, {mean, stderr, n}.

    E_q[log mixture(z) - log p(z)] = KL(q || p) - KL(q || mixture), so it is at most KL(q || p), which it reaches if the
    mixture fits. The bound holds this KL for every datum (Hoffman & Johnson 2016, "ELBO surgery").
    """

    mixture: Any
    kl: dict[str, Any]

    def sample(self, n: int, seed: int) -> Tensor:  # (n, J)
        """Draws of z."""
        self.mixture.set_params(random_state=seed)
        draws = self.mixture.sample(n)[0]  # component by component
        return torch.from_numpy(np.random.default_rng(seed).permutation(draws))

    @property
    def verdict(self) -> str:
        """Whether samples fail because the aggregate posterior is not the prior."""
        nats, error = self.kl["mean"], 1.96 * (self.kl["stderr"] or 0.0)
        what = f"the aggregate posterior is {nats:.2f} nats from the prior (95 % interval {nats - error:.2f} to "
        what += f"{nats + error:.2f}; by a mixture of {self.mixture.n_components}, so it may be more)"
        if nats - error > FAR:
            return f"{what}: draws from the prior fall where few codes are; compare those of the mixture"
        return f"{what}: if samples are poor, it is not for the prior's sake, but that of decoder and likelihood"


def aggregate_posterior(model: VAE, train: Split, held_out: Split, *, seed: int = 0) -> AggregatePosterior:
    """The mixture of codes (one draw of q(z|x) each) of training data, its size chosen by the codes of other data."""
    from sklearn.mixture import GaussianMixture  # which few need, and takes a while to import

    train = train.first(LIMIT)
    codes = posterior_codes(model, train, name="train", sampled=True).double().numpy()
    others = posterior_codes(model, held_out.first(LIMIT), name="held out", sampled=True).double()
    sizes = [size for size in COMPONENTS if size == 1 or len(codes) > 2 * size * codes.shape[1]]
    fitted = [GaussianMixture(size, random_state=seed, reg_covar=1e-4).fit(codes) for size in sizes]
    best = max(fitted, key=lambda mixture: mixture.score(others.numpy()))
    log_prior = model.prior.log_prob(others.to(model.prior.mean)).sum(1).double().cpu().numpy()
    return AggregatePosterior(best, mean_and_stderr(torch.from_numpy(best.score_samples(others.numpy()) - log_prior)))
