"""The variational auto-encoder: an encoder, a decoder, and the distributions whose parameters they give."""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vae.data import Batch, Split, kind_of, warn_of_range
from vae.distributions import Noise, Normal, has_exact_kl, kl_divergence, log_ratio, sum_from, support_of
from vae.errors import UsageError
from vae.posteriors import DiagonalGaussian
from vae.precision import matmul_precision
from vae.priors import StandardNormal
from vae.randomness import datum_noise, seeded

CHUNK = 1000  # how many data pass through the networks at once in the methods for people


class VAE(nn.Module):
    """p(x, z) = p(z) p(x|z) with q(z|x) (Kingma & Welling 2013).

    `encoder` maps (M, *data_shape) to the parameters of the posterior, `decoder` maps (B, J) to those of the
    likelihood; both can be any module. The likelihood holds the shape of a datum and the posterior the number of
    latents J. The default posterior is a diagonal Gaussian, with half as many latents as the encoder has outputs.

    With `classes` it is conditional on a label y: p(y) p(z) p(x|z, y) with q(z|x, y), both networks given y as well,
    one-hot (M, classes). `model.given(y)` is the VAE of p(x|y), and all the rest is done with that.

    `prior`, `posterior(x)`, `likelihood(z)` and `log_joint(x, z)` are differentiable and use the modes that the
    modules are in. `elbo`, `encode`, `decode`, `reconstruct` and `sample` are for people: they evaluate (no gradient,
    evaluation mode, everything left as it was), take and give data as they are trained on (images on [0, 1]), and work
    through any number of them.
    """

    class_shares: Tensor  # (classes,), of a conditional model

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        *,
        posterior: nn.Module | None = None,
        prior: nn.Module | None = None,
        classes: int = 0,
    ) -> None:
        super().__init__()
        for name, part in {"encoder": encoder, "decoder": decoder, "likelihood": likelihood}.items():
            if not isinstance(part, nn.Module):
                raise UsageError(
                    f"{name} must be a module, such as vae.mlp_encoder(...) or vae.Bernoulli(...), not {part!r}"
                )
        self.data_shape: tuple[int, ...] = likelihood.data_shape  # type: ignore[assignment]
        self.classes: int = classes
        self.label: Tensor | None = None  # one-hot (M, classes) or (1, classes), of `given`
        if classes:
            self.register_buffer("class_shares", torch.full((classes,), 1 / classes))  # p(y), of the training data
        size = _probe(encoder, self.data_shape, "the encoder", classes)
        if len(size) != 1 or (posterior is None and size[0] % 2):
            raise UsageError(
                f"the encoder gives shape {size} per datum; a diagonal Gaussian needs (2 J,): J means, J log-variances"
            )
        self.encoder, self.decoder, self.likelihood_head = encoder, decoder, likelihood
        self.posterior_head = DiagonalGaussian(size[0] // 2) if posterior is None else posterior
        self.latent_dim: int = self.posterior_head.latent_dim  # type: ignore[assignment]
        self.prior_head = StandardNormal(self.latent_dim) if prior is None else prior
        if size[0] != self.posterior_head.output_size:
            raise UsageError(
                f"the encoder gives {size[0]} numbers per datum, and the posterior of {self.latent_dim} latents needs "
                f"{self.posterior_head.output_size}"
            )
        if self.prior_head.latent_dim != self.latent_dim:
            raise UsageError(f"the posterior has {self.latent_dim} latents, and the prior {self.prior_head.latent_dim}")
        shape = _probe(decoder, (self.latent_dim,), "the decoder", classes)
        wanted: tuple[int, ...] = likelihood.output_shape  # type: ignore[assignment]
        if math.prod(shape) != math.prod(wanted):
            raise UsageError(f"the decoder gives shape {shape} per datum, and the likelihood needs {wanted}")
        self.output_shape = wanted
        self.standardise: Standardise | None = None  # what the encoder is given, if not x itself
        self.data_range: tuple[float, float] | None = None  # of the training data, once they are known

    def prepare(self, train: Split) -> None:
        """Take from the training data what the model keeps of them: moments to standardise by, shares of labels."""
        encoder = self.standardise is None and kind_of(train) in ("counts", "real")
        decoder = getattr(self.likelihood_head, "standardise", False)
        if encoder or decoder:
            moments = Standardise.of(train.images())
            self.standardise = moments if encoder else self.standardise
            if decoder:
                self.likelihood_head.location.copy_(moments.mean)  # type: ignore[operator]
                self.likelihood_head.scale.copy_(moments.std)  # type: ignore[operator]
        if self.classes and train.labels is not None:
            self.class_shares.copy_(train.labels.bincount(minlength=self.classes) / len(train))

    # ------------------------------------------------------------------------------ the contract of a model

    @property
    def prior(self) -> Normal:
        """p(z), elements (J,)."""
        return self.prior_head()

    def posterior(self, x: Tensor) -> Normal:  # (M, *data_shape) -> elements (M, J)
        """q(z|x)."""
        return self.posterior_head(self.encoder_outputs(x))

    def encoder_outputs(self, x: Tensor) -> Tensor:  # (M, *data_shape) -> (M, output_size)
        """The parameters of q(z|x), as the posterior takes them."""
        given = x if self.standardise is None else self.standardise(x)
        return self.encoder(given, *self._label(x)).to(x.dtype)  # the dtype of x also under autocast

    def likelihood(self, z: Tensor) -> Any:  # (L, M, J) -> elements (L, M, *data_shape)
        """p(x|z)."""
        rows = z.flatten(0, 1)
        outputs = self.decoder(rows, *self._label(rows)).to(z.dtype)  # (L * M, *output_shape)
        return self.likelihood_head(outputs.view(*z.shape[:2], *self.output_shape))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:  # (M, *data_shape), (L, M, J) -> (L, M)
        """log p(x, z) = log p(z) + log p(x|z), nats."""
        return sum_from(self.prior.log_prob(z), 2) + self.log_likelihood(x, z)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:  # (M, *data_shape), (L, M, J) -> (L, M)
        """log p(x|z), nats. UsageError if x has another shape, which would broadcast."""
        if x.shape[1:] != self.data_shape:
            raise UsageError(f"the data have shape {tuple(x.shape[1:])}, and the model is of {self.data_shape}")
        return sum_from(self.likelihood(z).log_prob(x), 2)

    def expected_log_likelihood(self, q: Normal, x: Tensor, noise: Tensor) -> Tensor:  # noise (L, M, J) -> (M,)
        """E_q[log p(x|z)] of each datum by (1/L) sum_l log p(x|z_l), z_l = g(eps_l, x), nats (equation 7)."""
        return self.log_likelihood(x, q.transform(noise)).mean(0)

    def bound_terms(self, q: Normal, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:  # noise (L, M, J)
        """log p(x|z_l) (L, M) and KL(q || p), (M, J) or (M,): exact if a formula is known (estimator B), else the
        Monte Carlo estimate (1/L) sum_l log q(z_l|x) - log p(z_l) (estimator A)."""
        if has_exact_kl(q, self.prior):
            return self.log_likelihood(x, q.transform(noise)), kl_divergence(q, self.prior)
        z, log_q = q.transform_and_log_prob(noise)
        return self.log_likelihood(x, z), log_ratio(log_q, self.prior, z).mean(0)

    @property
    def noise(self) -> Noise:
        """What eps of q(z|x) is drawn from, and its shape for one sample of one datum."""
        return self.posterior_head.noise  # type: ignore[return-value]

    @property
    def is_density(self) -> bool:
        """Whether log p(x|z) is the logarithm of a density; grey_cross_entropy is none."""
        return bool(self.likelihood_head.is_density)

    # ------------------------------------------------------------------------------ conditional on a label

    def given(self, y: Any) -> "VAE":
        """The VAE of p(x|y), for one label or a label of each datum (M,); it shares all weights with this model."""
        if not self.classes:
            raise UsageError("the model is not conditional: train one with model.condition: labels")
        label = torch.as_tensor(y, device=self.prior.mean.device)
        if label.ndim > 1 or label.is_floating_point() or not bool(((label >= 0) & (label < self.classes)).all()):
            found = f"{tuple(label.shape)} from {label.min()} to {label.max()}" if label.numel() > 1 else f"{y!r}"
            raise UsageError(f"labels must be whole numbers from 0 to {self.classes - 1}, one or (M,), not {found}")
        return self._labelled(label.view(-1))

    def with_labels(self, y: Tensor | None) -> "VAE":  # (M,) or (1,)
        """The model given the labels of data, if it is conditional; else as it is."""
        if self.classes and y is None:
            raise UsageError("the model is conditional on labels, and these data have none")
        return self.given(y) if self.classes else self

    def on(self, batch: Batch) -> tuple["VAE", Tensor]:
        """What an objective is given of a minibatch: the model, with the labels if it is conditional, and x.

        The labels are not looked at, which would wait for the device; all were before the first step.
        """
        return self._labelled(batch.y) if self.classes and batch.y is not None else self, batch.x

    def at(self, rows: slice | Tensor) -> "VAE":
        """The model with the labels of these rows of its data."""
        return self if self.label is None or len(self.label) == 1 else self._with_one_hot(self.label[rows])

    def drawn_labels(self, n: int, seed: int) -> Tensor:  # -> (n,)
        """n labels drawn from p(y); draw i depends on (seed, i)."""
        uniform = datum_noise("uniform", seed, "labels", range(n), (1,))[:, 0]
        return torch.searchsorted(self.class_shares.cumsum(0).cpu(), uniform).clamp(max=self.classes - 1)

    def _labelled(self, y: Tensor) -> "VAE":  # (M,) or (1,)
        return self._with_one_hot((y[:, None] == torch.arange(self.classes, device=y.device)).to(self.prior.mean))

    def _with_one_hot(self, label: Tensor) -> "VAE":
        view = copy.copy(self)  # with the same modules and parameters
        view.label = label
        return view

    def _label(self, rows: Tensor) -> tuple[Tensor, ...]:
        """What the networks are given beside their rows: nothing, or labels, again for each of L samples."""
        if not self.classes:
            return ()
        if self.label is None:
            raise UsageError("the model is conditional on labels: use model.given(y), as in model.given(3).sample(64)")
        if len(self.label) == 1:
            return (self.label.expand(rows.shape[0], -1).to(rows.dtype),)
        times, rest = divmod(len(rows), len(self.label))
        if rest:
            raise UsageError(f"there are {len(self.label)} labels for {len(rows)} data")
        return (self.label.repeat(times, 1).to(rows.dtype),)

    # ------------------------------------------------------------------------------ for people

    def elbo(self, x: Any, *, seed: int = 0) -> Tensor:  # (M, *data_shape) -> (M,)
        """The evidence lower bound of each datum by estimator B (A without an exact KL) with one sample, nats.

        log p(x|z) - KL(q(z|x) || p(z)), z = mean + std * eps (paper, equation 7); eps of datum m depends on (seed, m).
        """
        x = self.as_data(x)
        noise = datum_noise(self.noise.kind, seed, "elbo", range(len(x)), (1, *self.noise.shape))  # (M, 1, J)

        def bound(model: VAE, rows: Tensor, eps: Tensor) -> Tensor:
            log_p_x_given_z, kl = model.bound_terms(model.posterior(rows), rows, eps.to(rows).transpose(0, 1))
            return log_p_x_given_z.mean(0) - sum_from(kl, 1)

        return self._map(bound, x, noise)

    def as_data(self, x: Any) -> Tensor:  # -> (M, *data_shape)
        """x as the model's data, on its device and in its dtype; UsageError if shape or values do not fit."""
        x = self._images(x)
        support = support_of(str(self.likelihood_head.support))
        if not support(x):
            name = type(self.likelihood_head).__name__
            raise UsageError(f"the {name} likelihood is of values {support.words}; these x lie outside of that")
        return x

    def encode(self, x: Any) -> Tensor:  # (M, *data_shape) -> (M, J)
        """The means of q(z|x)."""
        return self._map(lambda model, rows: model.posterior(rows).mean, self._images(x))

    def decode(self, z: Any) -> Tensor:  # (M, J) -> (M, *data_shape)
        """The means of p(x|z)."""
        z = self._like_parameters(z)
        if z.ndim != 2 or len(z) == 0 or z.shape[1] != self.latent_dim:
            raise UsageError(f"z must have shape (M, {self.latent_dim}) with at least one row, not {tuple(z.shape)}")
        return self._map(lambda model, rows: model.likelihood(rows[None]).mean[0], z)

    def reconstruct(self, x: Any) -> Tensor:  # (M, *data_shape) -> (M, *data_shape)
        """The mean of p(x|z) at the mean of q(z|x)."""
        return self.decode(self.encode(x))

    def sample(self, n: int, *, seed: int = 0) -> Tensor:  # -> (n, *data_shape)
        """The means of p(x|z) at n draws of z from the prior, of a label too if none is given; draw i depends on
        (seed, i)."""
        if not isinstance(n, int) or n < 1:
            raise UsageError(f"n must be a whole number of at least 1, not {n!r}")
        if self.classes and self.label is None:
            return self.given(self.drawn_labels(n, seed)).sample(n, seed=seed)
        noise = datum_noise(self.prior.noise.kind, seed, "sample", range(n), self.prior.noise.shape)
        return self.decode(self.prior.transform(self._like_parameters(noise)))

    def _like_parameters(self, values: Any) -> Tensor:
        try:
            values = torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"expected a tensor or an array, not {type(values).__name__} ({error})") from None
        whole = values.dtype == torch.bool or self.likelihood_head.support == "counts"
        if not (values.is_floating_point() or whole):
            raise UsageError(
                f"expected floats, images on [0, 1], not {values.dtype}; divide bytes by 255, or by the largest level "
                "of the training data"
            )
        return values.to(self.prior.mean)  # which follows the model's device and dtype even if it has no parameters

    def _images(self, x: Any) -> Tensor:
        """Check and shape what a person passes: any layout of M data with the right number of values."""
        x = self._like_parameters(x)
        # (M, *data_shape), flat, or without the channel axis of grey images; no other layout, lest pixels get mixed up.
        layouts = [self.data_shape, (math.prod(self.data_shape),)]
        if len(self.data_shape) == 3 and self.data_shape[0] == 1:
            layouts.append(self.data_shape[1:])
        if x.ndim == 0 or len(x) == 0 or tuple(x.shape[1:]) not in layouts:
            wanted = ", ".join(map(str, self.data_shape))
            raise UsageError(f"x must have shape (M, {wanted}) with at least one datum, not {tuple(x.shape)}")
        if not torch.isfinite(x).all():
            raise UsageError("x has values that are not finite")
        if self.data_range is not None:
            warn_of_range((x.min().item(), x.max().item()), self.data_range, "x", len(x))
        return x.reshape(len(x), *self.data_shape)

    def _map(self, function: Callable[..., Tensor], *columns: Tensor) -> Tensor:
        """Evaluate a function of the model and data in chunks."""
        chunks = [slice(start, start + CHUNK) for start in range(0, len(columns[0]), CHUNK)]
        with evaluating(self):
            return torch.cat([function(self.at(rows), *(column[rows] for column in columns)) for rows in chunks])


class Standardise(nn.Module):
    """(x - mean) / std, by the training data: of each element of a vector, or of all pixels together.

    Of counts and real values only; so a datum far out does not make the encoder's log-variances overflow.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def of(cls, x: Tensor) -> "Standardise":  # (N, *shape)
        """Of training data; an element that is constant is only shifted."""
        axes = (0,) if x.ndim == 2 else tuple(range(x.ndim))
        std, mean = torch.std_mean(x.double(), axes, correction=0)
        return cls(mean.float(), torch.where(std > 0, std, 1.0).float())

    def forward(self, x: Tensor) -> Tensor:
        """The standardised data."""
        return (x - self.mean) / self.std


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode, and torch's generators, are given back afterwards.

    A module that draws in evaluation mode draws from a stream of its own, the same each time.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), seeded(0, "evaluation"), matmul_precision(None, device_of(model)):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's parameters."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def example(shape: tuple[int, ...], classes: int, rows: int, like: Tensor) -> list[Tensor]:
    """Zeros in place of what a network is given."""
    return [torch.zeros(rows, *of).to(like) for of in (shape, *([(classes,)] if classes else []))]


def _probe(network: nn.Module, shape: tuple[int, ...], name: str, classes: int) -> tuple[int, ...]:
    """The shape that a network gives for one datum, asked in evaluation mode so that nothing in it changes."""
    like = next(network.parameters(), torch.zeros(()))
    if isinstance(like, nn.parameter.UninitializedParameter):
        like = torch.zeros(())
    try:
        with evaluating(network):
            return tuple(network(*example(shape, classes, 2, like)).shape[1:])
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason, label = str(error).splitlines()[0], f" with a label (M, {classes})" if classes else ""
        raise UsageError(
            f"{name} does not take input of shape (M, {', '.join(map(str, shape))}){label}: {reason}"
        ) from None
