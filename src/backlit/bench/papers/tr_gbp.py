"""Tables and figures of TR-GBP ("Towards Predictable Feature Attribution", 2021)."""

from __future__ import annotations

from backlit.bench.papers.exhibit import Column, Exhibit, MethodRow, Paper, PaperClaim

_OURS = MethodRow("TR-GBP", "tr_gbp")
_ROWS = (
    MethodRow("Saliency", "saliency"),
    MethodRow("GBP", "guided_backprop"),
    MethodRow("GIG", "guided_ig"),
    MethodRow("FullGrad", "fullgrad"),
    MethodRow("GradCAM", "grad_cam"),
    MethodRow("CAMERAS", "cameras"),
    _OURS,
)
_OTHERS = ("Saliency", "GIG", "FullGrad", "GradCAM", "CAMERAS")
_BOXED = "energy_pointing_game(largest=0.5,one_box=true)"
_ABSOLUTE = "lerf_100(absolute=('guided_backprop','guided_ig'))"

TABLE_1 = Exhibit(
    "table1",
    "Energy-based pointing game in per cent: the share of positive relevance in the box of the target",
    _ROWS,
    (
        Column(_BOXED, "imagenet", "resnet50", (36.9, 55.4, 40.6, 35.0, 40.8, 50.1, 53.4), 100),
        Column(_BOXED, "imagenet", "vgg16", (40.2, 56.1, 41.2, 41.3, 45.7, 45.9, 52.2), 100),
    ),
    (
        PaperClaim("TR-GBP lies in the box more than all but GBP", _BOXED, "TR-GBP", _OTHERS),
        PaperClaim("GBP lies in the box more than TR-GBP", _BOXED, "GBP", ("TR-GBP",)),
    ),
    differs="The interval is of the mean over all images with one box under half of them, not of five draws of 500 images.",
)
TABLE_2 = Exhibit(
    "table2",
    "Area under the ROC of relevance in the image's border as a sign of a wrong prediction, in per cent",
    _ROWS,
    (
        Column("ibd_auc", "imagenet", "resnet50", (51.44, 51.96, 53.79, 54.04, 53.06, 54.99, 62.16), 100),
        Column("ibd_auc", "imagenet", "vgg16", (52.84, 53.03, 53.85, 53.72, 56.86, 57.00, 60.95), 100),
    ),
    (PaperClaim("TR-GBP's border tells wrong predictions best", "ibd_auc", "TR-GBP", (*_OTHERS, "GBP")),),
    differs="Maps of the prediction, as Sec. 5.4 asks where it looked. The paper has the 50,000 validation images.",
    together=True,
)
FIGURE_3 = Exhibit(
    "figure3",
    "TR-GBP of the two likeliest classes of an image",
    (_OURS,),
    (Column("sparseness", "imagenet", "resnet50"),),
    drawn="maps",
    classes=2,
)
FIGURE_4 = Exhibit(
    "figure4",
    "Maps of all methods",
    _ROWS,
    (Column("sparseness", "imagenet", "resnet50"), Column("sparseness", "imagenet", "vgg16")),
    drawn="maps",
)
FIGURE_5 = Exhibit(
    "figure5",
    "TR-GBP as the network is drawn anew, from the classifier down",
    (_OURS,),
    (Column("cascading_reset", "imagenet", "resnet50"),),
    drawn="strips",
)
FIGURE_6 = Exhibit(
    "figure6",
    "The logit as pixels are set to zero, all of them in the end: most and least relevant first",
    _ROWS,
    (
        Column("morf_100", "imagenet", "resnet50"),
        Column(_ABSOLUTE, "imagenet", "resnet50"),
        Column("morf_100", "imagenet", "vgg16"),
        Column(_ABSOLUTE, "imagenet", "vgg16"),
    ),
    (
        PaperClaim("TR-GBP is ahead on ResNet and LeRF", _ABSOLUTE, "TR-GBP", (*_OTHERS, "GBP")),
        PaperClaim(
            "TR-GBP is ahead of the methods that read inner layers on MoRF",
            "morf_100",
            "TR-GBP",
            ("CAMERAS", "GradCAM", "FullGrad"),
        ),
    ),
    drawn="curves",
    differs="GBP and GIG are ranked by magnitude for LeRF, as in Appendix D.",
)
FIGURE_7 = Exhibit(
    "figure7",
    "TR-GBP of the five likeliest classes, VGG16",
    (_OURS,),
    (Column("sparseness", "imagenet", "vgg16"),),
    drawn="maps",
    classes=5,
)
FIGURE_8 = Exhibit(
    "figure8",
    "TR-GBP of the five likeliest classes, ResNet-50",
    (_OURS,),
    (Column("sparseness", "imagenet", "resnet50"),),
    drawn="maps",
    classes=5,
)
FIGURE_9 = Exhibit(
    "figure9",
    "TR-GBP as the network is drawn anew, VGG16",
    (_OURS,),
    (Column("cascading_reset", "imagenet", "vgg16"),),
    drawn="strips",
    differs="The map as a whole; those of single layers are TRGBP(layers=True) in Python.",
)
FIGURE_10 = Exhibit(
    "figure10",
    "TR-GBP as the network is drawn anew, ResNet-50",
    (_OURS,),
    (Column("cascading_reset", "imagenet", "resnet50"),),
    drawn="strips",
    differs="The map as a whole; those of single layers are TRGBP(layers=True) in Python.",
)
PAPER = Paper(
    "tr_gbp",
    "Towards Predictable Feature Attribution: Revisiting and Improving Guided BackPropagation (TR-GBP), under review, 2021",
    (TABLE_1, TABLE_2, FIGURE_3, FIGURE_4, FIGURE_5, FIGURE_6, FIGURE_7, FIGURE_8, FIGURE_9, FIGURE_10),
    (("figure1", "an illustration of the method"), ("figure2", "an illustration of the method")),
)
