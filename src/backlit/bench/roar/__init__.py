"""ROAR, "remove and retrain" (Hooker et al. 2019), as the LPR paper evaluates with it (Table 1)."""

from backlit.bench.roar.result import OverSeeds, RoarCell, RoarResult, RoarRow
from backlit.bench.roar.run import roar
from backlit.bench.roar.setup import RoarData, RoarOptions, RoarStep
from backlit.bench.roar.training import TrainingOptions

__all__ = [
    "OverSeeds",
    "RoarCell",
    "RoarData",
    "RoarOptions",
    "RoarResult",
    "RoarRow",
    "RoarStep",
    "TrainingOptions",
    "roar",
]
