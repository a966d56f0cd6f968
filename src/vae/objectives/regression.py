"""The bound of a regression with random weights (Blundell et al. 2015; Kingma & Welling 2013, appendix F)."""

from dataclasses import dataclass

from torch import Tensor

from vae.data import Batch
from vae.distributions import sum_from
from vae.models import Regression, weights_noises
from vae.objectives.base import Estimate, Memory, Objective
from vae.randomness import Draws, Noise


@dataclass(frozen=True, kw_only=True)
class RegressionBound(Objective):
    """(1/L) sum_l log p(y|x, w_l) - KL(q(w) || p(w)) / N, w_l = g(eps_l): a datum's share of a bound of log p(Y|X).

    The sum over the N training data is the bound; a minibatch of M data carries M/N of the KL. Point weights have no
    KL, and this is their log-likelihood. It is estimator B, with the weights as the latent variables.
    """

    num_samples: int = 1

    def noises(self, model: Regression, batch_size: int) -> dict[str, Noise]:
        """What is drawn for a minibatch: the noise of each variational layer."""
        return weights_noises(model, model.sampling, self.num_samples, batch_size)

    def __call__(
        self, model: Regression, x: Batch, noise: Draws, memory: Memory, step: int | Tensor
    ) -> tuple[Estimate, Memory]:
        """The share of each datum of a batch of inputs (M, D) and targets (M, T)."""
        log_p_y_given_x = sum_from(model.likelihood(x.x, noise).log_prob(model.as_targets(x.y)), 2).mean(0)  # (M,)
        kl = (model.kl() / model.num_data).expand_as(log_p_y_given_x)
        bound = log_p_y_given_x - kl
        return Estimate(bound, {"log_p_y_given_x": log_p_y_given_x, "kl": kl}, bound), memory
