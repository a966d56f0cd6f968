"""Floor 5: how good a model is. Evaluators leave the model, its modes and every generator as they were."""

from vae.evaluation.bound import Evaluation, evaluate_bound, posterior_codes, summary
from vae.evaluation.representation import representation, representation_table

__all__ = [
    "Evaluation",
    "evaluate_bound",
    "posterior_codes",
    "representation",
    "representation_table",
    "summary",
]
