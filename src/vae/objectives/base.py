"""The contract of an objective."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from vae.models import VAE
from vae.randomness import Draws, Noise

Memory = dict[str, Tensor]  # what an estimator remembers between steps; part of the training state, mostly empty


class Estimate(NamedTuple):
    """One value per datum, nats; larger is better.

    `bound` estimates a lower bound of log p(x). `terms` are the two parts of the ELBO, which is their difference, the
    expected log-likelihood (`log_p_x_given_z`, of a regression `log_p_y_given_x`) and `kl`; the derivative of `kl` is
    an unbiased estimate of the KL's, so that a modifier can weight it. `surrogate` is what an algorithm reduces over
    the minibatch and differentiates. Its value is that of what is maximised; if that is not the ELBO, `objective` holds
    it too.
    """

    bound: Tensor  # (M,)
    terms: dict[str, Tensor]  # each (M,)
    surrogate: Tensor  # (M,)
    objective: Tensor | None = None  # (M,)
    kl_elements: Tensor | None = None  # (M, J), if the KL is a sum over latents

    @property
    def elbo(self) -> Tensor:  # (M,)
        """The evidence lower bound, which every objective estimates, whatever it maximises."""
        log_likelihood, kl = self.terms.values()
        return log_likelihood - kl


class Objective(Protocol):
    """A function (model, x, noise, memory, step) -> (Estimate, memory); it draws no random numbers."""

    @property
    def num_samples(self) -> int:
        """L, the samples of z per datum."""

    def noises(self, model: Any, batch_size: int) -> dict[str, Noise]:
        """What is drawn for a minibatch: eps of q(z|x), (L, M, J)."""
        return {"eps": Noise(model.noise.kind, (self.num_samples, batch_size, *model.noise.shape), data_axis=1)}

    def bias(self, model: VAE) -> str | None:
        """Why its gradient, averaged over the noise, is not that of what it maximises; None if it is."""
        return None

    def __call__(self, model: Any, x: Any, noise: Draws, memory: Memory, step: int | Tensor) -> tuple[Estimate, Memory]:
        """The estimate for a minibatch: of a VAE, of data x; of a regression, of a batch of inputs and targets."""


def support_depends_on_parameters(model: VAE) -> bool:
    """Whether the support of q(z|x) depends on its parameters: then E_q[d log q] is not 0."""
    return bool(model.posterior_head.support_depends_on_parameters)
