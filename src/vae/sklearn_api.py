"""A VAE of the rows of a table by the conventions of scikit-learn: where PCA stood, and to find outliers."""

import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from vae.algorithms import AEVB, OPTIMIZERS
from vae.data import Batch, Data
from vae.distributions import sum_from
from vae.errors import DataWarning, VaeError
from vae.evaluation import evaluate_bound
from vae.evaluation.base import log_mean_exp
from vae.evaluation.outliers import ROUNDING, p_values
from vae.likelihoods import LIKELIHOODS
from vae.models import VAE, evaluating
from vae.networks import mlp_decoder, mlp_encoder
from vae.objectives import EstimatorB
from vae.randomness import Streams, datum_noise, derive, permutation, seeded
from vae.schema import Count, Interval, Positive, number
from vae.training import fit, load

Array = NDArray[Any]
ROWS = 1000  # data that pass through the networks at once
Likelihood = Literal["auto", "gaussian", "bernoulli", "continuous_bernoulli", "negative_binomial"]
PARAMETERS: dict[str, Any] = {
    "latent_dim": Count,
    "likelihood": Likelihood,
    "estimate": Literal["bound", "importance"],
    "epochs": Count,
    "batch_size": Count,
    "learning_rate": Positive,
    "validation_fraction": Annotated[float, Interval(0, 0.9)],
    "patience": Count,
    "num_samples": Count,
    "alpha": Annotated[float, Interval(0, 0.5)],
}


class VAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A variational auto-encoder of X (N, D): `latent_dim` numbers a row, a density, and a detector of outliers.

        codes = VAETransformer(latent_dim=2, random_state=0).fit_transform(X)
        strange = VAETransformer(random_state=0).fit(X).outlier_p_value(X_new) < 0.01

    What is trained is the evidence lower bound of log p(x), nats (Kingma & Welling 2013). Parameters:

    - latent_dim: J; hidden, activation: of the encoder's layers, and of the decoder's in reverse;
    - likelihood: gaussian (the columns are standardised inside; the density is that of X as given), bernoulli (of 0 and
      1), continuous_bernoulli (on [0, 1]), negative_binomial (counts); auto: bernoulli if all X are 0 or 1, else
      gaussian;
    - epochs, batch_size, learning_rate: of Adam; validation_fraction: of the rows, held out to stop early, after
      `patience` epochs without a better bound, and to calibrate p-values; 0 trains for all epochs on all rows;
    - estimate: what `score_samples` gives, the bound, or the importance-weighted bound, which is tighter; num_samples:
      draws of z for either, the same for each row; alpha: the share of ordinary rows that `predict` calls outliers;
    - random_state: a number gives the same results again.

    Attributes: `kl_per_component_` (J,), nats, over the training rows: components are in this order, falling;
    `history_`, the bound and its terms by epoch; `model_`, the `vae.VAE`. A ValueError says in a sentence what does not
    fit.
    """

    model_: VAE
    history_: list[dict[str, Any]]
    held_out_scores_: Array | None

    def __init__(
        self,
        latent_dim: int = 2,
        *,
        likelihood: str = "auto",
        hidden: Sequence[int] = (128, 64),
        activation: str = "relu",
        epochs: int = 200,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        validation_fraction: float = 0.1,
        patience: int = 20,
        estimate: str = "bound",
        num_samples: int = 32,
        alpha: float = 0.05,
        random_state: Any = None,
    ) -> None:
        self.latent_dim, self.likelihood = latent_dim, likelihood
        self.hidden, self.activation = hidden, activation
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.validation_fraction, self.patience = validation_fraction, patience
        self.estimate, self.num_samples, self.alpha = estimate, num_samples, alpha
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    # ------------------------------------------------------------------------------ training

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on the rows of X; y is not used."""
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        order = self._begin(X)
        held = order[: int(len(X) * self.validation_fraction)]
        rows = self._as_data(X)
        train, validation = np.delete(rows, held, 0), rows[held]
        how: dict[str, Any] = {"epochs": self.epochs, "batch_size": self.batch_size, "seed": self.seed_}
        how |= {"optimizer": {"name": "adam", "lr": self.learning_rate}}
        how |= {"patience": self.patience} if len(held) else {}
        given: dict[str, Any] = {"x_val": validation} if len(held) else {}
        try:
            data = Data.from_arrays(train, x_test=train[:1], **given)
            with tempfile.TemporaryDirectory() as out, warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)  # of rows far out: it is asked for those by their scores
                self.history_ = fit(self.model_, data, out=out, verbose=False, **how).history
                self.model_ = load(out).double()  # the best by validation; rows do not depend on those beside them
        except VaeError as error:
            raise ValueError(str(error)) from None
        self._order_components(data.train)
        self.held_out_scores_ = np.sort(self._scores(X[held])) if len(held) else None
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """One epoch on these rows; the first call, without a fit before, standardises by them."""
        first = not hasattr(self, "model_")
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=first, ensure_min_samples=2 if first else 1)
        if first:
            self._begin(X)
            self.history_ = []
            self.model_ = self.model_.double()
        if not hasattr(self, "_state"):
            self._state = self._algorithm().init(self.model_)
        x = torch.from_numpy(self._as_data(X)).double()
        algorithm, streams = self._algorithm(), Streams(derive(self.seed_, self._state.step), torch.device("cpu"))
        self.model_.train()
        for rows in permutation(self.seed_, self._state.step, len(x)).split(self.batch_size):
            noise = streams.draw(algorithm.noises(self._state, len(rows)), torch.float64)
            try:
                algorithm.step(self._state, Batch(x[rows]), noise)
            except VaeError as error:
                raise ValueError(str(error)) from None
        self._order_components(Data.from_arrays(x.numpy(), x_test=x[:1].numpy()).train)
        self.held_out_scores_ = None  # they would be of another model
        return self

    def _algorithm(self) -> AEVB:
        return AEVB(EstimatorB(), lambda parameters: OPTIMIZERS["adam"](parameters, lr=self.learning_rate))

    def _begin(self, X: Array) -> Array:
        """Check the parameters, choose the likelihood, build the model; an order of the rows."""
        for name, kind in PARAMETERS.items():
            number(name, kind, getattr(self, name))
        self.seed_ = int(check_random_state(self.random_state).randint(2**31))
        self.__dict__.pop("_state", None)
        self.likelihood_ = self.likelihood
        if self.likelihood == "auto":
            self.likelihood_ = "bernoulli" if np.isin(X, (0, 1)).all() else "gaussian"
        self.scaler_ = StandardScaler(with_mean=self.likelihood_ == "gaussian", with_std=self.likelihood_ == "gaussian")
        self.scaler_.fit(X.astype(np.float64))
        options = {"variance": "per_pixel", "floor": 0.05} if self.likelihood_ == "gaussian" else {}
        try:
            with seeded(self.seed_, "initialisation"):
                likelihood = LIKELIHOODS[self.likelihood_]((X.shape[1],), **options)
                how: dict[str, Any] = {"activation": self.activation}
                encoder = mlp_encoder((X.shape[1],), 2 * self.latent_dim, hidden=tuple(self.hidden), **how)
                decoder = mlp_decoder(self.latent_dim, likelihood.output_shape, hidden=tuple(self.hidden)[::-1], **how)
                self.model_ = VAE(encoder, decoder, likelihood)
        except VaeError as error:
            raise ValueError(str(error)) from None
        self._n_features_out = self.latent_dim
        return np.random.default_rng(self.seed_).permutation(len(X))

    def _order_components(self, split: Any) -> None:
        """Order the components by their KL over training rows."""
        with evaluating(self.model_):
            kl = evaluate_bound(self.model_, split, name="train").kl_per_dimension
        assert kl is not None, "a diagonal Gaussian has a KL for each latent"
        self.order_ = torch.argsort(kl, descending=True)
        self.kl_per_component_ = kl[self.order_].numpy()

    # ------------------------------------------------------------------------------ a transformer

    def transform(self, X: ArrayLike) -> Array:  # (N, D) -> (N, J)
        """The means of q(z|x), components by falling KL."""
        X = self._checked(X)
        return self.posterior(X)[0].astype(X.dtype)

    def posterior(self, X: ArrayLike) -> tuple[Array, Array]:  # (N, D) -> (N, J), (N, J)
        """The means and standard deviations of q(z|x)."""
        both = self._map(self._checked(X), lambda x: torch.stack([(q := self.model_.posterior(x)).mean, q.std], 1))
        mean, std = both[:, :, self.order_.numpy()].transpose(1, 0, 2)
        return mean, std

    def inverse_transform(self, Z: ArrayLike) -> Array:  # (N, J) -> (N, D)
        """The means of p(x|z), in the units of X."""
        check_is_fitted(self)
        z = np.asarray(Z, np.float64)
        if z.ndim != 2 or z.shape[1] != self.latent_dim or not np.isfinite(z).all():
            raise ValueError(f"Z: expected finite numbers of shape (N, {self.latent_dim}), not {z.shape}")
        x = self.model_.decode(z[:, np.argsort(self.order_.numpy())]).numpy()
        return self.scaler_.inverse_transform(x).astype(np.result_type(np.asarray(Z).dtype, np.float32))

    def sample(self, n_samples: int = 1) -> Array:  # (n, D)
        """Draws of x from the model, in the units of X: z from the prior, then x from p(x|z)."""
        check_is_fitted(self)
        n = number("n_samples", Count, n_samples)
        z = self.model_.prior.transform(datum_noise("normal", self.seed_, "sample z", range(n), (self.latent_dim,)))
        with evaluating(self.model_):
            law = self.model_.likelihood(z[None])
        kind, shape = law.noise.kind, law.noise.shape[2:]
        x = law.transform(datum_noise(kind, self.seed_, "sample x", range(n), shape)[None])[0]
        return self.scaler_.inverse_transform(x.numpy())

    # ------------------------------------------------------------------------------ a density

    def score_samples(self, X: ArrayLike) -> Array:  # (N, D) -> (N,)
        """A lower bound of log p(x) of each row, nats, in the units of X; see `estimate`."""
        return self._scores(self._checked(X))

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """The mean of `score_samples`."""
        return float(self.score_samples(X).mean())

    def _scores(self, X: Array) -> Array:
        noise = datum_noise("normal", self.seed_, "score", range(self.num_samples), (1, self.latent_dim))  # (L, 1, J)

        def bound(x: Tensor) -> Tensor:
            q = self.model_.posterior(x)
            eps = noise.expand(-1, len(x), -1)
            if self.estimate == "bound":
                log_p_x_given_z, kl = self.model_.bound_terms(q, x, eps)
                return log_p_x_given_z.mean(0) - sum_from(kl, 1)
            z, log_q = q.transform_and_log_prob(eps)
            return log_mean_exp(self.model_.log_joint(x, z) - sum_from(log_q, 2))

        scale = self.scaler_.scale_
        return self._map(X, bound) - (0.0 if scale is None else float(np.log(scale).sum()))

    # ------------------------------------------------------------------------------ a detector of outliers

    def outlier_p_value(self, X: ArrayLike) -> Array:  # (N, D) -> (N,)
        """(1 + rows held out that score no higher) / (1 + rows held out): small for what is unlike the training rows.

        A new row like them has a p-value of at most p with probability at most p (conformal, Vovk et al. 2005), but for
        what early stopping has learned from the held-out rows. The smallest is 1 / (1 + rows held out).
        """
        scores = self.score_samples(X)
        return p_values(torch.from_numpy(scores), torch.from_numpy(self._held())).numpy()

    def decision_function(self, X: ArrayLike) -> Array:  # (N, D) -> (N,)
        """`score_samples` less the score below which a row is an outlier at level `alpha`; it warns if that is too
        small to tell."""
        scores, held = self.score_samples(X), self._held()
        rank = math.floor(self.alpha * (len(held) + 1) + 1e-9)
        if not rank:
            warnings.warn(
                f"alpha: {self.alpha:g} is below the smallest p-value that {len(held)} rows held out can tell; what "
                "scores below all of them is called an outlier",
                stacklevel=2,
            )
        threshold = held[max(rank, 1) - 1]
        return scores - (threshold - ROUNDING * (1 + abs(threshold)))  # as of p_values

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:  # (N, D) -> (N,)
        """-1 where `decision_function` is negative, which is where the p-value is at most `alpha`, else 1."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _held(self) -> Array:
        check_is_fitted(self)
        if self.held_out_scores_ is None:
            raise ValueError(
                "outliers are told by rows held out in fit: set validation_fraction above 0, and do not end with "
                "partial_fit"
            )
        return self.held_out_scores_

    # ------------------------------------------------------------------------------ arrays in and out

    def _checked(self, X: ArrayLike) -> Array:
        check_is_fitted(self)
        return validate_data(self, X, dtype=[np.float64, np.float32], reset=False)

    def _as_data(self, X: Array) -> Array:
        """X as the model takes it."""
        return self.scaler_.transform(X.astype(np.float64))

    def _map(self, X: Array, function: Callable[[Tensor], Tensor]) -> Array:
        """A function of rows as the model takes them, in parts."""
        x = torch.from_numpy(self._as_data(X))
        with evaluating(self.model_):
            return torch.cat([function(rows) for rows in x.split(ROWS)]).numpy()
