"""The methods, in the one tuple that drives the command line, the docs and the property tests."""

from backlit.methods.attention import AttentionRollout, GradientRollout, LeGrad, LibraGrad
from backlit.methods.average import SmoothGrad, SquaredSmoothGrad, VarGrad
from backlit.methods.base import Method
from backlit.methods.bbp import BBp
from backlit.methods.blind import Centre, Constant, Edges, Random
from backlit.methods.blur_path import BlurIG
from backlit.methods.cameras import CAMERAS
from backlit.methods.class_cam import CAM
from backlit.methods.deeplift import DeepLIFT, DeepSHAP
from backlit.methods.dmbp import DMBP
from backlit.methods.fitted import FittedMethod
from backlit.methods.fullgrad import FullGrad
from backlit.methods.gradient import Deconvnet, Gradient, GradientXInput, GuidedBackprop, Saliency
from backlit.methods.gradient_cams import (
    GradCAM,
    GradCAMPlusPlus,
    GuidedGradCAM,
    HiResCAM,
    LayerCAM,
    NormGrad,
    XGradCAM,
)
from backlit.methods.guided_path import GuidedIG
from backlit.methods.l2x import L2X
from backlit.methods.lpr import LPR
from backlit.methods.mask_search import ExtremalPerturbation, MeaningfulPerturbation
from backlit.methods.mip_in import MIPIN
from backlit.methods.occlusion import Occlusion
from backlit.methods.path import ExpectedGradients, IntegratedGradients
from backlit.methods.pattern import PatternAttribution, PatternNet
from backlit.methods.pda import PDA
from backlit.methods.pfv import PFV
from backlit.methods.region import XRAI
from backlit.methods.relevance import LRP, DeepTaylor, ExcitationBackprop
from backlit.methods.rise import RISE
from backlit.methods.score_cam import ScoreCAM
from backlit.methods.surrogate import LIME, KernelSHAP
from backlit.methods.tr_gbp import TRGBP

METHODS: tuple[type[Method], ...] = (
    DMBP,
    LPR,
    TRGBP,
    MIPIN,
    PatternNet,
    PatternAttribution,
    L2X,
    FullGrad,
    BBp,
    LRP,
    DeepTaylor,
    ExcitationBackprop,
    DeepLIFT,
    DeepSHAP,
    Occlusion,
    RISE,
    PDA,
    MeaningfulPerturbation,
    ExtremalPerturbation,
    LIME,
    KernelSHAP,
    IntegratedGradients,
    ExpectedGradients,
    BlurIG,
    GuidedIG,
    XRAI,
    SmoothGrad,
    SquaredSmoothGrad,
    VarGrad,
    GradCAM,
    GuidedGradCAM,
    GradCAMPlusPlus,
    XGradCAM,
    HiResCAM,
    LayerCAM,
    NormGrad,
    CAM,
    ScoreCAM,
    CAMERAS,
    PFV,
    AttentionRollout,
    GradientRollout,
    LeGrad,
    GuidedBackprop,
    Deconvnet,
    LibraGrad,
    GradientXInput,
    Saliency,
    Gradient,
)
BASELINES: tuple[type[Method], ...] = (Random, Centre, Edges, Constant)
"""What every comparison should add, though nobody would explain with it: maps that do not look at the network."""

__all__ = [
    "BASELINES",
    "CAM",
    "CAMERAS",
    "DMBP",
    "L2X",
    "LIME",
    "LPR",
    "LRP",
    "METHODS",
    "MIPIN",
    "PDA",
    "PFV",
    "RISE",
    "TRGBP",
    "XRAI",
    "AttentionRollout",
    "BBp",
    "BlurIG",
    "Centre",
    "Constant",
    "Deconvnet",
    "DeepLIFT",
    "DeepSHAP",
    "DeepTaylor",
    "Edges",
    "ExcitationBackprop",
    "ExpectedGradients",
    "ExtremalPerturbation",
    "FittedMethod",
    "FullGrad",
    "GradCAM",
    "GradCAMPlusPlus",
    "Gradient",
    "GradientRollout",
    "GradientXInput",
    "GuidedBackprop",
    "GuidedGradCAM",
    "GuidedIG",
    "HiResCAM",
    "IntegratedGradients",
    "KernelSHAP",
    "LayerCAM",
    "LeGrad",
    "LibraGrad",
    "MeaningfulPerturbation",
    "Method",
    "NormGrad",
    "Occlusion",
    "PatternAttribution",
    "PatternNet",
    "Random",
    "Saliency",
    "ScoreCAM",
    "SmoothGrad",
    "SquaredSmoothGrad",
    "VarGrad",
    "XGradCAM",
]
