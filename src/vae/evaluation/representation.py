"""How useful the codes are: simple classifiers on them, compared with pixels, PCA and plain auto-encoders.

Chen 2020 (sections 2.3 and 4.2) expects a linear classifier to do better on the codes of a VAE than on the pixels.
All is learned on the training split, representations without its labels; the accuracy is that on the test split.
"""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vae.data import Resident, Split
from vae.errors import UsageError
from vae.evaluation.base import minibatches
from vae.evaluation.bound import evaluate_bound, posterior_codes
from vae.likelihoods import Gaussian
from vae.models import VAE, evaluating, pca
from vae.randomness import Streams, seeded

NEIGHBOURS = 5

# ------------------------------------------------------------------------------------- classifiers


def linear_probe(codes: Tensor, labels: Tensor, others: Tensor) -> Tensor:  # (N, J), (N,), (M, J) -> (M,)
    """The labels of `others` by logistic regression (scikit-learn, C = 1), standardised by the moments of `codes`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return torch.from_numpy(classifier.fit(codes.numpy(), labels.numpy()).predict(others.numpy()))


def nearest_neighbours(codes: Tensor, labels: Tensor, others: Tensor) -> Tensor:  # (N, J), (N,), (M, J) -> (M,)
    """The label of most of the 5 nearest codes, by Euclidean distance; the codes are not standardised."""
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(NEIGHBOURS, algorithm="brute")
    return torch.from_numpy(classifier.fit(codes.numpy(), labels.numpy()).predict(others.numpy()))


CLASSIFIERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear_probe": linear_probe,
    "nearest_neighbours": nearest_neighbours,
}


def accuracy(predicted: Tensor, labels: Tensor) -> dict[str, float]:  # (N,), (N,)
    """The share p of labels that are correct, and its binomial standard error sqrt(p (1 - p) / N)."""
    p = (predicted == labels).double().mean().item()
    return {"accuracy": p, "stderr": math.sqrt(p * (1 - p) / len(labels))}


# ------------------------------------------------------------------------------------- representations


def train_autoencoder(
    model: VAE, split: Split, *, epochs: int, batch_size: int = 128, lr: float = 1e-3, seed: int = 0
) -> VAE:
    """Train encoder and decoder as a plain auto-encoder: maximise log p(x|z) at z = the posterior mean, by Adam.

    This is the ELBO without noise and KL; with a Gaussian of fixed variance, least squares. The model is changed in
    place. The order of the data and the random numbers of its modules depend on `seed`.
    """
    like = model.prior.mean
    source, streams = Resident(split, batch_size, seed, like.device, like.dtype), Streams(seed, like.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    with seeded(seed, "modules"):
        for epoch in range(epochs):
            for x in (source.expand(batch.x) for batch in source.epoch(epoch, 0, streams)):
                log_p_x_given_z = model.log_likelihood(x, model.posterior(x).mean[None])  # (1, M)
                optimizer.zero_grad()
                (-log_p_x_given_z.mean()).backward()
                optimizer.step()
    return model.eval()


def _plain_twin(model: VAE, seed: int) -> VAE:
    """The same networks with new weights, by each module's reset_parameters()."""
    twin = copy.deepcopy(model)
    with seeded(seed, "initialisation"):
        for module in [*twin.encoder.modules(), *twin.decoder.modules()]:
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                raise UsageError(
                    f"the row autoencoder trains the model's networks anew, and {type(module).__name__} has parameters "
                    "and no reset_parameters(); give it one, or leave the row out"
                )
    return twin


def _linear_twin(model: VAE, seed: int) -> VAE:
    """Two linear maps and squared error, with as many latents."""
    size, J = math.prod(model.data_shape), model.latent_dim
    with seeded(seed, "initialisation"):
        encoder, decoder = nn.Sequential(nn.Flatten(), nn.Linear(size, 2 * J)), nn.Linear(J, size)
    return VAE(encoder, decoder, Gaussian(model.data_shape, variance="fixed")).to(model.prior.mean)


Codes = tuple[Tensor, Tensor]  # of the training data (N, J) and of the test data (M, J), on the CPU


def _codes(model: VAE, train: Split, test: Split) -> Codes:
    return posterior_codes(model, train, name="train"), posterior_codes(model, test, name="test")


def _pixels(train: Split, test: Split) -> Codes:
    return train.images().flatten(1), test.images().flatten(1)


def _principal_components(model: VAE, train: Split, test: Split) -> Codes:
    x, others = _pixels(train, test)
    components = pca(x, model.latent_dim)
    return components.transform(x).float(), components.transform(others).float()


# Each row computes codes, (model, train, test, epochs, seed) -> Codes, learning from `train` alone, without labels.
REPRESENTATIONS: dict[str, Callable[[VAE, Split, Split, int, int], Codes]] = {
    "posterior_means": lambda model, train, test, epochs, seed: _codes(model, train, test),
    "pixels": lambda model, train, test, epochs, seed: _pixels(train, test),
    "pca": lambda model, train, test, epochs, seed: _principal_components(model, train, test),
    "linear_autoencoder": lambda model, train, test, epochs, seed: _codes(
        train_autoencoder(_linear_twin(model, seed), train, epochs=epochs, seed=seed), train, test
    ),
    "autoencoder": lambda model, train, test, epochs, seed: _codes(
        train_autoencoder(_plain_twin(model, seed), train, epochs=epochs, seed=seed), train, test
    ),
}


# ------------------------------------------------------------------------------------- the aggregate posterior


def aggregate_moments(means: Tensor, spreads: Tensor) -> tuple[Tensor, Tensor]:  # (N, J), (N, J[, J]) -> (J,), (J, J)
    """Mean and covariance of the aggregate posterior q(z) = (1/N) sum_n q(z|x_n), from variances or covariances.

    By the law of total covariance, Cov z = mean of the covariances + Cov of the means (1/N). If q(z) is the prior,
    as it should be, they are 0 and I.
    """
    centred = means - means.mean(0)
    within = spreads.mean(0) if spreads.ndim == 3 else torch.diag(spreads.mean(0))
    return means.mean(0), within + centred.T @ centred / len(means)


def posterior_moments(model: VAE, split: Split) -> tuple[Tensor, Tensor]:  # -> (N, J), (N, J) or (N, J, J)
    """Means of q(z|x) of each datum, and its variances (of independent elements) or covariances, float64."""
    parts = []
    with evaluating(model):
        for given, x, _ in minibatches(model, split, 1000):
            q: Any = given.posterior(x)
            spread = q.covariance if hasattr(q, "covariance") else q.variance.expand_as(q.mean)
            parts.append([column.double().cpu() for column in (q.mean, spread)])
    means, spreads = map(torch.cat, zip(*parts, strict=True))
    return means, spreads


# ------------------------------------------------------------------------------------- all of it


def evaluate_representation(
    model: VAE,
    train: Split,
    test: Split,
    *,
    seed: int = 0,
    epochs: int = 20,
    limit: int | None = None,
    rows: Iterable[str] = tuple(REPRESENTATIONS),
) -> dict[str, Any]:
    """How useful the codes of a model are, as a record for JSON.

    For each of `rows` (of REPRESENTATIONS): its size, and the accuracies on `test` of the CLASSIFIERS, fitted on the
    first `limit` of `train`. The auto-encoders learn for `epochs` (take as many as the model had; more for few data).
    Of the model on `test`: KL per dimension (nats), active units, moments of the aggregate posterior. The splits are
    those of `data.evaluation_split`. Deterministic in `seed`. UsageError if labels are missing or a row is unknown.
    """
    rows = tuple(rows)
    unknown = next((row for row in rows if row not in REPRESENTATIONS), None)
    if unknown is not None:
        raise UsageError(f"rows: there is no {unknown!r}; there are {', '.join(REPRESENTATIONS)}")
    if model.classes:
        raise UsageError("the codes of a model that is given the labels are no test of what it has found in the data")
    if train.labels is None or test.labels is None:
        raise UsageError("the accuracy of a classifier on the codes needs labels, and these data have none")
    labels = train.labels[:limit]
    if len(labels.unique()) < 2:
        raise UsageError(f"limit: the first {len(labels)} labels are all of one class, and a classifier needs two")
    if len(labels) < NEIGHBOURS:
        raise UsageError(f"limit: {NEIGHBOURS} nearest neighbours need at least that many labels, not {len(labels)}")
    accuracies: dict[str, Any] = {}
    for row in rows:
        codes, others = REPRESENTATIONS[row](model, train, test, epochs, seed)
        scores = {name: accuracy(f(codes[:limit], labels, others), test.labels) for name, f in CLASSIFIERS.items()}
        accuracies[row] = {"size": codes.shape[1], **scores}
    bound = evaluate_bound(model, test, name="test", seed=seed)
    mean, covariance = aggregate_moments(*posterior_moments(model, test))
    return {
        "accuracies": accuracies,
        "train": len(train),
        "labelled": len(labels),
        "test": len(test),
        "epochs": epochs,
        "seed": seed,
        "active_units": bound.active_units,
        "kl_per_dimension": None if bound.kl_per_dimension is None else bound.kl_per_dimension.tolist(),
        "aggregate_mean": mean.tolist(),
        "aggregate_covariance": covariance.tolist(),
    }


def representation_table(record: dict[str, Any]) -> str:
    """A record of `evaluate_representation` as a table: accuracies in per cent with their standard errors."""
    words = {"linear_probe": "linear probe", "nearest_neighbours": f"{NEIGHBOURS} nearest"}
    lines = [
        f"classifiers fitted on {record['labelled']} of {record['train']} training data, scored on {record['test']} "
        "test data; per cent correct",
        f"{'':20}{'size':>5}" + "".join(f"{words[name]:>16}" for name in CLASSIFIERS),
    ]
    for row, values in record["accuracies"].items():
        scores = (values[name] for name in CLASSIFIERS)
        cells = "".join(f"{100 * s['accuracy']:9.2f} ± {100 * s['stderr']:4.2f}" for s in scores)
        lines.append(f"{row.replace('_', ' '):20}{values['size']:5}{cells}")
    kl, mean = record["kl_per_dimension"], torch.tensor(record["aggregate_mean"])
    of_latents = [] if kl is None else [f"{value:.2f}" for value in sorted(kl, reverse=True)]
    variances = torch.tensor(record["aggregate_covariance"]).diagonal()
    lines += [
        f"active units: {record['active_units']} of {len(mean)}"
        + (f"; KL per dimension, nats: {' '.join(of_latents)}" if of_latents else ""),
        f"aggregate posterior: means {mean.min():.2f} to {mean.max():.2f}, variances {variances.min():.2f} to "
        f"{variances.max():.2f} (prior: 0 and 1)",
    ]
    return "\n".join(lines)
