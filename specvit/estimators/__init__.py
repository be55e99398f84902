"""Estimators, the models that are fitted in one go: ridge regression, gradient-boosted trees and templates.

How to add one: CONTRIBUTING.md.
"""

from typing import Any

from specvit.config.schema import Config
from specvit.estimators.estimator import Estimator
from specvit.estimators.lightgbm import LightGBM
from specvit.estimators.ridge import Ridge
from specvit.estimators.template import Template

ESTIMATORS: dict[str, type[Estimator[Any]]] = {"ridge": Ridge, "lightgbm": LightGBM, "template": Template}
"""By `model.kind`, as in `config.model_kinds.MODEL_KINDS`."""


def build_estimator(config: Config) -> Estimator[Any]:
    """Return the estimator that `config.model` selects."""
    return ESTIMATORS[config.model.kind](config)
