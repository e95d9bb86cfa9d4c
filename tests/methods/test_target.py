"""What is explained where that is no class: contrasts, units, functions of the output."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import backlit
from _methods import EVERYWHERE, quick
from backlit import Contrast, GradientXInput, InputError, Unit, scored
from backlit._fingerprint import fingerprint
from backlit.methods import TRGBP, BBp, DeepLIFT, ExcitationBackprop, GradCAM, Gradient, Method
from backlit.methods.fitted import FittedMethod
from backlit.methods.scored import Scored
from backlit.metrics import Examples, Insertion


class Net(nn.Module):
    """Convolutions, a residual add, biases; in place, as networks are."""

    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.mix = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head((torch.relu(self.mix(x)) + x).mean((2, 3)))


class Segments(nn.Module):
    """A score for each class and pixel, in a dictionary, beside something else."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"out": self.body(x), "size": tuple(x.shape)}


def made(kind: type[nn.Module] = Net) -> Any:
    torch.manual_seed(3)
    net = kind().double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


X = torch.randn(3, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
EVERY = [m for m in EVERYWHERE if not issubclass(m, FittedMethod)]


def test_gradients_of_a_contrast_are_the_difference_by_autograd() -> None:
    net = made()
    x = X.clone().requires_grad_()
    logits = net(x)
    one = torch.autograd.grad((logits[:, 4] - logits[:, 1]).sum(), x, retain_graph=True)[0]
    found = Gradient(net)(X, Contrast(4, 1))
    torch.testing.assert_close(found.values, one)
    torch.testing.assert_close(found.output, (logits[:, 4] - logits[:, 1]).detach())
    assert found.target.tolist() == [4, 4, 4]
    assert found.labels == ("class 4 − class 1",) * 3
    assert found.probability is None
    assert found.provenance["less"] == 1
    assert found.provenance["model"] == "Net"
    assert found.provenance["fingerprint"] == fingerprint(net)


def test_a_contrast_with_the_likeliest_others_takes_each_images_own() -> None:
    net = made()
    x = X.clone().requires_grad_()
    logits = net(x)
    rows = logits.tolist()
    others = [sorted((k for k in range(6) if k != 2), key=lambda k, row=row: -row[k])[:3] for row in rows]
    assert len({tuple(sorted(o)) for o in others}) > 1, "the images must differ, or the test says nothing"
    score = sum(logits[i, 2] - logits[i, o].mean() for i, o in enumerate(others))
    found = Gradient(net)(X, Contrast(2, top=3))
    torch.testing.assert_close(found.values, torch.autograd.grad(score, x)[0])
    for i in range(3):
        torch.testing.assert_close(Gradient(net).attribute(X[i : i + 1], Contrast(2, top=3))[0], found.values[i])


@pytest.mark.parametrize("kind", [GradientXInput, BBp, DeepLIFT, TRGBP, ExcitationBackprop], ids=lambda m: m.name)
def test_a_contrast_is_the_difference_of_two_maps_where_the_method_is_linear_or_explains_classes(
    kind: type[Method],
) -> None:
    net = made()
    one, other = kind(net).each(X, torch.tensor([[5, 0]] * 3))
    found = kind(net)(X, Contrast(5, 0))
    torch.testing.assert_close(found.values, one.values - other.values)
    torch.testing.assert_close(found.output, one.output - other.output)
    assert found.provenance["kind"] == ("contrast" if one.provenance["kind"] == "one-sided" else one.provenance["kind"])


@pytest.mark.parametrize("kind", EVERY, ids=lambda m: m.name)
@pytest.mark.parametrize(
    "target",
    [Contrast(4, 1), Contrast(4, top=2), Unit("mix", 3), lambda out: out[:, 1] * 2],
    ids=["a-b", "top", "unit", "f"],
)
def test_every_method_explains_every_kind_of_score(kind: type[Method], target: Any) -> None:
    net = made()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    method = kind(net, **quick(kind, **({"contrast": None} if kind is TRGBP else {})))
    whole = method(X, target)
    assert whole.values.shape[0] == 3
    assert whole.values.isfinite().all()
    torch.testing.assert_close(method.attribute(X[1:2], target)[0], whole.values[1])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert method.model is net


def test_the_likeliest_others_are_looked_up_in_chunks() -> None:
    net, sizes = made(), list[int]()
    net.head.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
    x = torch.randn(9, 2, 8, 8, dtype=torch.float64)
    Gradient(net, chunk=2)(x, Contrast(2, top=3))
    assert max(sizes) == 2


def test_the_provenance_tells_two_targets_apart() -> None:
    net = made()
    targets = [Contrast(1, 2), Contrast(1, top=2), Unit("mix", 2), lambda out: out[:, 1], lambda out: out[:, 2]]
    told = [json.dumps(Gradient(net)(X, target).provenance["target"]) for target in targets]
    assert len(set(told)) == len(targets)


def test_a_unit_is_a_number_inside_the_network() -> None:
    net = made()
    x = X.clone().requires_grad_()
    inside = net.mix(net.features(x))
    one = torch.autograd.grad(inside[:, 2, 3, 5].sum(), x, retain_graph=True)[0]
    channel = torch.autograd.grad(inside[:, 2].mean((1, 2)).sum(), x)[0]
    torch.testing.assert_close(Gradient(net).attribute(X, Unit("mix", (2, 3, 5))), one)
    torch.testing.assert_close(Gradient(net).attribute(X, Unit("mix", 2)), channel)
    found = Gradient(net)(X, Unit("mix", (2, 3, 5)))
    torch.testing.assert_close(found.output, inside[:, 2, 3, 5].detach())
    assert found.labels == ("mix[2, 3, 5]",) * 3
    normed = net.features[1](net.features[0](X))  # which the ReLU behind it writes over
    torch.testing.assert_close(Gradient(net)(X, Unit("features.1", (1, 2, 2))).output, normed[:, 1, 2, 2])


def test_a_mask_of_a_segmentation_and_an_entry_of_a_dictionary() -> None:
    net = made(Segments)
    mask = torch.zeros(8, 8, dtype=torch.float64)
    mask[2:5, 3:7] = 1

    def inside(output: dict[str, Tensor]) -> Tensor:
        return (output["out"][:, 1] * mask).sum((1, 2)) / mask.sum()

    x = X.clone().requires_grad_()
    expected = torch.autograd.grad(inside(net(x)).sum(), x)[0]
    found = GradientXInput(net)(X, inside)
    torch.testing.assert_close(found.values, expected * X)
    assert found.labels == ("inside",) * 3
    lrp = backlit.LRP(net, preset="epsilon")(X, inside)
    total = lrp.values.flatten(1).sum(1) + lrp.completeness["biases"]
    torch.testing.assert_close(total, inside(net(X)))
    with pytest.raises(InputError, match="model must return one tensor of logits"):
        GradientXInput(net)(X, 1)


def test_a_reference_embedding_and_a_regression() -> None:
    net = made()
    reference = net(X[:1]).detach()
    found = Gradient(net)(X, lambda e: torch.cosine_similarity(e, reference))
    torch.testing.assert_close(found.output[0], torch.ones((), dtype=torch.float64))
    assert float(found.values[1].abs().max()) > 0
    regression = nn.Sequential(net, nn.Linear(6, 1), nn.Flatten(0)).double().eval()
    values = Gradient(regression)(X, lambda y: y)
    torch.testing.assert_close(values.output, regression(X).detach())


def test_layers_keep_their_paths() -> None:
    net = made()
    cam = GradCAM(net, layer="features")(X, Contrast(4, 1))
    assert "features.2" in cam.provenance["layer"]
    rows = {row.module for row in Gradient(net)(X, Contrast(4, 1)).coverage.rows}
    assert {"features.0", "mix", "head", "<score>"} <= rows


def test_a_label_with_a_dash_is_a_contrast_of_a_loaded_model() -> None:
    digits = backlit.load_model("digits")
    x = torch.rand(2, 1, 32, 32)
    method = GradientXInput(digits)
    found = method(x, "3 - 8")
    torch.testing.assert_close(found.values, method.attribute(x, Contrast("3", "8")))
    assert found.labels == ("3 − 8",) * 2
    with pytest.raises(InputError, match="names one twice"):
        method(x, "3 - 3")


def test_metrics_take_a_scored_network() -> None:
    digits = backlit.load_model("digits")
    model = scored(digits, Contrast("3", "8"))
    assert model.class_names == ("3 − 8",)
    x = torch.rand(2, 1, 32, 32)
    target = torch.zeros(2, dtype=torch.long)
    maps = {"gxi": GradientXInput(model)(x, target)}
    scores = Insertion(steps=4)(model.network, Examples(x, target), maps)
    logits = digits.network(x)
    assert scores.values["gxi"].shape == (2,)
    torch.testing.assert_close(model.network(x)[:, 0], logits[:, 3] - logits[:, 8])
    assert isinstance(scored(made(), Unit("mix", 1)), Scored)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Contrast(4, 9), r"class index from 0 to 5, but is 9; the model has 6 classes"),
        (Contrast(4, top=6), r"top must be at most 5, the number of other classes, but is 6"),
        (Contrast(4, 4), r"two different classes, but both are 4 \(4\)"),
        (Contrast("cat", 1), r"target must be class indices for a bare network.*'cat'"),
        (Unit("mixx", 1), r"layer must be the path of a module, but is 'mixx'.*'mix'"),
        (
            Unit("mix", 7),
            r"index must be a place in the output \(3, 4, 8, 8\) of 'mix', behind its first axis, but is 7",
        ),
        (lambda out: out, r"must return one number for each image, a tensor of shape \(3,\), but returned .*\(3, 6\)"),
        (lambda out: 3.0, r"must return one number for each image.*float"),
    ],
)
def test_what_cannot_be_explained_is_said(target: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gradient(made())(X, target)


def test_contrasts_and_units_are_checked_when_they_are_made() -> None:
    for make in (lambda: Contrast(1), lambda: Contrast(1, 2, 3)):
        with pytest.raises(InputError, match=r"either the class to subtract, Contrast\(a, b\), or how many"):
            make()
    with pytest.raises(InputError, match="top must be a number of classes from 1, but is 0"):
        Contrast(1, top=0)
    with pytest.raises(InputError, match="layer must be a module's path"):
        Unit("", 1)
    with pytest.raises(InputError, match="index must be a channel"):
        Unit("mix", 1.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="other ones for each image"):
        scored(made(), Contrast(1, top=2))
    with pytest.raises(InputError, match="target must be a Contrast, a Unit, or a function"):
        scored(made(), 3)  # type: ignore[arg-type]


def test_a_method_that_was_fitted_contrasts_classes_and_nothing_else() -> None:
    digits = backlit.load_model("digits")
    images, labels = backlit.models.digits.digits_images()
    x = digits.preprocess.batch(images[:40])
    fitted = backlit.PatternNet.fit(digits.network, [(x, labels[:40])])
    method = backlit.PatternNet(digits, fitted=fitted)
    one, other = method.each(x[:2], torch.tensor([[3, 5]] * 2))
    torch.testing.assert_close(method.attribute(x[:2], Contrast(3, 5)), one.values - other.values)
    with pytest.raises(InputError, match="must be a class or a contrast of classes for PatternNet"):
        method(x[:2], lambda out: out[:, 0])
