"""The contract of an objective."""

from typing import NamedTuple, Protocol

from torch import Tensor

from vae.models import VAE

Memory = dict[str, Tensor]  # what an estimator remembers between steps; part of the training state, mostly empty


class Estimate(NamedTuple):
    """One value a datum, nats; larger is better.

    `bound` estimates a lower bound of log p(x). `terms` are the parts of the ELBO, which is their difference; the
    derivative of `kl` is on average that of the KL, so that a modifier can weigh it. `surrogate` is what is
    differentiated, by whichever route; an algorithm reduces it over the minibatch. Its value is that of what is
    maximised, as is `objective`, which is there where that is not the ELBO.
    """

    bound: Tensor  # (M,)
    terms: dict[str, Tensor]  # log_p_x_given_z and kl, each (M,)
    surrogate: Tensor  # (M,)
    objective: Tensor | None = None  # (M,)
    kl_elements: Tensor | None = None  # (M, J), where the KL is a sum over latents

    @property
    def elbo(self) -> Tensor:  # (M,)
        """The evidence lower bound: of the bounds that objectives maximise, the one they all share."""
        return self.terms["log_p_x_given_z"] - self.terms["kl"]


class Objective(Protocol):
    """A function (model, x, noise, memory, step) -> (Estimate, memory); it never draws."""

    @property
    def num_samples(self) -> int:
        """L, the samples of z a datum; noise has shape (L, M, J)."""

    def bias(self, model: VAE) -> str | None:
        """Why its gradient is not that of what it maximises, on average over the noise; None where it is."""

    def __call__(
        self, model: VAE, x: Tensor, noise: Tensor, memory: Memory, step: int | Tensor
    ) -> tuple[Estimate, Memory]:
        """The estimate for a minibatch."""


def moving_support(model: VAE) -> bool:
    """Whether the support of q(z|x) moves with its parameters: then E_q[d log q] is not 0."""
    return bool(model.posterior_head.support_depends_on_parameters)
