"""A regressor for one's own data that says how far off it may be, by the conventions of scikit-learn."""

import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from vae.data import Data
from vae.distributions import Normal
from vae.errors import VaeError
from vae.models import Predictive, Regression
from vae.randomness import seeded
from vae.schema import Count, Interval, Positive, number
from vae.training import fit, load

Array = NDArray[np.float64]
VALIDATIONS = 60  # in a fit
ROWS = 2000  # data whose predictions are made at once
OF_MODEL = ("noise", "weights", "layers", "hidden", "activation", "dropout", "noise_std", "prior_std")
NUMBERS: dict[str, Any] = {
    "validation_fraction": Annotated[float, Interval(0, 0.9)],
    "steps": Count,
    "batch_size": Count,
    "learning_rate": Positive,
    "num_samples": Count,
}


def _share(name: str, value: Any) -> float:
    """A number between 0 and 1."""
    if not 0 < number(name, float, value) < 1:
        raise ValueError(f"{name}: {value:g} is not between 0 and 1")
    return float(value)


def _spread(values: Array) -> Array:  # (N, K) -> (K,)
    """Standard deviations, 1 of what is constant."""
    std = values.std(0)
    return np.where((std > 0) & np.isfinite(std), std, 1.0)


class VariationalRegressor(RegressorMixin, BaseEstimator):
    """Regression by a network for the mean and one for the noise of y, with random weights (Blundell et al. 2015).

        model = VariationalRegressor(random_state=0).fit(X, y)
        mean, std = model.predict(X_new, return_std=True)
        lower, upper = model.predict_interval(X_new, coverage=0.9).T

    What is trained is a bound of log p(y|X), in nats: the mean of log p(y|x, w) over random weights w, less their KL to
    the prior, which counts once for all data. Parameters:

    - noise: what the standard deviation of y given x and w is: a network (heteroscedastic), one number per target that
      is learned (constant), or `noise_std` (fixed), in the units of y;
    - weights: variational, or points (then nothing is epistemic); layers: which are variational, last or all.
      Mean-field weights in all layers underfit small data: their intervals are too wide;
    - hidden, activation, dropout: of both networks; prior_std: of the prior N(0, prior_std^2) of the weights;
    - validation_fraction: of the data, held out to choose when to stop; 0 trains on all, for all steps;
    - steps, batch_size, learning_rate: of Adam, its rate falling along half a cosine;
    - num_samples: networks drawn for a prediction; random_state: a number gives the same results again.

    X is (N, D), y (N,) or (N, T): what is given for (N,) as (N,) is for (N, T) (N, T). Inputs and targets are
    standardised inside. A ValueError says in a sentence what does not fit.
    """

    def __init__(
        self,
        *,
        noise: str = "heteroscedastic",
        weights: str = "variational",
        layers: str = "last",
        hidden: Sequence[int] = (50, 50),
        activation: str = "leaky_relu",
        dropout: float = 0.0,
        noise_std: float = 0.1,
        prior_std: float = 1.0,
        validation_fraction: float = 0.1,
        steps: int = 1500,
        batch_size: int = 128,
        learning_rate: float = 0.005,
        num_samples: int = 300,
        random_state: Any = None,
    ) -> None:
        self.noise, self.weights, self.layers = noise, weights, layers
        self.hidden, self.activation, self.dropout = hidden, activation, dropout
        self.noise_std, self.prior_std = noise_std, prior_std
        self.validation_fraction, self.steps, self.batch_size = validation_fraction, steps, batch_size
        self.learning_rate = learning_rate
        self.num_samples, self.random_state = num_samples, random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Train on X (N, D) and y (N,) or (N, T); `history_` has the bound and its terms by epoch, nats per datum."""
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, ensure_min_samples=2)
        for name, kind in NUMBERS.items():
            number(name, kind, getattr(self, name))
        self.seed_ = int(check_random_state(self.random_state).randint(2**31))
        self.one_target_ = np.ndim(y) == 1
        self.conformal_scores_: Array | None = None
        y = np.asarray(y, np.float64).reshape(len(X), -1)
        # In double precision, which large numbers, and numbers close to one another, need.
        self.centre_ = X.mean(0), y.mean(0)
        fixed = self.noise == "fixed"  # in the units of y
        self.scale_ = _spread(X), np.ones(y.shape[1]) if fixed else _spread(y)
        X, y = ((values - c) / s for values, c, s in zip((X, y), self.centre_, self.scale_, strict=True))
        held = int(len(X) * self.validation_fraction)
        order = np.random.default_rng(self.seed_).permutation(len(X))
        train, validation = order[held:], order[:held]
        steps = -(-len(train) // self.batch_size)
        how: dict[str, Any] = {"epochs": max(1, round(self.steps / steps)), "batch_size": self.batch_size}
        how |= {"optimizer": {"name": "adam", "lr": self.learning_rate}, "schedule": "cosine", "seed": self.seed_}
        how["evaluate_every"] = max(1, round(how["epochs"] / VALIDATIONS))
        given: dict[str, Any] = {"x_val": X[validation], "y_val": y[validation]} if held else {}
        try:
            data = Data.from_arrays(X[train], y[train], x_test=X[:1], y_test=y[:1], **given)
            with seeded(self.seed_, "initialisation"):
                model = Regression((X.shape[1],), y.shape[1], **{key: getattr(self, key) for key in OF_MODEL})
            with tempfile.TemporaryDirectory() as out:
                self.history_ = fit(model, data, out=out, verbose=False, **how).history
                self.model_ = load(out)  # the best by validation, if there is one
        except VaeError as error:
            raise ValueError(str(error)) from None
        return self

    # ------------------------------------------------------------------------------ predictions

    def predict(self, X: ArrayLike, return_std: bool = False) -> Any:
        """The mean of y given X, and its standard deviation if asked for: of noise and weights together."""
        mean, std = map(self._shaped, self._moments(X))
        return (mean, std) if return_std else mean

    def predict_var(self, X: ArrayLike) -> Array:
        """The variance of y given X."""
        return self.uncertainty(X)["total"]

    def uncertainty(self, X: ArrayLike) -> dict[str, Array]:
        """Variances of y given X: total = aleatoric (the noise: E Var(y|w)) + epistemic (the weights: Var E(y|w))."""
        parts = self._map(X, lambda p: torch.stack(list(p.variances().values()), 1))  # (N, 3, T)
        return {key: self._shaped(parts[:, i]) for i, key in enumerate(("total", "aleatoric", "epistemic"))}

    def predict_quantiles(self, X: ArrayLike, alpha: float | Sequence[float]) -> Array:
        """The quantiles of y given X, (N, A), or (N, T, A) of several targets."""
        levels = [_share("alpha", level) for level in np.atleast_1d(alpha).tolist()]
        networks = self.num_samples if self.weights == "variational" else math.inf
        for level in levels:
            if min(level, 1 - level) * networks < 1 - 1e-9:
                raise ValueError(
                    f"alpha: the quantile {level:g} lies beyond what num_samples = {networks} networks tell; set it to "
                    f"{math.ceil(1 / min(level, 1 - level) - 1e-9)} or more"
                )
        found = self._map(X, lambda p: p.quantile(levels).permute(1, 2, 0))
        return found[:, 0] if self.one_target_ else found

    def predict_interval(self, X: ArrayLike, coverage: float = 0.9) -> Array:
        """The central interval of y given X, (N, 2), or (N, T, 2) of several targets.

        After `conformal`, mean ± q std instead, q the quantile of |y - mean| / std that gives the coverage.
        """
        coverage = _share("coverage", coverage)
        if self.conformal_scores_ is None:
            return self.predict_quantiles(X, [(1 - coverage) / 2, (1 + coverage) / 2])
        n = len(self.conformal_scores_)
        rank = math.ceil((n + 1) * coverage - 1e-9)
        if rank > n:
            raise ValueError(
                f"coverage: {coverage:g} cannot be guaranteed by {n} calibration data; it needs "
                f"{math.ceil(coverage / (1 - coverage) - 1e-9)} or more"
            )
        mean, std = self._moments(X)
        half = np.sort(self.conformal_scores_, 0)[rank - 1] * std
        found = np.stack([mean - half, mean + half], -1)
        return found[:, 0] if self.one_target_ else found

    def conformal(self, X_cal: ArrayLike, y_cal: ArrayLike) -> Self:
        """Calibrate later intervals on data that were not trained on: a new y then lies inside with at least the asked
        probability, whatever its law, if it is exchangeable with these (split conformal prediction, Lei et al.
        2018)."""
        mean, std = self._moments(X_cal)
        self.conformal_scores_ = np.abs(self._targets(y_cal, len(mean)) - mean) / std
        return self

    def sample(self, X: ArrayLike, n: int) -> Array:
        """n draws of y given X, (n, N), or (n, N, T): each by one network for all X, num_samples of them in turn."""
        return self._shaped(self.law(X).draws(number("n", Count, n), self.seed_).numpy())

    def log_prob(self, X: ArrayLike, y: ArrayLike) -> Array:
        """log p(y|x), (N,), nats, in the units of y: the density of the mixture over networks, of all targets
        together."""
        targets = iter(torch.from_numpy(self._targets(y, len(self._inputs(X)))).split(ROWS))
        return self._map(X, lambda p: p.log_prob(next(targets)))

    def law(self, X: ArrayLike) -> Predictive:
        """p(y|x) of all X as a mixture over networks, with its density, distribution function, quantiles and
        moments."""
        return self._law(self._inputs(X))

    # ------------------------------------------------------------------------------ arrays in and out

    def _inputs(self, X: ArrayLike) -> torch.Tensor:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return torch.from_numpy((X - self.centre_[0]) / self.scale_[0]).to(self.model_.inputs.mean)

    def _targets(self, y: ArrayLike, n: int) -> Array:  # -> (N, T)
        values = np.asarray(y, np.float64)
        wanted = (n,) if self.one_target_ else (n, len(self.centre_[1]))
        if values.shape != wanted or not np.isfinite(values).all():
            raise ValueError(f"y: expected finite numbers of shape {wanted}, as many as X has rows, not {values.shape}")
        return values.reshape(n, -1)

    def _moments(self, X: ArrayLike) -> tuple[Array, Array]:  # (N, T) both
        both = self._map(X, lambda p: torch.stack([p.mean, p.variances()["total"].sqrt()], 1))
        return both[:, 0], both[:, 1]

    def _law(self, x: torch.Tensor) -> Predictive:
        law = Predictive.of(self.model_, x, self.num_samples, self.seed_).of_networks
        centre, scale = torch.from_numpy(self.centre_[1]), torch.from_numpy(self.scale_[1])
        return Predictive(Normal(law.mean * scale + centre, law.log_std + scale.log()))

    def _map(self, X: ArrayLike, function: Callable[[Predictive], torch.Tensor]) -> Array:
        """A function of the predictive law, its first axis over data, in parts."""
        return torch.cat([function(self._law(rows)) for rows in self._inputs(X).split(ROWS)]).numpy()

    def _shaped(self, values: Array) -> Array:  # (..., T) -> (..., T), or (...) of one target given as (N,)
        return values[..., 0] if self.one_target_ else values
