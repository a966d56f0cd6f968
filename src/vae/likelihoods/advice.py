"""Which likelihood suits data of a kind, and whether the values of data are in a likelihood's support."""

from torch import Tensor, nn

from vae.distributions import support_of
from vae.errors import ConfigError
from vae.likelihoods import LIKELIHOODS
from vae.schema import Part, options_of

# The supports that hold the values of data of each kind (levels, if the values lie on the likelihood's own grid).
FITTING_SUPPORTS = {
    "binary": ("binary", "unit_interval", "real", "levels", "counts"),
    "grey": ("unit_interval", "real", "levels"),
    "levels": ("unit_interval", "real", "levels"),
    "counts": ("counts", "real"),
    "real": ("real",),
}
# The likelihood that is used if the settings name none.
DEFAULT_LIKELIHOOD = {
    "binary": "bernoulli",
    "grey": "grey_cross_entropy",
    "levels": "discretized_logistic",
    "counts": "negative_binomial",
    "real": "gaussian",
}


def default_likelihood(kind: str, shape: tuple[int, ...], levels: int) -> Part:
    """The likelihood that suits data of a kind, with its default options; `levels` is the size of a grid of greys.

    Tables of numbers, whose columns are of different sizes, are standardised.
    """
    name = DEFAULT_LIKELIHOOD[kind]
    options = {key: option.default for key, option in options_of(LIKELIHOODS[name]).items()}
    if "levels" in options:
        options["levels"] = levels
    if name == "gaussian" and len(shape) == 1:
        options["standardise"] = True
    return Part(name, options)


def check_kind(head: nn.Module, kind: str, value_range: tuple[float, float], source: str, doubt: str = "") -> None:
    """ConfigError if data of a kind, from `source`, do not fit the likelihood; it names those that fit.

    `doubt` is what may be wrong with the values, and how to mend it.
    """
    fits = FITTING_SUPPORTS[kind]
    support = type(head).support  # type: ignore[attr-defined]  # of the row; an instance may name its own grid
    if support in fits:
        return
    low, high = value_range
    within = f", on [{low:.9g}, {high:.9g}]"
    fitting = [key for key, row in LIKELIHOODS.items() if row.support in fits]  # type: ignore[attr-defined]
    grey = kind in ("grey", "levels") and support == "binary"
    cure = ", or binarize them: data.pixels threshold, static or dynamic" if grey else ""
    raise ConfigError(
        f"model.likelihood: {_name(head)} needs {support_of(str(head.support)).words}, but the data of {source} are "
        f"{kind}{within}; likelihoods that fit: {', '.join(fitting)}{cure}{doubt and f'; {doubt}'}"
    )


def check_levels(head: nn.Module, values: Tensor, source: str) -> None:
    """ConfigError if values are not on the grid of the likelihood; it names one, and the grid that fits them."""
    support = support_of(f"levels_{head.levels}")
    if support(values):
        return
    values = values.unique()
    off = next(value.item() for value in values if not support(value))
    fitting = (k for k in range(2, 257) if support_of(f"levels_{k}")(values))
    none = "no grid of up to 256 levels fits them; use a likelihood for values on [0, 1]"
    cure = next((f"model.likelihood.levels={k} fits them" for k in fitting), none)
    raise ConfigError(
        f"model.likelihood: {_name(head)} of {head.levels} levels needs {support.words}, but the data of "
        f"{source} contain {off:g}; {cure}"
    )


def _name(head: nn.Module) -> str:
    """The name of a likelihood in LIKELIHOODS."""
    return next(key for key, row in LIKELIHOODS.items() if type(head) is row)
