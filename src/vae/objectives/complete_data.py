"""The complete-data log-likelihood at draws of the posterior: what the weight updates of Monte Carlo EM ascend."""

from dataclasses import dataclass

from torch import Tensor, nn

from vae.distributions import sum_from
from vae.models import VAE
from vae.objectives.base import Estimate, Memory, Objective
from vae.randomness import Draws, Noise

COUPLED = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True, kw_only=True)
class CompleteData(Objective):
    """log p(x, z) for the decoder and log q(z|x) for the encoder, at a given draw z of p(z|x).

    The gradient of log p(x, z) is one of log p(x) in expectation (Fisher's identity). Monte Carlo EM has no need of an
    encoder; it is fitted to the draws, minimising KL(p(z|x) || q(z|x)), so that the model can be used like any other.
    The bound that is reported is that of estimator B (of A without an exact KL), with this encoder.
    """

    num_samples: int = 1

    def noises(self, model: VAE, batch_size: int) -> dict[str, Noise]:
        """z, (1, M, J), which is no noise but stands for the draw; eps of q(z|x), (1, M, J), for the reported bound."""
        z = Noise("normal", (1, batch_size, model.latent_dim), data_axis=1)
        return {"z": z, **super().noises(model, batch_size)}

    def bias(self, model: VAE) -> str | None:
        """With batch normalisation or dropout there is no log p(x, z) of a datum that HMC could follow."""
        if any(isinstance(module, COUPLED) for module in model.modules()):
            return "mcem draws z by the density of each datum; use networks with batch_norm: false, without dropout"
        return None

    def __call__(
        self, model: VAE, x: Tensor, noise: Draws, memory: Memory, step: int | Tensor
    ) -> tuple[Estimate, Memory]:
        """The bound of each datum, and what decoder and encoder maximise."""
        q, z = model.posterior(x), noise["z"]
        surrogate = model.log_joint(x, z)[0] + sum_from(q.log_prob(z), 2)[0]  # (M,)
        log_p_x_given_z, kl = model.bound_terms(q, x, noise["eps"])
        terms = {"log_p_x_given_z": log_p_x_given_z.mean(0).detach(), "kl": sum_from(kl, 1).detach()}
        return Estimate(terms["log_p_x_given_z"] - terms["kl"], terms, surrogate, surrogate.detach()), memory
