"""Tables and figures of DMBP (Ruiz et al. 2021)."""

from __future__ import annotations

from backlit.bench.papers.exhibit import Column, Exhibit, MethodRow, Paper, PaperClaim

_GRAD = MethodRow("Grad", "gradient_x_input")
_BIG = MethodRow("BIG", "blur_ig", "20 scales")
_GBP = MethodRow("GBp", "guided_backprop(times_input=true)")
_GGC = MethodRow("GGC", "guided_grad_cam(times_input=true)")
_DL = MethodRow("DL", "deeplift")
_LPR = MethodRow("LPR", "lpr")
_FG = MethodRow("FG", "fullgrad")
_GC = MethodRow("GC", "grad_cam")
_DMBP = MethodRow("DMBP", "dmbp")
_SG = MethodRow("SG", "smooth_grad(of=gradient_x_input)")
_IG = MethodRow("IG", "integrated_gradients")
_RISE = MethodRow("RISE", "rise")

_GRADIENTS = ("Grad", "IG", "SG", "BIG", "DL", "GBp", "GGC")
_VOC = "The paper's networks for Pascal VOC (Zhang et al. 2018) are not to be had."
_TARGET = "The target is the ground truth, as in the paper; masks stand on the branches of residual layers (Sec. 3.4)."


def _columns(metrics: tuple[tuple[str, str, str, tuple[float, ...]], ...]) -> tuple[Column, ...]:
    return tuple(Column(metric, data, network, printed) for metric, data, network, printed in metrics)


TABLE_1 = Exhibit(
    "table1",
    "Insertion and complementary insertion of DMBP's variants: no disentanglement, only y+, y+ and y−, and all terms",
    (
        MethodRow("ND", "gradient_x_input"),
        MethodRow("DMBP+", "dmbp(variant='+')"),
        MethodRow("DMBP+,−", "dmbp(variant='+,-')"),
        MethodRow("DMBP all", "dmbp"),
    ),
    _columns(
        (
            ("insertion", "imagenet", "resnet50", (0.26, 0.50, 0.51, 0.57)),
            ("insertion", "imagenet", "vgg16", (0.24, 0.37, 0.37, 0.39)),
            ("insertion", "voc", "resnet50_voc", (0.30, 0.58, 0.59, 0.61)),
            ("complementary_insertion", "voc", "resnet50_voc", (0.15, 0.15, 0.22, 0.22)),
            ("insertion", "voc", "vgg16_voc", (0.36, 0.62, 0.51, 0.57)),
            ("complementary_insertion", "voc", "vgg16_voc", (0.09, 0.06, 0.18, 0.16)),
        )
    ),
    (
        PaperClaim("Disentangling gives a better map than the gradient alone", "insertion", "DMBP all", ("ND",), 0.0),
        PaperClaim("Also minimising y− is better than y+ alone", "insertion", "DMBP+,−", ("DMBP+",)),
        PaperClaim(
            "Also minimising y− finds what speaks against a class", "complementary_insertion", "DMBP+,−", ("DMBP+",)
        ),
        PaperClaim("The nuisance term does no harm (.02)", "insertion", "DMBP all", ("DMBP+,−",), -0.02),
    ),
    differs=f"{_TARGET} {_VOC}",
)
TABLE_2 = Exhibit(
    "table2",
    "Insertion and complementary insertion of twelve methods, each gradient times the input",
    (_GRAD, _IG, _SG, _BIG, _DL, _GBP, _GGC, _LPR, _RISE, _FG, _GC, _DMBP),
    _columns(
        (
            (
                "insertion",
                "imagenet",
                "resnet50",
                (0.26, 0.30, 0.40, 0.27, 0.29, 0.43, 0.50, 0.33, 0.33, 0.53, 0.55, 0.56),
            ),
            (
                "insertion",
                "imagenet",
                "vgg16",
                (0.23, 0.28, 0.38, 0.21, 0.30, 0.32, 0.36, 0.28, 0.28, 0.43, 0.48, 0.41),
            ),
            (
                "insertion",
                "voc",
                "resnet50_voc",
                (0.30, 0.36, 0.47, 0.27, 0.34, 0.39, 0.50, 0.40, 0.51, 0.44, 0.51, 0.61),
            ),
            (
                "complementary_insertion",
                "voc",
                "resnet50_voc",
                (0.15, 0.16, 0.15, 0.15, 0.15, 0.13, 0.19, 0.14, 0.21, 0.14, 0.21, 0.22),
            ),
            (
                "insertion",
                "voc",
                "vgg16_voc",
                (0.36, 0.43, 0.55, 0.36, 0.41, 0.32, 0.35, 0.40, 0.41, 0.28, 0.35, 0.57),
            ),
            (
                "complementary_insertion",
                "voc",
                "vgg16_voc",
                (0.09, 0.06, 0.06, 0.08, 0.07, 0.06, 0.12, 0.07, 0.13, 0.10, 0.13, 0.16),
            ),
        )
    ),
    (
        PaperClaim("DMBP is ahead of the other gradient-based methods", "insertion", "DMBP", _GRADIENTS),
        PaperClaim("DMBP is ahead of the methods that perturb the image", "insertion", "DMBP", ("LPR", "RISE")),
        PaperClaim("DMBP is ahead of the methods that read inner layers", "insertion", "DMBP", ("FG", "GC")),
        PaperClaim(
            "DMBP is ahead on complementary insertion",
            "complementary_insertion",
            "DMBP",
            (*_GRADIENTS, "LPR", "RISE", "FG", "GC"),
        ),
    ),
    differs=f"{_TARGET} {_VOC} RISE has 8,000 masks, as its authors have on ResNet-50.",
)
TABLE_3 = Exhibit(
    "table3",
    "Rank correlation of maps before and after the last layer is drawn anew: near 0 is sensitive to the network",
    (_GBP, _GGC, _DMBP),
    _columns(
        (
            ("last_layer_reset", "imagenet", "resnet50", (0.99, 0.45, 0.00)),
            ("last_layer_reset", "imagenet", "vgg16", (0.99, 0.35, 0.00)),
            ("last_layer_reset", "voc", "resnet50_voc", (0.99, 0.28, -0.03)),
            ("last_layer_reset", "voc", "vgg16_voc", (0.99, 0.25, 0.02)),
        )
    ),
    (PaperClaim("DMBP's map depends on the last layer, others' hardly", "last_layer_reset", "DMBP", ("GBp", "GGC")),),
    differs=_TARGET,
)
FIGURE_3 = Exhibit(
    "figure3",
    "Insertion curves: the class probability as pixels are shown, most relevant first",
    (_GRAD, _GBP, _FG, _GC, _DMBP),
    (Column("insertion", "imagenet", "resnet50"), Column("insertion", "imagenet", "vgg16")),
    drawn="curves",
)
FIGURE_4 = Exhibit(
    "figure4",
    "Maps of methods that read inner layers are coarse, DMBP's are fine",
    (_FG, _GC, _DMBP),
    (Column("sparseness", "imagenet", "resnet50"), Column("sparseness", "imagenet", "vgg16")),
    drawn="maps",
)
FIGURE_5 = Exhibit(
    "figure5",
    "Maps of DMBP beside those of the other gradient-based methods",
    (_IG, _SG, _DL, _GBP, _GGC, _DMBP),
    (Column("sparseness", "imagenet", "resnet50"), Column("sparseness", "imagenet", "vgg16")),
    drawn="maps",
)
PAPER = Paper(
    "dmbp",
    "Ruiz et al., Generating Attribution Maps with Disentangled Masked Backpropagation, ICCV 2021",
    (TABLE_1, TABLE_2, TABLE_3, FIGURE_3, FIGURE_4, FIGURE_5),
    (("figure1", "an illustration of the method"), ("figure2", "an illustration of the method")),
)
