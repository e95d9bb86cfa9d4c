"""Signals and volumes: the same maps as of the network's twin that takes them as images, in their own shape."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import backlit
from _methods import EVERYWHERE, quick
from backlit import Contrast, InputError, IntegratedGradients, Occlusion, Saliency, SmoothGrad, Unit
from backlit.methods import METHODS, FittedMethod, Method
from backlit.metrics import Examples
from backlit.report.card import card
from backlit.report.planes import as_planes


def network(
    conv: type[nn.Module], norm: type[nn.Module], pool: type[nn.Module], mean: nn.Module, kernel: tuple
) -> nn.Module:
    padding, stride = tuple(k // 2 for k in kernel), tuple(min(k, 2) for k in kernel)
    return nn.Sequential(
        conv(2, 4, kernel, padding=padding),
        norm(4),
        nn.ReLU(),
        pool(stride),
        conv(4, 6, kernel, padding=padding),
        nn.ReLU(),
        mean,
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def twins(one: nn.Module, other: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Both networks with the first one's weights."""
    generator = torch.Generator().manual_seed(0)
    for a, b in zip(one.double().parameters(), other.double().parameters(), strict=True):
        a.data = torch.randn(a.shape, generator=generator, dtype=torch.float64)
        b.data = a.data.reshape(b.shape).clone()
    return one.eval(), other.eval()


SIGNAL = twins(
    network(nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d(1), (3,)),
    network(nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d(1), (1, 3)),
)
VOLUME = twins(
    network(nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, nn.AdaptiveAvgPool3d(1), (3, 1, 3)),
    network(nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d(1), (3, 3)),
)
X1 = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
X3 = torch.randn(3, 2, 6, 1, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
OF_IMAGES = [m for m in METHODS if m.axes == (4,) and not issubclass(m, FittedMethod)]
OF_SIGNALS = [m for m in EVERYWHERE if 3 in m.axes]
OF_VOLUMES = [m for m in EVERYWHERE if 5 in m.axes]


@pytest.mark.parametrize("method", OF_SIGNALS, ids=lambda m: m.name)
def test_a_signal_is_explained_as_the_image_of_one_row_that_it_is(method: type[Method]) -> None:
    found = method(SIGNAL[0], **quick(method))(X1, 1)
    expected = method(SIGNAL[1], **quick(method))(X1[:, :, None], 1)
    assert found.values.shape == (3, expected.values.shape[1], 16)
    torch.testing.assert_close(found.values, expected.values[:, :, 0])
    assert torch.equal(found.inputs, X1)
    for name, part in found.parts.items():
        torch.testing.assert_close(part, expected.parts[name][:, :, 0])


@pytest.mark.parametrize("method", OF_VOLUMES, ids=lambda m: m.name)
def test_a_flat_volume_is_explained_as_the_image_that_it_is(method: type[Method]) -> None:
    found = method(VOLUME[0], **quick(method))(X3, 1)
    expected = method(VOLUME[1], **quick(method))(X3[:, :, :, 0], 1)
    assert found.values.shape == (3, expected.values.shape[1], 6, 1, 8)
    torch.testing.assert_close(found.values, expected.values.unsqueeze(3))


def test_the_methods_of_the_papers_take_signals_and_volumes() -> None:
    assert {"dmbp", "lpr", "lrp", "deeplift", "integrated_gradients", "smooth_grad"} <= {m.name for m in OF_VOLUMES}
    assert {"occlusion", "rise"} <= {m.name for m in OF_SIGNALS} - {m.name for m in OF_VOLUMES}


@pytest.mark.parametrize("method", OF_IMAGES, ids=lambda m: m.name)
def test_a_method_of_images_alone_says_the_way_out(method: type[Method]) -> None:
    with pytest.raises(
        InputError, match=r"must be images of shape \(n, c, h, w\), but has shape \(3, 2, 16\).*images of one row"
    ):
        method(SIGNAL[0], **quick(method))(X1, 1)


def test_a_volume_is_too_much_for_a_window() -> None:
    with pytest.raises(
        InputError, match=r"must be images \(n, c, h, w\) or signals \(n, c, t\), but has shape \(3, 2, 6, 1, 8\)"
    ):
        Occlusion(VOLUME[0], window=2)(X3, 1)


def test_volumes_in_all_their_axes_against_autograd() -> None:
    net = network(nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, nn.AdaptiveAvgPool3d(1), (3, 3, 3)).double().eval()
    x = torch.randn(2, 2, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    (expected,) = torch.autograd.grad(net(x)[:, 2].sum(), x)
    torch.testing.assert_close(backlit.Gradient(net).attribute(x, 2), expected)
    found = IntegratedGradients(net, steps=20)(x, 2)
    assert found.completeness["gap"].abs().max() < 0.05 * found.output.abs().max()


def test_targets_copies_and_chunks_are_those_of_images() -> None:
    method = SmoothGrad(SIGNAL[0], of=IntegratedGradients(SIGNAL[0], steps=3), samples=3)
    whole = method.attribute(X1, Contrast(0, 2))
    assert whole.shape == X1.shape
    twin = replace(method, model=SIGNAL[1]).attribute(X1[:, :, None], Contrast(0, 2))
    torch.testing.assert_close(whole, twin[:, :, 0])
    torch.testing.assert_close(replace(method, chunk=1).attribute(X1, Contrast(0, 2)), whole)
    two = Saliency(SIGNAL[0]).each(X1, [[0, 1]] * 3)
    assert [a.values.shape for a in two] == [X1.shape] * 2
    unit = Saliency(SIGNAL[0]).attribute(X1, Unit("0", (1, 5)))
    assert (unit.abs().sum(1) > 0).sum(1).tolist() == [3, 3, 3]  # the kernel's width


def test_an_inner_layer_keeps_its_shape() -> None:
    found = backlit.GradientXInput(SIGNAL[0])(X1, 1, at="2")
    expected = backlit.GradientXInput(SIGNAL[1])(X1[:, :, None], 1, at="2")
    assert found.values.shape == (3, 4, 16)
    torch.testing.assert_close(found.values, expected.values[:, :, 0])


class WithLength(nn.Module):
    """A network of signals with a further argument for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = copy.deepcopy(SIGNAL[0])

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        return self.net(x * gain[:, None, None])


def test_further_arguments_follow_their_signals() -> None:
    gain = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    method = IntegratedGradients(WithLength().eval(), steps=4)
    found = method.attribute(X1, 0, additional_forward_args=gain)
    for i in range(3):
        one = method.attribute(X1[i : i + 1], 0, additional_forward_args=gain[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], one)


def test_it_is_kept_and_drawn(tmp_path) -> None:
    for net, x in ((SIGNAL[0], X1), (VOLUME[0], X3)):
        found = backlit.GradientXInput(net)(x, 1)
        found.save(tmp_path / "map.safetensors")
        assert torch.equal(backlit.Attribution.load(tmp_path / "map.safetensors").values, found.values)
        assert found.heatmap().shape == (3, 1, *x.shape[2:])
        assert card(found[0]).std() > 10
        assert found._repr_png_()[:4] == b"\x89PNG"
        assert len(found.figure().axes) >= 9


def test_a_signals_channels_are_rows_and_a_volumes_slices_tiles() -> None:
    planes = as_planes(backlit.GradientXInput(SIGNAL[0])(X1, 1))
    assert planes.values.shape == (3, 1, 4, 16)  # a quarter as high as it is long
    signal = backlit.GradientXInput(SIGNAL[0])(X1, 1).values
    assert torch.equal(planes.values[:, 0, ::2], signal)
    volume = torch.arange(5.0)[None, None, :, None, None].expand(1, 1, 5, 2, 3)
    tiles = as_planes(backlit.Attribution(volume, torch.tensor([0]), torch.tensor([0.0]))).values
    assert tiles.shape == (1, 1, 4, 9)
    assert tiles[0, 0, ::2, ::3].tolist() == [[0, 1, 2], [3, 4, 0]]  # the last tile is empty


def test_metrics_say_that_they_are_of_images() -> None:
    with pytest.raises(InputError, match=r"normalised image, \(n, c, h, w\)"):
        Examples(X1, torch.tensor([1, 1, 1]))


def test_an_image_without_its_batch_axis_is_no_signal() -> None:
    image = torch.randn(2, 9, 16, dtype=torch.float64)
    with pytest.raises(
        InputError, match=r"images of shape \(n, c, h, w\), or .*, but has shape \(2, 9, 16\).*x\[None\]"
    ):
        Saliency(SIGNAL[1])(image, 1)


def test_a_function_of_any_output_explains_a_signal() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"scores": SIGNAL[0](x)}

    found = Saliency(Named().eval()).attribute(X1, lambda out: out["scores"][:, 2])
    torch.testing.assert_close(found, Saliency(SIGNAL[0]).attribute(X1, 2))
