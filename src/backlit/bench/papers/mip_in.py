"""Tables and figures of MIP-IN (Jing et al. 2021)."""

from __future__ import annotations

from backlit.bench.papers.exhibit import Column, Exhibit, MethodRow, NeededFit, Paper, PaperClaim

_MIP_IN = MethodRow("MIP-IN", "mip_in")
_ROWS = (
    MethodRow("Grads", "saliency"),
    MethodRow("SmoothGrads", "smooth_grad"),
    MethodRow("LRP-ε", "lrp(preset=epsilon)"),
    MethodRow("DTD", "deep_taylor"),
    MethodRow("Deconvnet", "deconvnet"),
    MethodRow("GBP", "guided_backprop"),
    MethodRow("GradCAM", "grad_cam"),
    _MIP_IN,
)
_OTHERS = tuple(row.title for row in _ROWS[:-1])
_FEATURES = (NeededFit("mip_in", (("start", "features"),)),)
_BOXES = "box_accuracy(largest=0.33)"
_CLASSES = "class_sensitivity(classes=(981,589))"
_FITTED = "MIP-IN learns from the places' images named fit, not from the 50,000 of the validation set."

TABLE_1 = Exhibit(
    "table1",
    "Average percentage change of the logit when the image becomes its source signal, in per cent",
    (_MIP_IN,),
    (
        Column("apc", "mnist", "mnist_mlp", (10.10,), 100),
        Column("positive_apc", "mnist", "mnist_mlp", (2.6,), 100),
        Column("apc", "mnist", "mnist_cnn", (16.5,), 100),
        Column("positive_apc", "mnist", "mnist_cnn", (2.3,), 100),
        Column("apc", "cifar10", "cifar_cnn", (21.1,), 100),
        Column("positive_apc", "cifar10", "cifar_cnn", (10.6,), 100),
    ),
    fits=(NeededFit("mip_in", (("reading", "paper"), ("samples", "own"))),),
    together=True,
)
TABLE_2 = Exhibit(
    "table2",
    "Box accuracy: of the most relevant pixels, as many as the box has, the share inside; boxes under 33 % of the image",
    _ROWS,
    (
        Column(_BOXES, "imagenet", "resnet50", (0.368, 0.541, 0.292, 0.441, 0.263, 0.456, 0.512, 0.662)),
        Column(_BOXES, "imagenet", "vgg19", (0.345, 0.518, 0.307, 0.427, 0.226, 0.398, 0.486, 0.648)),
    ),
    (PaperClaim("MIP-IN lies in the box more than all others", _BOXES, "MIP-IN", _OTHERS),),
    differs=f"{_FITTED} PatternAttribution (VGG19: .499) learns from the whole network: backlit fit --method pattern.",
    fits=_FEATURES,
)
FIGURE_6 = Exhibit(
    "figure6",
    "Maps of MIP-IN, and of the methods beside it (the paper's Figures 6, 7 and 13)",
    _ROWS,
    (Column("sparseness", "imagenet", "vgg19"), Column("sparseness", "imagenet", "resnet50")),
    drawn="maps",
    fits=_FEATURES,
)
FIGURE_8 = Exhibit(
    "figure8",
    "Maps of two classes of one image",
    _ROWS,
    (Column("sparseness", "imagenet", "vgg19"), Column("sparseness", "imagenet", "resnet50")),
    drawn="maps",
    classes=2,
    differs="The likeliest two classes of each image.",
    fits=_FEATURES,
)
FIGURE_9 = Exhibit(
    "figure9",
    "Mean distance between the maps of two classes, 981 and 589",
    _ROWS,
    (Column(_CLASSES, "imagenet", "vgg19"),),
    (PaperClaim("MIP-IN tells classes apart more than GBP and Deconvnet", _CLASSES, "MIP-IN", ("GBP", "Deconvnet")),),
    differs=f"Maps are scaled to their largest value first. {_FITTED}",
    fits=_FEATURES,
)
FIGURE_10 = Exhibit(
    "figure10",
    "MIP-IN beside Grad-CAM",
    (MethodRow("GradCAM", "grad_cam"), _MIP_IN),
    (Column("sparseness", "imagenet", "vgg19"), Column("sparseness", "imagenet", "resnet50")),
    drawn="maps",
    fits=_FEATURES,
)
PAPER = Paper(
    "mip_in",
    "Jing et al., Mutual Information Preserving Inverse Network (MIP-IN), 2021",
    (TABLE_1, TABLE_2, FIGURE_6, FIGURE_8, FIGURE_9, FIGURE_10),
    (
        ("table3", "a network of the paper, not a result"),
        ("table4", "a network of the paper, not a result"),
        ("table5", "a network of the paper, not a result"),
        ("figure1", "an illustration of the methods"),
        ("figure2", "an illustration of the method"),
        ("figure3", 'source signals with and without gates: parts "source" and "global" of a MIPIN map'),
        ("figure4", 'source signals with their logits: part "source" of a MIPIN map'),
        ("figure5", "maps of an MLP on MNIST: backlit explain with a network of your own"),
        ("figure7", "see figure6"),
        ("figure11", "one class of ImageNet: see figure6"),
        ("figure12", "one class of ImageNet: see figure6"),
        ("figure13", "see figure6"),
    ),
)
