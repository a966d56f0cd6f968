"""Chen 2020, "Variational Auto-encoders with Application to Unsupervised Representation Learning" (BSc thesis)."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from vae.evaluation.representation import CLASSIFIERS
from vae.reproduce.chen2020 import figures as draw
from vae.reproduce.chen2020.figures import BETAS, DIMENSIONS, NETWORKS
from vae.reproduce.chen2020.measures import IDENTITIES, baselines, identities, measure, pixels
from vae.reproduce.document import Chosen, Document, Experiment, Figure, Of, Quantity, Results, Table, at, below, less
from vae.reproduce.records import over_seeds
from vae.text import plus_minus

NAMES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
FLOOR = 1681.72  # the pixel entropy of all 10,000 test images of CIFAR-10, nats
TABLE_4_3 = {"fc": ("1864.54", "1847.17"), "conv": ("1822.52", "1779.06")}

# ------------------------------------------------------------------------------------- settings

SEEDS = {"mnist": (723, 0, 1), "fashion_mnist": (237, 0, 1), "cifar10": (723, 0, 1)}  # the first are the thesis' own
CONFIGS = {"mnist": "mnist_d2", "fashion_mnist": "fashion_mnist_d2", "cifar10": "cifar10_fc_d256"}
BASELINES = {"mnist": DIMENSIONS, "fashion_mnist": (2, 20), "cifar10": (256,)}


def _experiments() -> Iterator[Experiment]:
    for name in ("mnist", "fashion_mnist"):
        made = partial(Experiment, measure=measure, config=CONFIGS[name], minutes=4.0)
        given = {"train.evaluate_every": 20}
        for d in DIMENSIONS:
            yield made(f"{name}_d{d}", settings={**given, "model.latent_dim": d}, seeds=SEEDS[name])
        for beta in BETAS[1:]:
            settings = {**given, "model.latent_dim": 20, "modifiers.beta": beta}
            yield made(f"{name}_d20_beta_{beta:g}", settings=settings, seeds=SEEDS[name][:1])
    for network, minutes in (("fc", 10.0), ("conv", 25.0)):
        config, settings = f"cifar10_{network}_d256", {"train.evaluate_every": 25}
        yield Experiment(f"cifar10_{network}", measure, config, settings, seeds=SEEDS["cifar10"], minutes=minutes)
    for name, dimensions in BASELINES.items():
        other = partial(Experiment, config=CONFIGS[name], seeds=SEEDS[name][:1], minutes=6.0, trained=False)
        yield other(f"{name}_pixels", pixels)
        for d in dimensions:
            yield other(f"{name}_baselines_d{d}", baselines, settings={"model.latent_dim": d})
    yield Experiment("identities", identities, seeds=(0,), minutes=0.1, trained=False)


# ------------------------------------------------------------------------------------- figures

# The figures of losses, of reconstructions, of codes, of the manifold, and where the axis of the losses begins.
CHAPTERS = {"mnist": ("4.1", "4.2", "4.3", "4.4", 70.0), "fashion_mnist": ("4.5", "4.6", "4.7", "4.8", 220.0)}

# What the eye finds in our figures of the first seed, beside the thesis' description.
SEEN = {
    "4.1": "As described: both curves fall steeply to d = 10 and are flat from d = 15 on.",
    "4.2": "As described: d = 20 keeps all 30 digits; d = 2 makes a 9 of a 4, a 7 of a 9, a 9 of a 7 and an 8 of a 3. "
    "Which digits it mistakes depends on the seed.",
    "4.3": "As described: ten clusters at d = 20, of which 4 and 9 touch; at d = 2 the classes overlap in the middle.",
    "4.4": "As described: digits change smoothly into one another.",
    "4.5": "As described, and flat from d = 10 on already.",
    "4.6": "As described: d = 20 is slightly better, both are blurred and lose prints, straps and buckles, and "
    "sandals come out as shoes.",
    "4.7": "As described: many overlaps in both; shoes, bags and trousers stand apart, the tops do not.",
    "4.8": "As described; one half is tops, the other shoes, with bags between them.",
    "4.9": "As described: both losses are still very high after 25 epochs, and fall slowly after the fourth.",
    "4.10": "As described: the convolutional network shows more details, and both are blurred. Eight images, because "
    "only the first 1,000 test images were at hand.",
    "4.11": "As described: in both, all classes lie in one cluster.",
    "outlook": "The larger beta, the fewer latents are used, and the more each changes one thing: at 4 the digit, the "
    "width, the slant or the thickness; at 16 three are left, and the digits are blurred.",
}


def _figures() -> Iterator[Figure]:
    for name, (losses, rebuilt, codes, manifold, bottom) in CHAPTERS.items():
        words, pair = NAMES[name], (f"{name}_d2", f"{name}_d20")
        every = tuple(f"{name}_d{d}" for d in DIMENSIONS)
        caption = f"{words}: test loss and reconstruction error against d; bars: one standard error"
        yield Figure(losses, caption, every, partial(draw.losses, bottom=bottom))
        caption = f"{words}: 30 test images, and their reconstructions at d = 2 and 20"
        yield Figure(rebuilt, caption, pair, partial(draw.reconstructions, titles=("d = 2", "d = 20")))
        caption, titles = f"{words}: the test set in two latent spaces", ("(a) d = 2", "(b) d = 20, by t-SNE")
        yield Figure(codes, caption, pair, partial(draw.codes, titles=titles))
        yield Figure(manifold, f"{words}: 30 x 30 decoder means on [-4, 4] x [-4, 4], d = 2", pair[:1], draw.manifold)
    both = ("cifar10_fc", "cifar10_conv")
    yield Figure("4.9", "CIFAR-10: training loss and reconstruction error against epochs, d = 256", both, draw.training)
    caption = "CIFAR-10: 10 test images, and their reconstructions by both networks"
    yield Figure("4.10", caption, both, partial(draw.reconstructions, titles=("FC", "CNN")))
    titles = ("(a) FC, by t-SNE", "(b) CNN, by t-SNE")
    yield Figure("4.11", "CIFAR-10: the test set in two latent spaces", both, partial(draw.codes, titles=titles))
    betas = ("mnist_d20", *(f"mnist_d20_beta_{beta:g}" for beta in BETAS[1:]))
    yield Figure("outlook", "MNIST: the eight latents of largest KL, from -3 to 3", betas, draw.traversals)


# ------------------------------------------------------------------------------------- numbers

LINEAR, NEAREST = at("accuracy", "linear_probe"), at("accuracy", "nearest_neighbours")
PLANE = "silhouette of the classes in the plotted plane"
BY_LOGISTIC = "logistic regression on standardised inputs, test accuracy"


def _of_all_images(key: str) -> Of:
    """A loss on all 10,000 test images: the excess over the floor of those at hand, and the floor of all."""
    return lambda results: FLOOR + at("test", key)(results)


def _claims(name: str) -> Iterator[Quantity]:
    """What the thesis says of a data set of grey images, measured."""
    losses, rebuilt, codes, _, bottom = CHAPTERS[name]
    d2, d20, d25 = (f"{name}_d{d}" for d in (2, 20, 25))
    yield Quantity(
        losses, f"all values lie above {bottom:g}, where the axis begins", tuple(f"{name}_d{d}" for d in DIMENSIONS),
        lambda *found: min(map(at("test", "reconstruction"), found)) - bottom, claim=True,
    )  # fmt: skip
    yield Quantity(
        losses, "d = 20 is sufficient: d = 25 gains less than 1 nat of test loss", (d20, d25),
        lambda *found: 1.0 - less(at("test", "loss"))(*found), claim=True, why="1 less the gain, nats",
    )  # fmt: skip
    yield Quantity(
        rebuilt, "d = 2 gets more of the 30 images wrong than d = 20 (read by 5 nearest neighbours)", (d2, d20),
        less(at("wrong")), claim=True,
    )  # fmt: skip
    yield Quantity(
        rebuilt, "reconstructions at d = 20 are sharper than at d = 2 (total variation over the data's)", (d20, d2),
        less(at("sharpness")), claim=True,
    )  # fmt: skip
    yield Quantity(
        codes, "fewer overlaps at d = 20 than at d = 2 (accuracy of 5 nearest neighbours on the codes)", (d20, d2),
        less(NEAREST), claim=True,
    )  # fmt: skip
    if name == "mnist":
        text, order = "a linear classifier does better on the codes of d = 20 than on raw pixels", (d20, "mnist_pixels")
    else:
        text, order = "d = 20 fails: a linear classifier does better on raw pixels", (f"{name}_pixels", d20)
    yield Quantity(codes, text, order, less(LINEAR), claim=True, why=BY_LOGISTIC)


def _quantities() -> Iterator[Quantity]:
    for name, (losses, rebuilt, codes, _, _) in CHAPTERS.items():
        numbers: dict[str, tuple[tuple[str, Of], ...]] = {
            losses: (("test loss", at("test", "loss")), ("test reconstruction error", at("test", "reconstruction")))
        }
        numbers[rebuilt] = (("wrong reconstructions among the 30", at("wrong")),)
        numbers[codes] = ((PLANE, at("silhouette_of_points")), ("accuracy of a linear classifier on the codes", LINEAR))
        for figure, wanted in numbers.items():
            for d in DIMENSIONS if figure == losses else (2, 20):
                for text, of in wanted:
                    yield Quantity(figure, f"{NAMES[name]}, d = {d}: {text}", (f"{name}_d{d}",), of)
        for claim in _claims(name):
            yield replace(claim, text=f"{NAMES[name]}: {claim.text}")
    for network, published in TABLE_4_3.items():
        words, own = f"CIFAR-10, d = 256, {NETWORKS[network]}", (f"cifar10_{network}",)
        yield Quantity("table 4.3", f"{words}: test loss", own, _of_all_images("excess"), published[0], part=True)
        of = _of_all_images("reconstruction_excess")
        yield Quantity("table 4.3", f"{words}: test reconstruction error", own, of, published[1], part=True)
        yield Quantity("4.11", f"{words}: {PLANE}", own, at("silhouette_of_points"))
        yield Quantity("4.11", f"{words}: accuracy of a linear classifier on the codes", own, LINEAR)
        yield Quantity(
            "4.11", f"{words}: completely failed: a linear classifier on the codes is no better than chance", own,
            lambda results: 0.1 - LINEAR(results), claim=True, why=BY_LOGISTIC,
        )  # fmt: skip
        yield Quantity(
            "4.11", f"{words}: failed: a linear classifier does better on raw pixels", ("cifar10_pixels", *own),
            less(LINEAR), claim=True, why=BY_LOGISTIC,
        )  # fmt: skip
    yield Quantity(
        "4.10", "CIFAR-10: the convolutional network reconstructs more details (total variation over the data's)",
        ("cifar10_conv", "cifar10_fc"), less(at("sharpness")), claim=True,
    )  # fmt: skip
    for identity in IDENTITIES:
        of = below(1e-12, "errors", identity)
        yield Quantity("chapter 3", f"{identity} holds to 1e-12", ("identities",), of, claim=True)


# ------------------------------------------------------------------------------------- tables of the report


def _losses(records: Chosen) -> list[list[str]]:
    """Every loss with its rate and its excess over the pixel-entropy floor."""
    settings = [*(f"{name}_d{d}" for name in CHAPTERS for d in DIMENSIONS), "cifar10_fc", "cifar10_conv"]
    keys = ("loss", "reconstruction", "rate", "floor", "excess")
    return [
        [e, *(plus_minus(*over_seeds(records[e], "test", key)) for key in keys), str(len(records[e]))]
        for e in settings
        if e in records
    ]


def _wrong(records: Chosen) -> list[list[str]]:
    """Which reconstructions of the shown test images are read as another class, by seed."""
    return [
        [experiment, str(record.seed), ", ".join(map(str, record.results["wrong_places"])) or "none"]
        for experiment in (*(f"{name}_d{d}" for name in CHAPTERS for d in (2, 20)), "cifar10_fc", "cifar10_conv")
        for record in records.get(experiment, ())
    ]


def _ways(records: Chosen) -> list[list[str]]:
    """The VAE, other ways to as many numbers, and the pixels themselves."""
    rows = []
    for name, dimensions in BASELINES.items():
        found: list[tuple[str, str, Results]] = []
        for d in dimensions:
            vae = records.get("cifar10_fc" if name == "cifar10" else f"{name}_d{d}", ())[:1]
            others = records.get(f"{name}_baselines_d{d}", ())
            found += [(str(d), "VAE", record.results) for record in vae]
            found += [(str(d), way, results) for record in others for way, results in record.results.items()]
        found += [("-", "pixels", record.results) for record in records.get(f"{name}_pixels", ())]
        for d_text, way, results in found:
            error = plus_minus(*at("squared_error")(results)) if "squared_error" in results else "-"
            scores = [plus_minus(*at("accuracy", c)(results), ".3f", ".3f") for c in CLASSIFIERS]
            rows.append([NAMES[name], d_text, way, error, *scores])
    return rows


def _betas(records: Chosen) -> list[list[str]]:
    """Rate and distortion by beta."""
    rows = []
    for name in CHAPTERS:
        for beta in sorted(BETAS):
            for record in records.get(f"{name}_d20" + ("" if beta == 1 else f"_beta_{beta:g}"), ())[:1]:
                values = [plus_minus(*at("test", key)(record.results)) for key in ("rate", "reconstruction", "loss")]
                rows.append([NAMES[name], f"{beta:g}", *values, str(record.results["active_units"])])
    return rows


TABLES = (
    Table("Every loss with its rate, and its excess over the pixel-entropy floor (nats per datum, ± over the seeds)",
          ("setting", "test loss", "reconstruction", "rate (KL)", "floor", "loss - floor", "seeds"), _losses),
    Table("Which of the shown test images are reconstructed as another class (read by 5 nearest neighbours on pixels)",
          ("setting", "seed", "test images"), _wrong),
    Table("Other ways to d numbers per image (± over the test data)",
          ("data", "d", "way", "squared error", "linear classifier", "5 nearest neighbours"), _ways),
    Table("The outlook: beta-VAE at d = 20, rate and distortion (± over the test data)",
          ("data", "beta", "rate (KL)", "distortion", "negative ELBO", "active units"), _betas),
)  # fmt: skip

DETAILS = (
    ("the loss is a mean over the minibatch", "its sum is differentiated, so the weight decay is 128 times weaker",
     "train.reduction: sum"),
    ("convolutions of stride 1 (table 4.2)", "stride 2, the only one that gives 4 x 4 feature maps", "stride: 2"),
    ("FC architecture of table 4.1 on CIFAR-10", "its layers of 128 are narrower than d = 256", "the same"),
    ("images in [0, 1], Bernoulli likelihood", "grey levels as targets of cross-entropy, which is no density",
     "likelihood: grey_cross_entropy; the floor is reported beside each loss"),
    ("a random sample of 30 (10) test images", "the first of each test minibatch: 0, 128, 256, ...", "the same images"),
    ("projections onto the latent space", "one sampled z for each image, not the mean", "one sampled z"),
    ("reconstructions", "from one sampled z", "from one sampled z"),
    ("t-SNE", "scikit-learn's defaults of 2020 (random start, learning rate 200), perplexity 50", "the same"),
    ("test loss", "one z for each image, after the last epoch", "the same, with a noise seed of its own"),
    ("training curves", "the mean within the epoch, before each update", "the same"),
    ("random seed is set", "723, 237 and 723, once for all models of a script",
     "a seed for each model; the first of three is the thesis' own"),
    ("the estimator of section 3.3 has log p(z)", "-", "log p(x, z), as its derivation has it"),
)  # fmt: skip

CHEN2020 = Document(
    "chen2020",
    "Chen 2020: Variational Auto-encoders with Application to Unsupervised Representation Learning",
    tuple(_experiments()),
    tuple(_quantities()),
    tuple(replace(figure, seen=SEEN.get(figure.name, "")) for figure in _figures()),
    DETAILS,
    TABLES,
    ("The thesis has numbers for CIFAR-10 alone (table 4.3); its other figures and its claims are measured.",),
)
