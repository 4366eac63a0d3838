"""UNIT: learn the tightest bounds that clean data can live with."""

from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal, get_args

from torch import Tensor

from unit_fast.calibration.budget import Hold
from unit_fast.calibration.context import CalibrationContext, Method
from unit_fast.calibration.opening import OpeningSearch
from unit_fast.calibration.paper import PaperSearch
from unit_fast.calibration.progress import silent
from unit_fast.calibration.search import Search, run
from unit_fast.calibration.settings import plain_numbers
from unit_fast.calibration.spending import SpendingSearch
from unit_fast.errors import UnitFastError

Recipe = Literal["default", "paper"]


@dataclass(frozen=True)
class Unit(Method):
    """Learned bounds, after UNIT (Cheng et al., ECCV 2024, arXiv 2407.11372).

    The returned bounds keep the validation part within the tolerance, or :class:`unit_fast.ToleranceError` is raised.

    Attributes:
        tolerance: accuracy one is ready to lose on clean data that was not seen, as a share in (0, 1).
        hold: by what the tolerance is held, on the validation part. "divergence" from the original model's outputs, the
            default recipe's own: safe with samples that the model was trained on, and on models that are unsure it
            spends hardly any of the tolerance. "accuracy": the tolerance is spent, for at most six times that
            divergence, which removes more (:mod:`unit_fast.calibration.spending`); for samples, with labels, that the
            model was not trained on; without labels it is the share of decisions that stay. The paper's recipe has the
            accuracy only.
        recipe: "default", see :mod:`unit_fast.calibration.opening`, or "paper", the search as published, see
            :mod:`unit_fast.calibration.paper`.
        steps: of the optimiser; None takes the recipe's (paper: 300).
        learning_rate: of Adam; None takes the recipe's (paper: 1e-3 in units of the activations; default recipe: 0.05,
            with the accuracy held 0.1, in units of each bound's scale).
        batch_size: fit samples a step; None takes the recipe's (paper: the whole fit set each step, as the authors run
            it, gone through in mini-batches so that memory does not grow).
    """

    tolerance: float = 0.03
    recipe: Recipe = "default"
    steps: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    hold: Hold | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        if not (isfinite(self.tolerance) and 0 < self.tolerance < 1):
            raise UnitFastError(
                f"Unit: tolerance must lie between 0 and 1 (0.03 is three points); got {self.tolerance}"
            )
        if self.recipe not in get_args(Recipe):
            raise UnitFastError(f"Unit: recipe must be one of {', '.join(get_args(Recipe))}; got {self.recipe!r}")
        if self.hold is not None and self.hold not in get_args(Hold):
            raise UnitFastError(f"Unit: hold must be one of {', '.join(get_args(Hold))}, or None; got {self.hold!r}")
        if self.recipe == "paper" and self.hold == "divergence":
            raise UnitFastError(
                "Unit: the paper's recipe holds the accuracy; leave hold out, or take the default recipe"
            )
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UnitFastError(f"Unit: {name} must be at least 1; got {value}")
        if self.learning_rate is not None and not (isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UnitFastError(f"Unit: learning_rate must be positive; got {self.learning_rate}")

    @property
    def shuffles_split(self) -> bool:
        """The paper takes the first samples of each class to fit."""
        return self.recipe != "paper"

    def fit(self, context: CalibrationContext) -> dict[str, Tensor]:
        """Search, with progress, Ctrl-C and resume as :func:`unit_fast.calibration.search.run` has them."""
        search = self._search(replace(context, progress=silent))  # only its steps are reported
        return run(search, context, self.settings())

    def _search(self, context: CalibrationContext) -> Search:
        if self.recipe == "paper":
            return PaperSearch(context, self.tolerance, self.steps or 300, self.learning_rate or 1e-3, self.batch_size)
        search = SpendingSearch if self.hold == "accuracy" else OpeningSearch
        return search(context, self.tolerance, self.steps, self.learning_rate, self.batch_size)
