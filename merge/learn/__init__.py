"""Learning coefficients from data: each learner writes a file that `merge --coefficients` takes."""

from .adamerging import learn_adamerging
from .atlas import learn_atlas
from .btm import domain_posterior, learn_btm
from .evaluation import TaskScore
from .learning import Report
from .objectives import accuracy
from .scores import GradientScores, gradient_scores, linearised
from .search import search
from .soup import soup

__all__ = [
    "GradientScores",
    "Report",
    "TaskScore",
    "accuracy",
    "domain_posterior",
    "gradient_scores",
    "learn_adamerging",
    "learn_atlas",
    "learn_btm",
    "linearised",
    "search",
    "soup",
]
