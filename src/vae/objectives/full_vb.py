"""Full variational Bayes over the latents and the decoder's weights (Kingma & Welling 2013, appendix F)."""

from dataclasses import dataclass

from torch import Tensor

from vae.distributions import sum_from
from vae.models import VAE, drawn, variational_layers, weights_kl, weights_noises
from vae.objectives.base import Estimate, Memory, Objective
from vae.randomness import Draws, Noise


@dataclass(frozen=True, kw_only=True)
class FullVB(Objective):
    """log p(x|z, w) - KL(q(z|x) || p(z)) - KL(q(w) || p(w)) / N, z and w drawn: a datum's share of a bound of log p(X).

    The sum over the N training data is the bound (equation 28, its four Gaussian terms in closed form). Each datum has
    weights of its own, drawn as the activations that they give (local reparameterization), as the paper's algorithm
    draws new weights for each. `kl` is of latents and weights together.
    """

    num_data: int
    num_samples: int = 1

    def noises(self, model: VAE, batch_size: int) -> dict[str, Noise]:
        """eps of q(z|x), (L, M, J), and of the activations of each layer of the decoder, (L, M, O)."""
        layers = weights_noises(model.decoder, "activations", self.num_samples, batch_size)
        names = {name.replace("/", "/decoder.", 1): noise for name, noise in layers.items()}
        return {**super().noises(model, batch_size), **names}

    def bias(self, model: VAE) -> str | None:
        """Without random weights it is the bound of a VAE."""
        if next(variational_layers(model.decoder), None) is None:
            return (
                "full_vb needs a decoder with random weights: set train.algorithm in the config that builds the model"
            )
        return None

    def __call__(
        self, model: VAE, x: Tensor, noise: Draws, memory: Memory, step: int | Tensor
    ) -> tuple[Estimate, Memory]:
        """The share of each datum."""
        q = model.posterior(x)
        with drawn(model.decoder, noise, "decoder"):
            log_p_x_given_z, kl = model.bound_terms(q, x, noise["eps"])
        terms = {
            "log_p_x_given_z": log_p_x_given_z.mean(0),
            "kl": sum_from(kl, 1) + weights_kl(model.decoder) / self.num_data,
        }
        bound = terms["log_p_x_given_z"] - terms["kl"]
        return Estimate(bound, terms, bound), memory
