"""The study of gradient estimators as a document, whose published numbers are those of theory."""

from collections.abc import Callable

from matplotlib.figure import Figure as Picture

from vae.reproduce.document import Arrays, Chosen, Document, Experiment, Figure, Made, Number, Quantity, Results
from vae.reproduce.estimators.figure import draw
from vae.reproduce.estimators.signal_to_noise import PARAMETERS, limit
from vae.reproduce.estimators.study import Study, compare

CONFIG = "digits_d2"


def measure(made: Made) -> tuple[Results, Arrays]:
    """All tables of the study."""
    epochs, samples = (1, 1000) if made.quick else (10, 20_000)
    return dict(compare(Study(f"configs/{CONFIG}.yaml", epochs, samples, 16, made.seed))), {}


def _slope(estimator: str, parameter: str) -> Callable[[Results], Number]:
    def of(results: Results) -> Number:
        (row,) = (r for r in results["slopes"] if (r["estimator"], r["parameter"]) == (estimator, parameter))
        return Number(row["slope"], row["slope_stderr"])

    return of


def draw_tables(records: Chosen) -> Picture:
    """The six panels of the study, of its first seed."""
    return draw(records[CONFIG][0].results, CONFIG)


ESTIMATORS = Document(
    "estimators",
    "Bias, variance and signal-to-noise ratio of gradient estimators, beside theory",
    (Experiment(CONFIG, measure, seeds=(0,), minutes=1.5, trained=False),),
    tuple(
        Quantity("1", f"{estimator}: slope of the signal-to-noise ratio in log K, {parameter}", (CONFIG,),
                 _slope(estimator, parameter), f"{limit(estimator, parameter):g}", 0.05, "the limit of large K",
                 headline=False)
        for estimator in ("iwae", "dreg") for parameter in PARAMETERS
    ),
    (Figure("1", "Variance, signal-to-noise ratio and bias of the estimators, measured and by theory.", (CONFIG,),
            draw_tables),),
)  # fmt: skip
