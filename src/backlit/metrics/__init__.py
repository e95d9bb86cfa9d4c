"""Protocols that score maps, in the one tuple that drives the command line, the docs and the property tests."""

from backlit.metrics.base import Case, Metric, Protocol, Scores
from backlit.metrics.cells import SingleDeletion
from backlit.metrics.conciseness import Complexity, Sparseness
from backlit.metrics.examples import Examples
from backlit.metrics.grid import DiFull, GridPointingGame
from backlit.metrics.information import AIC, SIC
from backlit.metrics.insertion import Deletion, Insertion
from backlit.metrics.irof import IROF
from backlit.metrics.localisation import (
    BoundaryAUC,
    BoundaryDependence,
    BoxAccuracy,
    EnergyPointingGame,
    PointingGame,
)
from backlit.metrics.masking import AverageDrop, AverageGain, AverageIncrease
from backlit.metrics.mprt import EfficientMPRT, SmoothMPRT
from backlit.metrics.perturbation import ComplementaryInsertion, LeRF5, LeRF100, MoRF5, MoRF100
from backlit.metrics.reset import CascadingReset, LastLayerReset
from backlit.metrics.road import RoadLeRF, RoadMoRF
from backlit.metrics.sensitivity import ClassSensitivity, Infidelity, MaxSensitivity
from backlit.metrics.signal import PercentageChange, PositivePercentageChange
from backlit.metrics.statistics import Estimate
from backlit.metrics.subsets import SensitivityN

METRICS: tuple[type[Metric], ...] = (
    Insertion,
    ComplementaryInsertion,
    Deletion,
    MoRF5,
    LeRF5,
    MoRF100,
    LeRF100,
    PointingGame,
    EnergyPointingGame,
    BoxAccuracy,
    GridPointingGame,
    DiFull,
    BoundaryDependence,
    BoundaryAUC,
    LastLayerReset,
    CascadingReset,
    SmoothMPRT,
    EfficientMPRT,
    ClassSensitivity,
    PercentageChange,
    PositivePercentageChange,
    Infidelity,
    MaxSensitivity,
    RoadMoRF,
    RoadLeRF,
    AverageDrop,
    AverageIncrease,
    AverageGain,
    SingleDeletion,
    SensitivityN,
    IROF,
    AIC,
    SIC,
    Sparseness,
    Complexity,
)

__all__ = [
    "AIC",
    "IROF",
    "METRICS",
    "SIC",
    "AverageDrop",
    "AverageGain",
    "AverageIncrease",
    "BoundaryAUC",
    "BoundaryDependence",
    "BoxAccuracy",
    "CascadingReset",
    "Case",
    "ClassSensitivity",
    "ComplementaryInsertion",
    "Complexity",
    "Deletion",
    "DiFull",
    "EfficientMPRT",
    "EnergyPointingGame",
    "Estimate",
    "Examples",
    "GridPointingGame",
    "Infidelity",
    "Insertion",
    "LastLayerReset",
    "LeRF5",
    "LeRF100",
    "MaxSensitivity",
    "Metric",
    "MoRF5",
    "MoRF100",
    "PercentageChange",
    "PointingGame",
    "PositivePercentageChange",
    "Protocol",
    "RoadLeRF",
    "RoadMoRF",
    "Scores",
    "SensitivityN",
    "SingleDeletion",
    "SmoothMPRT",
    "Sparseness",
]
