"""Taps: what is read off a site's gradient, whatever is done to its output afterwards, and the value unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from _networks import ARCHITECTURES, SPELLINGS, build, images
from backlit.capture import Call, Tap, propagate
from backlit.rules import presets


def _whole(call: Call, output: Tensor) -> Tap | None:
    """Reads the gradient of every convolution as it is."""
    return Tap((torch.zeros_like(output),), lambda g: (g,)) if call.primitive.name == "conv2d" else None


class Written(nn.Module):
    """A convolution's output that is written to through a view, and then read as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, :2].relu_()
        y[:, 3] = 1.0
        return self.fc(y.mean((2, 3)))


@pytest.mark.parametrize("table", [presets.gradient, presets.guided], ids=lambda t: t.name)
def test_reads_the_gradient_of_the_output_as_it_was(table: object) -> None:
    torch.manual_seed(0)
    net = Written().double().eval()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    run = propagate(net, x, table, tap=_whole)  # type: ignore[arg-type]
    assert torch.equal(run.output, propagate(net, x, table).output)  # type: ignore[arg-type]
    weights = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    (found,) = run.gradient(weights, to=run.taps["conv2d[0]"].inputs, retain_graph=True)
    with torch.no_grad():
        z = net.conv(x)
        slope = torch.ones_like(z)
        slope[:, :2] = (z[:, :2] > 0).double()
        slope[:, 3] = 0
        g = (weights @ net.fc.weight)[:, :, None, None] / z[0, 0].numel()
        g = torch.cat([g[:, :2].clamp(min=0), g[:, 2:]], 1) if table is presets.guided else g
    torch.testing.assert_close(found, g * slope)
    (several,) = run.gradient(torch.stack([weights, -weights]), to=run.taps["conv2d[0]"].inputs)
    torch.testing.assert_close(several[0], found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_and_maps_are_the_same_with_taps(architecture: str) -> None:
    xs = images(architecture)
    for spelling in SPELLINGS:
        net = build(architecture, spelling)
        for parameter in net.parameters():
            parameter.requires_grad_(False)
        plain = propagate(net, xs, presets.guided)
        tapped = propagate(
            net, xs, presets.guided, tap=lambda call, y: Tap((y.new_zeros(1),), lambda g: (g.sum()[None],))
        )
        assert torch.equal(plain.output, tapped.output)
        weights = torch.ones_like(plain.output)
        for one, other in zip(plain.gradient(weights), tapped.gradient(weights), strict=True):
            torch.testing.assert_close(one, other, msg=spelling)
        assert {t.site.name for t in tapped.taps.values()} <= {s.name for s in tapped.trace}
        assert all(t.site.output_shape == tapped.trace[name].output_shape for name, t in tapped.taps.items())


def test_the_tap_sees_the_signals_as_they_were_before_a_write() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def look(call: Call, output: Tensor) -> None:
        if call.primitive.name == "hardswish":
            seen.append((call.signals[0].clone(), output.clone()))

    class Inside(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            nn.functional.hardswish(y[:, :1], inplace=True)
            return y.flatten(1)

    x = torch.randn(2, 2, 3, 3)
    run = propagate(Inside(), x, presets.gradient, tap=look)
    ((before, after),) = seen
    torch.testing.assert_close(before, 2 * x[:, :1])
    torch.testing.assert_close(after, nn.functional.hardswish(2 * x[:, :1]))
    torch.testing.assert_close(run.output.view(2, 2, 3, 3)[:, :1], after)
