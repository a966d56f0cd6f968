"""The wake-sleep algorithm (Hinton et al. 1995), with which Kingma & Welling 2013 compare AEVB, as one surrogate."""

from dataclasses import dataclass

from torch import Tensor, nn

from vae.distributions import sum_from
from vae.models import VAE
from vae.objectives.base import Estimate, Memory, Objective
from vae.randomness import Draws, Noise
from vae.schema import Count, validated


@validated
@dataclass(frozen=True, kw_only=True)
class WakeSleep(Objective):
    """Wake: the decoder ascends mean_l log p(x, z_l), z_l ~ q(z|x). Sleep: the encoder ascends log q(z|x) of dreams.

    A dream is z ~ p(z), x ~ p(x|z); `dreams` of them come for each datum of the minibatch. Samples are constants in
    both phases, so each network has its own objective and there is none in common: the encoder minimises KL(p(z|x) ||
    q(z|x)) over dreams, not KL(q || p(z|x)) over data. The bound that is reported is that of estimator B (of A without
    an exact KL).
    """

    num_samples: Count = 1
    dreams: Count = 1

    def noises(self, model: VAE, batch_size: int) -> dict[str, Noise]:
        """eps of q(z|x), (L, M, J), and the noise of the dreams: of z, (S, M, J), and of x, (S, M, *data_shape)."""
        prior, real = model.prior.noise, str(model.likelihood_head.support) == "real"
        return {
            **super().noises(model, batch_size),
            "dream_z": Noise(prior.kind, (self.dreams, batch_size, *prior.shape), data_axis=1),
            "dream_x": Noise(
                "normal" if real else "uniform", (self.dreams, batch_size, *model.data_shape), data_axis=1
            ),
        }

    def bias(self, model: VAE) -> str | None:
        """With batch normalisation, whose moments would be those of data and dreams in turn."""
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            return "wake-sleep shows the encoder data and dreams in turn; use networks with batch_norm: false"
        return None

    def __call__(
        self, model: VAE, x: Tensor, noise: Draws, memory: Memory, step: int | Tensor
    ) -> tuple[Estimate, Memory]:
        """The bound of each datum, and what the two phases maximise."""
        q = model.posterior(x)
        _, kl = model.bound_terms(q, x, noise["eps"])
        log_p_x_given_z = model.log_likelihood(x, q.transform(noise["eps"]).detach()).mean(0)  # (M,)
        dream_z = model.prior.transform(noise["dream_z"]).detach()  # (S, M, J)
        dream_x = model.likelihood(dream_z).transform(noise["dream_x"]).detach()  # (S, M, *data_shape)
        of_dreams = model.posterior(dream_x.flatten(0, 1)).log_prob(dream_z.flatten(0, 1)[None])
        log_q_of_dreams = sum_from(of_dreams, 2).view(self.dreams, -1).mean(0)  # (M,)
        terms = {"log_p_x_given_z": log_p_x_given_z.detach(), "kl": sum_from(kl, 1).detach()}
        surrogate = log_p_x_given_z + log_q_of_dreams
        return Estimate(terms["log_p_x_given_z"] - terms["kl"], terms, surrogate, surrogate.detach()), memory
