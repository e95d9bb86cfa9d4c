"""Tables and figures of LPR (Yang et al. 2020)."""

from __future__ import annotations

from backlit.bench.papers.exhibit import Column, Exhibit, MethodRow, Paper, PaperClaim

_LPR = MethodRow("LPR", "lpr")
_SALIENCY = MethodRow("Saliency", "saliency")
_GRADIENT = MethodRow("GradXIn", "gradient_x_input")
_LRP = MethodRow("ε-LRP", "lrp(preset=epsilon)")
_DEEPLIFT = MethodRow("DeepLIFT", "deeplift")
_SQ_SG = MethodRow("SQ_SG", "squared_smooth_grad")
_IG = MethodRow("IG", "integrated_gradients")
_SG = MethodRow("SG", "smooth_grad")
_RISE = MethodRow("RISE", "rise")
_MASK = MethodRow("Mask", "meaningful_perturbation")
_SMASK = MethodRow("sMask", "extremal_perturbation")
_ROWS = (
    _SALIENCY,
    _GRADIENT,
    _LRP,
    _DEEPLIFT,
    _SQ_SG,
    _IG,
    _SG,
    _MASK,
    _SMASK,
    _RISE,
    MethodRow("LPR*", "lpr(plugin=channel)"),
    _LPR,
)
_OTHERS = tuple(row.title for row in _ROWS if not row.title.startswith("LPR"))
_CURVES = ("morf_5", "lerf_5")
_NETWORKS = (
    ("imagenet", "resnet18"),
    ("imagenet", "vgg16"),
    ("imagenet", "inception_v3"),
    ("cifar10", "cifar_cnn"),
    ("cifar10", "cifar_vgg16"),
    ("mnist", "mnist_cnn"),
)
_STEPS = "40 steps: the text of the paper has no number but Table 2's sweep."


def _both(networks: tuple[tuple[str, str], ...]) -> tuple[Column, ...]:
    return tuple(Column(metric, data, network) for data, network in networks for metric in _CURVES)


def _sweep(name: str, values: tuple[float, ...]) -> tuple[MethodRow, ...]:
    return tuple(MethodRow(f"{name} {value:g}", f"lpr({name}={value:g})") for value in values)


_SWEEPS: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...] = (
    ("gamma", (1, 7.5, 14, 21, 27, 34, 40, 47, 53.5, 60), (0.40, 0.27, 0.16, 0.13, 0.14, 0.15, 0.17, 0.18, 0.20, 0.22)),
    ("steps", (1, 8, 14, 21, 27, 34, 40, 47, 54, 60), (0.86, 0.29, 0.27, 0.27, 0.26, 0.24, 0.23, 0.23, 0.22, 0.23)),
    (
        "lam",
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
        (0.23, 0.22, 0.22, 0.22, 0.22, 0.21, 0.22, 0.21, 0.21, 0.22),
    ),
    (
        "lr",
        (0.01, 0.06, 0.12, 0.17, 0.23, 0.28, 0.34, 0.39, 0.45, 0.5),
        (0.40, 0.33, 0.29, 0.26, 0.25, 0.25, 0.21, 0.21, 0.20, 0.21),
    ),
    (
        "alpha",
        (0.55, 0.59, 0.64, 0.68, 0.73, 0.77, 0.82, 0.86, 0.90, 0.95),
        (0.47, 0.37, 0.30, 0.26, 0.23, 0.21, 0.19, 0.18, 0.18, 0.21),
    ),
)

TABLE_2 = Exhibit(
    "table2",
    "LPR's sensitivity to its numbers: the area under the MoRF curve, lower is better",
    tuple(row for name, values, _ in _SWEEPS for row in _sweep(name, values)),
    (Column("morf_5", "imagenet", "vgg16", tuple(auc for _, _, printed in _SWEEPS for auc in printed)),),
    (
        PaperClaim("40 steps are ahead of one", "morf_5", "steps 40", ("steps 1",)),
        PaperClaim("λ makes little difference (.05)", "morf_5", "lam 0.1", ("lam 1",), -0.05),
        PaperClaim("γ of about 20 is ahead of 1", "morf_5", "gamma 21", ("gamma 1",)),
        PaperClaim("α of about .9 is ahead of .55", "morf_5", "alpha 0.9", ("alpha 0.55",)),
    ),
    differs=_STEPS,
)
FIGURE_5 = Exhibit(
    "figure5",
    "The logit as up to 5 % of the pixels are set to zero: most relevant first (lower is better), least first (higher is)",
    _ROWS,
    _both(_NETWORKS),
    (
        PaperClaim("LPR's curve falls fastest", "morf_5", "LPR", _OTHERS),
        PaperClaim("LPR finds what speaks against the class", "lerf_5", "LPR", _OTHERS),
    ),
    drawn="curves",
    differs=f"The class is the ground truth, where the paper takes the prediction. {_STEPS}",
)
FIGURE_6 = Exhibit(
    "figure6",
    "Maps of LPR beside those of the compared methods",
    (_GRADIENT, _IG, _SG, _DEEPLIFT, _SQ_SG, _LPR),
    (Column("sparseness", "imagenet", "vgg16"),),
    drawn="maps",
)
FIGURE_8 = Exhibit(
    "figure8",
    "Maps of two classes of one image",
    (_GRADIENT, _DEEPLIFT, _IG, _LPR),
    (Column("sparseness", "imagenet", "vgg16"),),
    drawn="maps",
    classes=2,
    differs="The two likeliest classes of photographs, in the place of a composite image.",
)
FIGURE_9 = Exhibit(
    "figure9",
    "LPR without its sign-aware loss and without its reference",
    (_LPR, MethodRow("no sign-aware loss", "lpr(sign_aware=false)"), MethodRow("no reference", "lpr(reference=false)")),
    _both((("imagenet", "vgg16"),)),
    (
        PaperClaim("The sign-aware loss is what finds negative pixels", "lerf_5", "LPR", ("no sign-aware loss",)),
        PaperClaim("The reference hardly matters (.05)", "morf_5", "LPR", ("no reference",), -0.05),
    ),
    drawn="curves",
    differs="In the default reading of G the reference changes nothing at all.",
)
PAPER = Paper(
    "lpr",
    "Yang et al., Learning Propagation Rules for Attribution Map Generation, ECCV 2020",
    (TABLE_2, FIGURE_5, FIGURE_6, FIGURE_8, FIGURE_9),
    (
        ("table1", "ROAR on CIFAR-10: backlit roar --data DIR --method lpr,squared_smooth_grad,random"),
        ("figure1", "an example of maps: see figure6"),
        ("figure2", "an illustration of the method"),
        ("figure3", "an illustration of the method"),
        ("figure4", "an illustration of the method"),
        ("figure7", "misclassified images: backlit explain IMAGE --method lpr, of the predicted class"),
    ),
)
