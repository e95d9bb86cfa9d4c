"""The output of an inner layer in the place of the images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _methods import EVERYWHERE, quick
from backlit import LRP, TRGBP, Contrast, DeepLIFT, Gradient, GradientXInput, GuidedBackprop, InputError, UnsupportedOp
from backlit.methods import METHODS, FittedMethod, Method

X = torch.randn(5, 2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
EVERY = [m for m in EVERYWHERE if m.explains_inside and not m.needs.startswith("data")]


class Net(nn.Module):
    """A stem, and a body that ends in a functional ReLU of a sum; the same body runs twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.body, self.head = Body(), nn.Linear(4, 5)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body(self.norm(self.stem(x)).relu_()))

    def tail(self, inside: Tensor) -> Tensor:
        return self.head(F.max_pool2d(self.body(inside), 3).mean((2, 3)))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class Rest(nn.Module):
    """What follows the stem, as a network of its own: the oracle."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, inside: Tensor) -> Tensor:
        return self.net.tail(self.net.body(inside.relu()))


def made(kind: type[Method], net: nn.Module, **options: Any) -> Method:
    return kind(net, **quick(kind, **({"contrast": None} if kind is TRGBP else {}) | options))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", EVERY, ids=lambda m: m.name)
def test_every_method_explains_a_layer_as_it_would_the_rest_of_the_network(kind: type[Method]) -> None:
    net, target = Net(), torch.tensor([0, 3, 1, 2, 4])
    inside = net.norm(net.stem(X)).detach()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    at = made(kind, net)(X, target, at="norm")
    rest = made(kind, Rest(net))(inside, target)
    torch.testing.assert_close(at.inputs, inside)
    torch.testing.assert_close(at.values, rest.values)
    torch.testing.assert_close(at.output, net(X).gather(1, target[:, None])[:, 0].detach())
    assert at.provenance["at"] == "norm"
    assert (at.provenance["model"], "at" in rest.provenance) == ("Net", False)
    one = made(kind, net, chunk=1).attribute(X[3:4], target[3:4], at="norm")
    torch.testing.assert_close(one[0], at.values[3])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_the_gradient_is_autograds() -> None:
    net = Net()
    values: list[Tensor] = []
    net.body.register_forward_hook(lambda module, given, output: values.append(output))
    logits = net(X)
    expected = torch.autograd.grad(logits[:, 2].sum(), values)  # of the first and of the last call
    net.body._forward_hooks.clear()
    one = Gradient(net)(X, 2, at="body")
    torch.testing.assert_close(one.values, expected[1])
    torch.testing.assert_close(one.inputs, values[1].detach())
    torch.testing.assert_close(GradientXInput(net).attribute(X, 2, at="body"), expected[1] * values[1].detach())


def test_in_a_block_the_last_operation_counts_also_a_functional_one() -> None:
    net = Net()
    assert float(Gradient(net)(X, 2, at="body").inputs.min()) == 0  # behind the ReLU
    assert float(Gradient(net)(X, 2, at="body.conv").inputs.min()) < 0


def test_sums_are_kept_from_the_layer_on() -> None:
    net = Net()
    inside = net.norm(net.stem(X)).detach()
    relevance, rest = LRP(net, preset="epsilon")(X, 1, at="norm"), LRP(Rest(net), preset="epsilon")(inside, 1)
    torch.testing.assert_close(relevance.completeness, rest.completeness)
    lifted = DeepLIFT(net)(X, 1, at="norm")
    assert float(lifted.completeness["gap"].abs().max()) < 1e-9
    sites = [row.site for row in GuidedBackprop(net)(X, 1, at="body.conv").coverage.rows]
    assert not any("stem" in str(site) for site in sites)


def test_vectors_and_tokens_are_maps_of_one_row() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.patch, self.mix, self.head = nn.Conv2d(2, 6, 3, 3), nn.Linear(6, 6), nn.Linear(6, 5)
            self.double().eval()

        def forward(self, x: Tensor) -> Tensor:
            tokens = torch.relu(self.mix(self.patch(x).flatten(2).transpose(1, 2)))
            return self.head(tokens.mean(1))

    net = Tokens()
    tokens = Gradient(net)(X, 1, at="mix")
    assert tokens.values.shape == (5, 6, 9, 1)
    assert tokens.heatmap().shape == (5, 1, 9, 1)
    logits = Gradient(net)(X, 1, at="head")
    assert logits.values.shape == (5, 5, 1, 1)
    assert logits.values[:, :, 0, 0].tolist() == [[0, 1, 0, 0, 0]] * 5


@pytest.mark.parametrize("target", [Contrast(1, 2), Contrast(1, top=2), lambda y: y[:, 3]], ids=["a-b", "top", "f"])
def test_scores_go_with_it(target: Any) -> None:
    net = Net()
    at, rest = GradientXInput(net)(X, target, at="norm"), GradientXInput(Rest(net))(net.norm(net.stem(X)), target)
    torch.testing.assert_close(at.values, rest.values)
    assert at.labels == rest.labels


def test_further_arguments_and_several_targets_go_with_it() -> None:
    class Scaled(nn.Module):
        def __init__(self, net: Net) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.net(x) * scale

    net, scale = Net(), torch.rand(5, 1, dtype=torch.float64)
    plain = GradientXInput(net).each(X, [[0, 1]] * 5, at="body")
    scaled = GradientXInput(Scaled(net), chunk=2).each(X, [[0, 1]] * 5, at="net.body", additional_forward_args=scale)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other.values, one.values * scale[..., None, None])


def test_what_cannot_be_is_refused() -> None:
    net: Any = Net()
    with pytest.raises(InputError, match=r"at must be the path of a module, but is 'bodi'\. Did you mean 'body'\?"):
        Gradient(net)(X, 1, at="bodi")
    fitted: Any = next(m for m in METHODS if issubclass(m, FittedMethod))
    images = torch.randn(40, 2, 9, 9, dtype=torch.float64)
    learned = fitted(net, fitted=fitted.fit(net, [(images, torch.arange(40) % 5)]))
    with pytest.raises(InputError, match=r"at must be None for .*, which explains images alone, but is 'body'"):
        learned(X, 1, at="body")

    class Unused(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.body(self.norm(self.stem(x)))
            return self.head(self.stem(x).mean((2, 3)))

    with pytest.raises(UnsupportedOp, match="output does not depend on the input"):
        Gradient(Unused())(X, 1, at="body")
    net.silent = nn.Identity()
    with pytest.raises(InputError, match=r"at must name a module that puts out .*'silent' puts out nothing"):
        Gradient(net)(X, 1, at="silent")


def test_another_way_through_the_network_is_no_silent_other_map() -> None:
    class Fast(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if torch.is_grad_enabled() else x + 0)

    from backlit.methods.around import Context
    from backlit.methods.cut import cut_at

    net = Fast()
    cut = cut_at(net, "norm", (X,))
    inside = net.norm(net.stem(X))
    bound = Context(cut=cut, images=(X,)).bound(net, 5)
    torch.testing.assert_close(bound(inside), net(X))
    with torch.no_grad(), pytest.raises(UnsupportedOp, match="at='norm': the network runs other operations here"):
        bound(inside)
