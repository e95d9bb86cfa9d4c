"""DeepLIFT and DeepSHAP: complete on every operation and network, against the papers by hand and captum where it is right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr import DeepLift, DeepLiftShap
from torch import Tensor, nn
from torch.nn import functional as F

from _networks import ARCHITECTURES, SPELLINGS, build, images
from backlit import DMBP, LRP, TRGBP, DeepLIFT, DeepSHAP, FullGrad, InputError, UnsupportedOp
from backlit.capture import propagate
from backlit.rules import lift, presets
from backlit.rules.reference import Reference

TARGET = torch.tensor([2, 0])
GENERATOR = torch.Generator().manual_seed(0)
X, X0 = torch.randn(2, 3, 4, 6, 6, generator=GENERATOR, dtype=torch.float64)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_every_spelling_is_complete_and_gives_the_twins_map(architecture: str, rule: str) -> None:
    xs = images(architecture)
    reference = tuple(torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(i)).double() for i in range(len(xs)))
    for given in ("zero", reference):
        whole = DeepLIFT(build(architecture, "module"), rule=rule, reference=given)(xs, TARGET)
        c = whole[0].completeness
        torch.testing.assert_close(c["ratio"], torch.ones(2).double(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(sum(w.values.flatten(1).sum(1) for w in whole), c["total"])
        net = build(architecture, "module")
        zeros = (
            tuple(torch.zeros_like(x) for x in xs)
            if given == "zero"
            else tuple(r.expand_as(x) for r, x in zip(reference, xs, strict=True))
        )
        difference = (net(*xs) - net(*zeros)).gather(1, TARGET[:, None])[:, 0]
        torch.testing.assert_close(c["difference"], difference.detach())
        for spelling in SPELLINGS:
            found = DeepLIFT(build(architecture, spelling), rule=rule, reference=given)(xs, TARGET)
            for ours, theirs in zip(found, whole, strict=True):
                torch.testing.assert_close(ours.values, theirs.values, rtol=1e-9, atol=1e-12)


OPERATIONS: dict[str, Any] = {
    **{type(m).__name__: m for m in (nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.GELU(), nn.Sigmoid(), nn.Hardswish(), nn.ELU(), nn.PReLU(4), nn.Softplus())},
    "softmax": lambda x: (5 * x).softmax(1), "log_softmax": lambda x: x.log_softmax(2), "layer norm": nn.LayerNorm((6, 6)),
    "group norm": nn.GroupNorm(2, 4), "instance norm": nn.InstanceNorm2d(4, affine=True), "lrn": nn.LocalResponseNorm(3, alpha=0.5),
    "even lrn": nn.LocalResponseNorm(2, alpha=0.5), "max-pool": nn.MaxPool2d(3, 2, padding=1), "overlapping": nn.MaxPool2d(3, 1),
    "indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0], "adaptive": nn.AdaptiveMaxPool2d(2), "amax": lambda x: x.amax((2, 3)),
    "amin": lambda x: x.amin(1), "max": lambda x: x.max(2)[0], "min": lambda x: x.min(2)[0], "maximum": lambda x: torch.maximum(x, x.flip(1)),
    "minimum": lambda x: torch.minimum(x[:, :1], x.flip(1)), "product": lambda x: x * x.sigmoid(), "gate": lambda x: x * x.mean((2, 3), keepdim=True),
    "square": lambda x: x * x, "quotient": lambda x: x / (2 + x.flip(1) ** 2), "one over": lambda x: 3 / (2 + x**2),
    "matmul": lambda x: x @ x.mT, "einsum": lambda x: torch.einsum("nchw,ncvw->nchv", x, x.flip(1)), "glu": lambda x: F.glu(x, 1),
    "attention": lambda x: F.scaled_dot_product_attention(3 * x, x.flip(1), x), "causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "grouped": lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, 2:], enable_gqa=True), "gated": lambda x: torch.where(x > 0, x, 0),
    "by hand": lambda x: x * (x > 0), "norm": lambda x: x.norm(dim=1), "square root": lambda x: (x**2 + 1).sqrt(),
    "inverse root": lambda x: (x**2 + 1).rsqrt(),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_complete(name: str) -> None:
    """One dimension of the output at a time, from a reference that differs everywhere, in part and nowhere."""
    operation = OPERATIONS[name]
    model = _Flat(operation).double().eval()
    half = torch.where(torch.arange(6) < 3, X, X0)
    for reference in (X0, half, X.clone(), torch.zeros_like(X)):
        given = Reference(model, (reference,))
        run = propagate(model, X, lift.table(given, reveal_cancel=False))
        seed = torch.randn(run.output.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        (m,) = run.gradient(seed)
        found = (m * (X - reference)).flatten(1).sum(1)
        expected = (seed * (run.output - given.output)).sum(1).detach()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert bool(m.isfinite().all())


class _Flat(nn.Module):
    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x).flatten(1)


@pytest.mark.parametrize("name", OPERATIONS)
def test_second_order_goes_through_every_rule(name: str) -> None:
    """The derivative of a sum of multipliers to the image, against central differences; the reference is a constant."""
    model = _Flat(OPERATIONS[name]).double().eval()
    reference = Reference(model, (X0,))
    rules = lift.table(reference, reveal_cancel=False).rules
    # The last one alone: the way from the image to its inputs is differentiated by the other rules, here the true ones.
    last = [s.primitive for s in reference.trace if s.kind != "affine"][-1]
    assert_second_order(model, presets.gradient.but({last: rules[last]}))


def test_second_order_goes_through_reveal_cancel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.Flatten()).double().eval()
    table = lift.table(Reference(model, (X0,), layers=True), reveal_cancel=True)
    assert_second_order(model, table)


def assert_second_order(model: nn.Module, table: Any) -> None:
    direction, reader = torch.randn(2, *X.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    seed = torch.randn(model(X).shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def read(step: float) -> Tensor:
        run = propagate(model, X + step * direction, table)
        return (run.gradient(seed)[0] * reader).sum()

    run = propagate(model, X, table)
    first = (run.gradient(seed, create_graph=True)[0] * reader).sum()
    analytic = torch.zeros(())
    if first.requires_grad:
        (second,) = torch.autograd.grad(first, run.inputs, allow_unused=True)
        analytic = torch.zeros(()) if second is None else (second * direction).sum()
    numeric = (read(1e-6) - read(-1e-6)) / 2e-6
    assert float((analytic - numeric).abs()) < 1e-4 * (1 + float(numeric.abs()))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 4, 3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 2),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(16, 5),
    ]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(5, 3)).double().eval()


def test_equals_captum_where_it_is_right() -> None:
    """Sequential, each activation a module of its own."""
    net = small()
    x, r = torch.randn(2, 2, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = DeepLift(net).attribute(x, r[:1].expand_as(x), target=TARGET)
        shap = DeepLiftShap(net).attribute(x, r, target=TARGET)
    torch.testing.assert_close(
        DeepLIFT(net, reference=r[0]).attribute(x, TARGET), theirs.detach(), rtol=1e-6, atol=1e-8
    )
    torch.testing.assert_close(DeepSHAP(net, references=r).attribute(x, TARGET), shap.detach(), rtol=1e-6, atol=1e-8)


def test_deep_shap_is_the_mean_over_references_whatever_the_groups() -> None:
    net = small()
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    r = torch.randn(11, 2, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = DeepSHAP(net, references=r)(x)
    expected = torch.stack([DeepLIFT(net, reference=one).attribute(x) for one in r]).mean(0)
    torch.testing.assert_close(found.values, expected)
    torch.testing.assert_close(found.completeness["ratio"], torch.ones(3).double())
    assert found.provenance["references"] == 11
    default = DeepSHAP(net)(x)
    each = [DeepLIFT(net, reference=name).attribute(x) for name in ("zero", "blur", "mean")]
    torch.testing.assert_close(default.values, torch.stack(each).mean(0))
    several = DeepSHAP(net, references=r).each(x, torch.tensor([[0, 1], [2, 0], [1, 1]]))
    torch.testing.assert_close(several[1].values, DeepSHAP(net, references=r).attribute(x, torch.tensor([1, 0, 1])))


def test_networks_that_mix_the_first_dimension_are_complete_and_keep_their_images_apart() -> None:
    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2)  # positions first
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(2).permute(2, 0, 1)
            z = self.attention(z, z, z, need_weights=False)[0]
            return self.fc(F.gelu(z.reshape(-1, 4)).reshape(z.shape).mean(0))

    torch.manual_seed(0)
    net = Sequence().double().eval()
    for rule in ("rescale", "reveal_cancel"):
        found = DeepLIFT(net, rule=rule, reference=X0[0])(X, torch.tensor([0, 1, 2]))
        torch.testing.assert_close(found.completeness["ratio"], torch.ones(3).double(), rtol=1e-8, atol=1e-8)
        alone = DeepLIFT(net, rule=rule, reference=X0[0]).attribute(X[1:2], 1)
        torch.testing.assert_close(found.values[1:2], alone)


def test_what_a_constant_hides_warns_once_with_the_number() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * x.detach().abs().amax((1, 2, 3), keepdim=True)).flatten(1)

    method = DeepLIFT(Scaled(), reference=X0[0])
    with pytest.warns(
        UserWarning, match=r"DeepLIFT: the map misses \d+\.\d% of the difference .* at mul\[0\] at <model>"
    ):
        method(X, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(X, 0)


def test_bad_references_say_what_they_must_be() -> None:
    net, x = small(), torch.randn(2, 2, 8, 8, dtype=torch.float64)
    for given, message in (
        (torch.zeros(2, 7, 8), r"reference must be shaped as one image, \(2, 8, 8\), or be .* but is \(2, 7, 8\)"),
        (torch.zeros(3, 2, 8, 8), r"one for each, \(2, 2, 8, 8\), but is \(3, 2, 8, 8\)\. For several .* DeepSHAP"),
        (lambda x: x[:1, :1], r"but is \(1, 1, 8, 8\)\. A function is called with a chunk"),
        (lambda x: x.numpy(), "but is ndarray"),
        ((None,), "but is NoneType"),
        ((torch.zeros(2, 8, 8),) * 2, "one tensor for each of 1 inputs, but has 2"),
        (torch.full((2, 8, 8), torch.nan), "reference must be finite"),
    ):
        with pytest.raises(InputError, match=message):
            DeepLIFT(net, reference=given)(x)
    with pytest.raises(InputError, match="reference must be one of zero, blur, mean, a tensor"):
        DeepLIFT(net, reference="black")
    with pytest.raises(InputError, match="rule must be 'rescale' or 'reveal_cancel', but is 'x'"):
        DeepLIFT(net, rule="x")
    with pytest.raises(InputError, match=r"reference must be one of .* but is a list of \(2, 8, 8\), \(2, 8, 8\)\."):
        DeepLIFT(net, reference=[torch.zeros(2, 8, 8)] * 2)
    must = r"references must be images \(r, c, h, w\), or a tuple of as many for each input, but is "
    one = torch.zeros(1, 2, 8, 8)
    for references, found in (
        (one[0], r"\(2, 8, 8\)"),
        (one[:0], r"\(0, 2, 8, 8\)"),
        ([one, one], r"a list of \(1, 2, 8, 8\), \(1, 2, 8, 8\)"),
        ((one, one[0]), r"a tuple of \(1, 2, 8, 8\), \(2, 8, 8\)"),
        ((one, one.expand(2, 2, 8, 8)), r"a tuple of \(1, 2, 8, 8\), \(2, 2, 8, 8\)"),
        ((), "a tuple of nothing"),
    ):
        with pytest.raises(InputError, match=must + found + r"\.$"):
            DeepSHAP(net, references=references)
    for references, message in (
        (torch.zeros(1, 2, 8, 9), r"shaped as the images, \(r, 2, 8, 8\), but have shape \(1, 2, 8, 9\)"),
        (torch.full((1, 2, 8, 8), torch.nan), "references must be finite, but hold NaN or Inf"),
        ((one, one), "references must be one set for each of 1 inputs, but has 2"),
    ):
        with pytest.raises(InputError, match=message):
            DeepSHAP(net, references=references)(x)


def test_a_network_that_takes_another_way_for_the_reference_is_refused() -> None:

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.relu() if float(x.detach().sum()) > 0 else x.sigmoid()).flatten(1)

    with pytest.raises(UnsupportedOp, match=r"relu\[0\] at <model> .* was not called alike for the reference"):
        DeepLIFT(Branching(), reference=-torch.ones(2, 8, 8))(torch.ones(2, 2, 8, 8))

    class Affine(nn.Module):
        def __init__(self, below: int | None) -> None:
            super().__init__()
            self.a, self.b, self.below = nn.Linear(4, 4), nn.Linear(4, 4), below

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return self.a(x) if float(x.detach().sum()) > 0 else x if self.below is None else self.b(x)[:, self.below :]

    x = torch.ones(2, 1, 2, 2)
    for below, message in (
        (0, r"linear\[0\] at a .* \(there: linear\[0\] at b"),
        (1, r"linear\[0\] at a .* \(there: linear\[0\] at b"),
        (None, r"linear\[0\] at a .* was not called alike for the reference \(there: none\)"),
    ):
        for method in (DeepLIFT(Affine(below), reference=-x[0]), DeepSHAP(Affine(below), references=-x)):
            with pytest.raises(UnsupportedOp, match=message):
                method(x, 0)
    with pytest.raises(UnsupportedOp, match=r"the output was not called alike .* \(there: linear\[0\] at a"):
        DeepLIFT(Affine(None), reference=x[0])(-x, 0)


class _Leaky(nn.Module):
    """A hidden product with a factor that autograd cannot see, among biases far larger than it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        with torch.no_grad():
            nn.init.constant_(self.conv.bias, 1.0)
            self.norm.bias.fill_(2.0)
            self.fc.bias.fill_(50.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x + 3)).relu()
        h = h * h.detach().amax((1, 2, 3), keepdim=True)
        return self.fc(h.mean((2, 3))) + 7


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_the_warning_names_the_sites_that_leak_and_no_bias(rule: str) -> None:
    torch.manual_seed(0)
    net = _Leaky().double().eval()
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    for method in (DeepLIFT(net, rule=rule), DeepSHAP(net, rule=rule, references=x[:1] / 2)):
        with pytest.warns(UserWarning, match=r"The largest differences are at mul\[0\] at <model> [^;]*\.$") as caught:
            found = method(x, 1)
        gap = found.completeness["gap"]
        image = int(str(caught[0].message).split("(image ")[1].split(",")[0])
        named = float(str(caught[0].message).rstrip(".").split()[-1])
        assert abs(named - float(gap[image])) < 0.01 * abs(named)  # the leak is all of what is missing


def test_the_share_is_of_the_image_itself_and_the_index_is_the_images() -> None:
    class Jumps(nn.Module):
        """Leaks where the image is above 1 and the reference below, or the other way round."""

        def forward(self, x: Tensor) -> Tensor:
            return (x * (1 + (x.detach().amax((1, 2, 3), keepdim=True) > 1))).sum((2, 3))

    x = torch.rand(3, 2, 4, 4, dtype=torch.float64) / 2
    x[2] += 1
    with pytest.warns(UserWarning, match=r"misses .* \(image 2, more than"):
        DeepSHAP(Jumps(), references=torch.rand(4, 2, 4, 4).double() / 2)(x, 0)
    loud = torch.cat([x[:2] + 1e6, x[2:]])
    references = torch.cat([loud[:2] - 1, x[2:] / 4])
    for explain in (lambda m: m(loud, 0), lambda m: m.each(loud, [[1, 0]] * 3)):
        with pytest.warns(UserWarning, match=r"\(image 2, more than"):
            explain(DeepLIFT(Jumps(), reference=references))


def test_a_reference_for_each_image_whatever_the_chunks() -> None:
    net = small()
    generator = torch.Generator().manual_seed(1)
    x, r = torch.randn(2, 7, 2, 8, 8, generator=generator, dtype=torch.float64)
    targets = torch.arange(7) % 3
    expected = torch.cat([DeepLIFT(net, reference=r[i]).attribute(x[i : i + 1], int(targets[i])) for i in range(7)])
    for chunk in (None, 1, 3):
        torch.testing.assert_close(DeepLIFT(net, reference=r, chunk=chunk).attribute(x, targets), expected)
    torch.testing.assert_close(DeepLIFT(net, reference=r[:1]).attribute(x[:1], 0), expected[:1])
    for wrong in (r[:4], torch.cat([r, r[:1]])):  # the first chunk's number, and one too many
        with pytest.raises(InputError, match=r"or be one for each, \(7, 2, 8, 8\), but is \([48], 2, 8, 8\)"):
            DeepLIFT(net, reference=wrong)(x)
    with pytest.raises(
        InputError, match=r"called with a chunk of the images; for fixed references give the tensor itself\."
    ):
        DeepLIFT(net, reference=lambda x: r)(x)


def test_inputs_of_two_shapes_take_a_set_of_references_each() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(2, 3, 3), nn.Conv2d(1, 3, 2), nn.Linear(3, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.fc(self.a(x).relu().mean((2, 3)) * self.b(y).sigmoid().mean((2, 3)))

    torch.manual_seed(0)
    net = Two().double().eval()
    xs = torch.randn(5, 2, 8, 8).double(), torch.randn(5, 1, 4, 6).double()
    sets = torch.randn(6, 2, 8, 8).double(), torch.randn(6, 1, 4, 6).double()
    found = DeepSHAP(net, references=sets)(xs, 1)
    ones = [DeepLIFT(net, reference=pair).attribute(xs, 1) for pair in zip(*sets, strict=True)]
    for i in range(2):
        torch.testing.assert_close(found[i].values, torch.stack([one[i] for one in ones]).mean(0))
        torch.testing.assert_close(found[i].completeness["ratio"], torch.ones(5).double())
    each = tuple(torch.randn_like(x) for x in xs)
    found = DeepLIFT(net, reference=each)(xs, 1)
    alone = DeepLIFT(net, reference=tuple(e[4] for e in each))(tuple(x[4:] for x in xs), 1)
    torch.testing.assert_close(found[1].values[4:], alone[1].values)
    with pytest.raises(InputError, match="For inputs of several shapes give a tuple"):
        DeepSHAP(net, references=sets[0])(xs)


def test_references_leave_no_graph_behind() -> None:
    net, x = small(), torch.randn(2, 2, 8, 8, dtype=torch.float64)
    r = torch.randn(2, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    for method in (
        DeepLIFT(net, reference=r[0]),
        DeepLIFT(net, reference=r),
        DeepLIFT(net, reference=lambda x: x * r),
        DeepSHAP(net, references=r),
    ):
        found = method(x)
        assert not any(v.requires_grad for v in (found.values, found.output, *found.completeness.values()))


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus])
def test_near_the_reference_single_precision_gives_the_slopes_of_double(activation: Any, rule: str) -> None:
    """A quotient of differences would be rounding alone."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), activation(), nn.Conv2d(8, 8, 3), activation(), nn.Flatten(), nn.Linear(128, 5)
    )
    x, d = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    for step in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        r = x - step * d
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            single = DeepLIFT(net.float().eval(), rule=rule, reference=r).attribute(x, 1).double()
            double = DeepLIFT(net.double(), rule=rule, reference=r.double()).attribute(x.double(), 1)
        assert float((single - double).abs().max() / double.abs().max()) < 5e-4


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.Hardtanh(-3, 3), nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh()])
def test_half_precision_is_complete_across_kinks(activation: nn.Module) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False), activation)
    nn.init.ones_(net[1].weight)
    net = net.bfloat16().eval()
    x = torch.tensor([10.0, 7.0, 6.5, 4.0, 3.5, 1.0]).view(-1, 1, 1, 1).bfloat16()
    for reference in (2.0, 1.0, -2.5):
        r = torch.full((1, 1, 1), reference).bfloat16()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = DeepLIFT(net, reference=r)(x, 0)
        expected = (net(x) - net(r[None]))[:, 0].detach()
        # One rounding of each output, three of what is computed from them.
        both = (net(x)[:, 0].abs() + net(r[None])[:, 0].abs()).float()
        slack = torch.finfo(torch.bfloat16).eps * (both / 2 + 3 * expected.abs().float())
        error = (found.values.flatten().float() - expected.float()).abs()
        assert bool((error <= slack).all())


@pytest.mark.parametrize(
    "activation", [nn.GELU(), nn.GELU("tanh"), nn.Hardswish(), nn.Hardsigmoid(), nn.Tanhshrink(), nn.Tanh()]
)
def test_single_precision_slopes_are_right_where_the_function_cancels(activation: nn.Module) -> None:
    net = nn.Sequential(activation, nn.Flatten())
    x = torch.linspace(-6, 6, 1201).view(1, 1, 1, -1)

    def slopes(x: Tensor, x0: Tensor) -> Tensor:
        run = propagate(net, x, lift.table(Reference(net, (x0,)), reveal_cancel=False))
        return run.gradient(torch.ones_like(run.output))[0]

    for step in (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        x0 = x - step
        error = (slopes(x, x0).double() - slopes(x.double(), x0.double())).abs()
        assert float(error.max()) < 1e-4


def test_an_instance_norm_on_running_statistics_is_a_batch_norm() -> None:
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    twin = nn.BatchNorm2d(4)
    for layer in (norm, twin):
        layer.load_state_dict({**twin.state_dict(), "running_mean": torch.randn(4), "running_var": torch.rand(4) + 0.5})
    torch.manual_seed(1)
    conv, head = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)
    nets = [
        nn.Sequential(conv, layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).double().eval()
        for layer in (norm, twin)
    ]
    twin.load_state_dict(norm.state_dict())
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    for method in (DeepLIFT, LRP, FullGrad, TRGBP, DMBP):
        short = {"steps": 3} if method is DMBP else {"contrast": None} if method is TRGBP else {}
        maps = [method(net, **short).attribute(x, 1) for net in nets]
        torch.testing.assert_close(*maps)


def test_a_write_of_as_many_values_as_a_mask_chooses_is_refused_and_its_way_out_works() -> None:
    class Masked(nn.Module):
        def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.fc, self.write = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), write
            self.double().eval()

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.write(self.a(x)) + 1).mean((2, 3)))

    def by_index(h: Tensor) -> Tensor:
        h[h < 0] *= 0.1
        return h

    x = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(UnsupportedOp, match=r"setitem.* writes as many values as a mask chooses.*torch\.where"):
        DeepLIFT(Masked(by_index))(x, 1)
    elementwise = DeepLIFT(Masked(lambda h: torch.where(h < 0, 0.1 * h, h)))(x, 1)
    torch.testing.assert_close(elementwise.values, DeepLIFT(Masked(lambda h: F.leaky_relu(h, 0.1)))(x, 1).values)
