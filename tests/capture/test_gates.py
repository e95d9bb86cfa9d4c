"""Gates: a comparison of another signal is a constant, one of the gated signal itself is an activation, in every spelling."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import backlit
from backlit.capture import freeze, propagate
from backlit.rules import presets

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
X[:, :, :3, 4:] = 0  # background
Gate = Callable[[Tensor, Tensor], Tensor]


class Around(nn.Module):
    """conv (2, 4, 6, 6) -> the part under test, of it and the image -> conv -> ReLU -> linear."""

    def __init__(self, part: Gate) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3), nn.Linear(5, 4)
        self.part = part
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(self.part(self.a(x), x))).mean((2, 3)))


METHODS: dict[str, Callable[[nn.Module], backlit.Method]] = {
    "Gradient": backlit.Gradient,
    "GuidedBackprop": backlit.GuidedBackprop,
    "Deconvnet": backlit.Deconvnet,
    "DMBP": lambda net: backlit.DMBP(net, steps=2),
    "LPR": lambda net: backlit.LPR(net, steps=2),
    "TRGBP": lambda net: backlit.TRGBP(net, contrast=3),
    "FullGrad": backlit.FullGrad,
    "LRP": backlit.LRP,
    "DeepLIFT": backlit.DeepLIFT,
}


def map_of(method: str, part: Gate, images: Tensor = X) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return METHODS[method](Around(part)).attribute(images, 1)


def _filled(h: Tensor, mask: Tensor) -> Tensor:
    h = h.clone()
    h[mask.expand_as(h)] = 0
    return h


def _cut(h: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        mask = (x.sum(1, keepdim=True) > 0).to(h)
    return h * mask


SMALL = (3, 3)
# Masks of the image, and what they do to the signal.
MASKS: dict[str, tuple[Callable[[Tensor], Tensor], Gate]] = {
    "h * m": (lambda x: x.sum(1, keepdim=True) > 0, lambda h, m: h * m),
    "h * m.float()": (lambda x: x[:, :1] > 0.1, lambda h, m: h * m.to(h)),
    "m * h": (lambda x: x[:, :1].ge(0.1).to(x), lambda h, m: m * h),
    "where": (lambda x: x[:, :1] > 0, lambda h, m: torch.where(m, h, 0)),
    "where, the other": (lambda x: x[:, :1] <= 0, lambda h, m: torch.where(m, 0, h)),
    "masked_fill": (lambda x: x[:, :1] == 0, lambda h, m: h.masked_fill(m, 0)),
    "index": (lambda x: x.abs().sum(1, keepdim=True) < 0.5, _filled),
    "logical": (lambda x: ~((x > 0) & (x < 1)).any(1, keepdim=True), lambda h, m: h.masked_fill(m, 0)),
    "all": (lambda x: (x != 0).all(1, keepdim=True), lambda h, m: h * m),
    "max-pooled": (lambda x: F.max_pool2d((x[:, :1] > 0.5).to(x), 3, 1, 1), lambda h, m: h * m),
    "resized": (
        lambda x: F.interpolate(F.max_pool2d((x[:, :1] > 0).to(x), 2), scale_factor=2.0),
        lambda h, m: h * m,
    ),
    "channels": (lambda x: (x.mean((2, 3)) > 0)[:, :1, None, None], lambda h, m: h * m),
    "sign": (lambda x: (x[:, :1].sign() + 1) / 2, lambda h, m: h * m),
    "detached": (lambda x: x.detach()[:, :1] > 0, lambda h, m: h * m),
    "not a number": (lambda x: ~x[:, :1].isnan() & (x[:, :1] > 0), lambda h, m: h * m),
    "in place": (lambda x: x[:, :1] > 0, lambda h, m: h.mul_(m)),
    "filled in place": (lambda x: x[:, :1] > 0, lambda h, m: h.masked_fill_(m, 0)),
    "a view": (lambda x: (x[:, 0] > 0).unsqueeze(1).expand(-1, 4, -1, -1), lambda h, m: h * m),
    "chosen from two": (lambda x: x[:, :1] > 0, lambda h, m: torch.where(m, h, 0.5 * h.flip(1))),
}


BY_SIZE = ("h * m.float()", "m * h", "index", "logical", "max-pooled", "channels")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", MASKS)
def test_a_mask_of_the_image_is_a_constant(case: str, method: str) -> None:
    mask, gate = MASKS[case]
    if method == "LPR" and case in BY_SIZE:
        pytest.skip("the images that LPR masks are smaller, so that their masks are others")

    def constant(h: Tensor, x: Tensor) -> Tensor:
        m = mask(X)
        return gate(h, m.repeat(h.shape[0] // len(X), 1, 1, 1) if h.shape[0] % 2 == 0 else m[:1])

    ours, twin = map_of(method, lambda h, x: gate(h, mask(x))), map_of(method, constant)
    torch.testing.assert_close(ours, twin)


def test_equality_is_no_gate() -> None:
    part, twin = (Around(f) for f in (lambda h, x: h * (h != 0), lambda h, x: h))
    assert [s.primitive for s in propagate(part, X, presets.gradient).trace.of_kind("activation")] == ["relu"]
    torch.testing.assert_close(map_of("GuidedBackprop", part.part), map_of("GuidedBackprop", twin.part))


def _set(h: Tensor, condition: Callable[[Tensor], Tensor]) -> Tensor:
    h = h.clone()
    h[condition(h)] = 0
    return h


def _under_no_grad(h: Tensor) -> Tensor:
    with torch.no_grad():
        mask = F.relu(h) > 0
    return h * mask


# A signal gated by itself: an activation, here always a ReLU.
OWN: dict[str, Callable[[Tensor], Tensor]] = {
    "h * (h > 0)": lambda h: h * (h > 0),
    "(h > 0) * h": lambda h: (h > 0) * h,
    "h * (h > 0).float()": lambda h: h * (h > 0).to(h.dtype),
    "h * h.gt(0)": lambda h: h * h.gt(0),
    "h * ~(h <= 0)": lambda h: h * ~(h <= 0),
    "h * heaviside": lambda h: h * torch.heaviside(h, torch.zeros((), dtype=h.dtype)),
    "h * (sign + 1) / 2": lambda h: h * ((h.sign() + 1) / 2),
    "h * (1 - (h < 0))": lambda h: h * (1 - (h < 0).to(h)),
    "where": lambda h: torch.where(h > 0, h, 0),
    "where, other": lambda h: torch.where(h <= 0, 0, h),
    "masked_fill": lambda h: h.masked_fill(h < 0, 0),
    "masked_fill_": lambda h: h.masked_fill_(h < 0, 0),
    "index": lambda h: _set(h, lambda z: z < 0),
    "detached": lambda h: h * (h.detach() > 0),
    "data": lambda h: h * (h.data > 0),
    "no_grad": _under_no_grad,
    "shifted comparison": lambda h: h * (h - 1 > -1),
    "scaled comparison": lambda h: h * (3 * h > 0),
    "scaled signal": lambda h: 0.5 * ((2 * h) * (h > 0)),
    "of a ReLU": lambda h: h * (h.relu() > 0),
    "of a sigmoid": lambda h: h * (torch.sigmoid(h) > 0.5),
    "a view of the gate": lambda h: (h.flatten(1) * (h > 0).flatten(1)).view_as(h),
    "a view and back": lambda h: h * (h.flatten(2) > 0).view_as(h),
    "a copy": lambda h: h.clone() * (h > 0),
    "slices": lambda h: torch.cat([h[:, :2] * (h > 0)[:, :2], h[:, 2:] * (h[:, 2:] > 0)], 1),
    "two axes exchanged": lambda h: (h.transpose(1, 2) * (h > 0).transpose(1, 2)).transpose(1, 2),
    "both gates": lambda h: h * ((h > 0) & (h > -1)),
    "in place": lambda h: h.mul_(h > 0),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", OWN)
def test_a_signal_gated_by_itself_is_rectified(case: str, method: str) -> None:
    part = OWN[case]
    if (case, method) == ("scaled signal", "LPR"):
        pytest.skip("its parameters act on another scale")
    torch.testing.assert_close(map_of(method, lambda h, x: part(h)), map_of(method, lambda h, x: F.relu(h)))


def test_another_threshold_is_an_activation() -> None:
    for part in (lambda h, x: h * (h > 0.5), lambda h, x: torch.where(h > 0.5, h, 0)):
        ours, twin = (map_of("GuidedBackprop", p) for p in (part, lambda h, x: F.threshold(h, 0.5, 0)))
        torch.testing.assert_close(ours, twin)


def test_the_forward_values_are_the_networks_own() -> None:
    for part in OWN.values():
        model = Around(lambda h, x, part=part: part(h))
        with torch.no_grad():
            plain = model(X.clone())
        assert torch.equal(propagate(model, X, presets.gradient).output, plain)
        torch.testing.assert_close(freeze(model, X)(X), plain)


def test_what_is_written_where_a_signal_is_negative_holds_its_biases() -> None:
    def part(h: Tensor, x: Tensor) -> Tensor:
        h[h < 0] *= 0.2
        return h

    found = backlit.BBp(Around(part))(X, 1)
    assert float(found.completeness["gap"].abs().max()) < 1e-9 * float(found.completeness["biases"].abs().max())
    for method in ("Gradient", "FullGrad", "LRP"):
        torch.testing.assert_close(map_of(method, part), map_of(method, lambda h, x: F.leaky_relu(h, 0.2)))


LEAKY: dict[str, Callable[[Tensor], Tensor]] = {
    "where": lambda h: torch.where(h > 0, h, 0.2 * h),
    "where, turned": lambda h: torch.where(h < 0, h * 0.2, h),
    "where, divided": lambda h: torch.where(h.gt(0), h, h / 5),
    "where, both scaled": lambda h: torch.where(h > 0, h * 1.0, h.mul(0.2)),
    "maximum": lambda h: torch.maximum(h, 0.2 * h),
    "max, turned": lambda h: torch.max(h * 0.2, h),
    "maximum, divided": lambda h: torch.maximum(h.div(5), h),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", LEAKY)
def test_a_leaky_rectifier_is_one(case: str, method: str) -> None:
    part = LEAKY[case]
    ours, twin = map_of(method, lambda h, x: part(h)), map_of(method, lambda h, x: F.leaky_relu(h, 0.2))
    torch.testing.assert_close(ours, twin)
    model = Around(lambda h, x: part(h))
    assert torch.equal(propagate(model, X, presets.gradient).output, model(X.clone()))


def test_a_rectifier_that_amplifies_is_one_and_an_absolute_value_none() -> None:
    for method in METHODS:
        ours = map_of(method, lambda h, x: torch.minimum(h, 3 * h))
        torch.testing.assert_close(ours, map_of(method, lambda h, x: F.leaky_relu(h, 3.0)), msg=method)
    trace = propagate(Around(lambda h, x: torch.maximum(h, -1 * h)), X, presets.gradient).trace
    assert "maximum[0]" in [site.name for site in trace]


# Of a signal the part that is compared, and what that gates: other elements than itself.
PARTS: dict[str, tuple[Callable[[Tensor], Tensor], Gate]] = {
    "the other half": (lambda h: h.chunk(2, 1)[1], lambda h, m: h.chunk(2, 1)[0] * m),
    "another slice": (lambda h: h[:, 2:], lambda h, m: h[:, :2] * m),
    "flipped": (lambda h: h.flip(1), lambda h, m: h * m),
    "rolled": (lambda h: h.roll(1, 1), lambda h, m: h * m),
    "where": (lambda h: h.narrow(1, 2, 2), lambda h, m: torch.where(m, h.narrow(1, 0, 2), 0)),
}
# Of a signal the part that gates itself, and the same by a ReLU.
OWN_PARTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "halves": (lambda h: torch.cat([a * (a > 0) for a in h.chunk(2, 1)], 1), F.relu),
    "the same slice": (lambda h: h.narrow(1, 0, 2) * (h[:, :2] > 0), lambda h: F.relu(h[:, :2])),
    "both sliced": (lambda h: h[:, 2:] * (h > 0)[:, 2:], lambda h: F.relu(h[:, 2:])),
    "both flipped": (lambda h: (h.flip(1) * (h > 0).flip(1)).flip(1), F.relu),
    "all of it": (lambda h: h * (h[:, None] > 0)[:, 0], F.relu),
    "permuted": (lambda h: (h.permute(0, 2, 3, 1) * (h > 0).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), F.relu),
}


def _four(h: Tensor) -> Tensor:
    return h if h.shape[1] == 4 else torch.cat([h, h], 1)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("LPR", "DeepLIFT")])  # they compare anew
@pytest.mark.parametrize("first", [False, True], ids=["moved, then compared", "compared, then moved"])
@pytest.mark.parametrize("case", PARTS)
def test_a_gate_by_other_elements_of_the_signal_is_a_constant(case: str, first: bool, method: str) -> None:
    take, gate = PARTS[case]
    known = take(Around(lambda h, x: h).a(X)).detach() > 0

    def constant(h: Tensor, x: Tensor) -> Tensor:
        return _four(gate(h, known.repeat(h.shape[0] // len(X), 1, 1, 1) if h.shape[0] % 2 == 0 else known[:1]))

    ours = map_of(method, lambda h, x: _four(gate(h, take(h > 0) if first else take(h) > 0)))
    torch.testing.assert_close(ours, map_of(method, constant))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", OWN_PARTS)
def test_a_part_of_a_signal_that_gates_itself_is_rectified(case: str, method: str) -> None:
    part, twin = OWN_PARTS[case]
    torch.testing.assert_close(map_of(method, lambda h, x: _four(part(h))), map_of(method, lambda h, x: _four(twin(h))))
