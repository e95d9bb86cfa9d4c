"""Grad-CAM's layer: on the way to the score, with its own axes and grid. Oracle: Eq. 1 and 2 by hand on the value that is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _cam_networks import TARGETS, Net, See, build, by_hand, check, conv, first, images, last, tokens, vit
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import GradCAM, GuidedBackprop, GuidedGradCAM, InputError, UnsupportedOp


def _plain(net: Any, x: Tensor, see: See) -> Tensor:
    return net.l(see(torch.relu(net.b(torch.relu(net.a(x))))).mean((2, 3)))


def _decoder(net: Any, x: Tensor, see: See) -> Tensor:
    h = see(torch.relu(net.b(torch.relu(net.a(x)))))
    net.reconstruction = torch.sigmoid(net.d(h))
    return net.l(h.mean((2, 3)))


def _auxiliary(net: Any, x: Tensor, see: See) -> Tensor:
    h = see(torch.relu(net.b(torch.relu(net.a(x)))))
    out = net.l(h.mean((2, 3)))
    net.auxiliary = net.l2(torch.relu(net.d8(h)).mean((2, 3)))
    return out


def _clone(net: Any, x: Tensor, see: See) -> Tensor:
    h = see(torch.relu(net.b(torch.relu(net.a(x)))))
    net.features = [h.clone(), h * 2]
    return net.l(h.mean((2, 3)))


def _detached(net: Any, x: Tensor, see: See) -> Tensor:
    h = see(torch.relu(net.b(torch.relu(net.a(x)))))
    return net.l(h.mean((2, 3))) + net.l2(torch.relu(net.d8(h)).detach().mean((2, 3)))


def _cut_input(net: Any, x: Tensor, see: See) -> Tensor:
    h = see(torch.relu(net.b(torch.relu(net.a(x)))))
    return net.l(h.mean((2, 3))) + torch.relu(net.d8(h.detach())).mean()


def _two_means(net: Any, x: Tensor, see: See) -> Tensor:
    return net.l(see(torch.relu(net.b(net.a(x)))).mean(3).mean(2))


def _adaptive(net: Any, x: Tensor, see: See) -> Tensor:
    return net.l(torch.flatten(F.adaptive_avg_pool2d(see(torch.relu(net.b(net.a(x)))), 1), 1))


def _einsum_head(net: Any, x: Tensor, see: See) -> Tensor:
    return torch.einsum("nchw,kc->nk", see(torch.relu(net.b(net.a(x)))), net.l.weight)


def _matrix_head(net: Any, x: Tensor, see: See) -> Tensor:
    return see(torch.relu(net.b(net.a(x)))).amax((2, 3)) @ net.l.weight.T


def _flattened(net: Any, x: Tensor, see: See) -> Tensor:
    return net.wide(F.max_pool2d(see(torch.relu(net.b(net.a(x)))), 3).flatten(1)[:, :96])


def _normed(net: Any, x: Tensor, see: See) -> Tensor:
    return net.l(see(torch.relu(net.bn(net.b(net.a(x))))).sum((2, 3)))


def _attention_pool(net: Any, x: Tensor, see: See) -> Tensor:
    h = see(torch.relu(net.b(net.a(x))))
    weights = net.one(h).flatten(2).softmax(-1)
    return net.l((h.flatten(2) @ weights.transpose(1, 2)).squeeze(-1))


def _bilinear_pool(net: Any, x: Tensor, see: See) -> Tensor:
    h = see(torch.relu(net.b(net.a(x))))
    flat = h.flatten(2)
    return net.bilinear((flat @ flat.transpose(1, 2)).flatten(1))


def _squeeze_excite(net: Any, x: Tensor, see: See) -> Tensor:
    h = torch.relu(net.b(net.a(x)))
    return net.l(see(h * torch.sigmoid(net.b(h.mean((2, 3), keepdim=True)))).mean((2, 3)))


def _two_scales(net: Any, x: Tensor, see: See) -> Tensor:
    f1 = torch.relu(net.a(x))
    f2 = see(torch.relu(net.b(F.max_pool2d(f1, 2))))
    return net.l(f1.mean((2, 3)) + f2.mean((2, 3)))


def _written(net: Any, x: Tensor, see: See) -> Tensor:
    h = net.b(net.a(x))
    h += 1
    return net.l(see(F.relu_(h)).mean((2, 3)))


def _sliced_write(net: Any, x: Tensor, see: See) -> Tensor:
    h = net.b(net.a(x)).clone()
    h[:, ::2] = torch.relu(h[:, ::2])
    return net.l(see(h).mean((2, 3)))


def _written_view(net: Any, x: Tensor, see: See) -> Tensor:
    h = net.b(net.a(x))
    h.flatten(2).relu_()
    return net.l(see(h).mean((2, 3)))


def _five_channels_of_features(net: Any, x: Tensor, see: See) -> Tensor:
    """As many channels as scores, and a linear layer behind them: features."""
    return net.square(see(torch.relu(net.classes(torch.relu(net.a(x))))).mean((2, 3)))


def _class_map(net: Any, x: Tensor, see: See) -> Tensor:
    return torch.relu(net.classes(see(torch.relu(net.a(x))))).mean((2, 3)).log_softmax(1)


def _class_tokens(net: Any, x: Tensor, see: See) -> Tensor:
    """The same of tokens: a linear layer that makes each token's scores, and their mean."""
    return net.l(see(torch.relu(net.b(net.a(x))).flatten(2)).transpose(1, 2)).mean(1)


def _pool_of_the_same_size(net: Any, x: Tensor, see: See) -> Tensor:
    return net.l(F.max_pool2d(see(torch.relu(net.b(net.a(x)))), 3, 1, 1).mean((2, 3)))


def _pool_beside(net: Any, x: Tensor, see: See) -> Tensor:
    """An inception block whose pool has no convolution: its concat is the map."""
    h = torch.relu(net.a(x))
    return net.wider(see(torch.cat([torch.relu(net.b(h)), F.avg_pool2d(h, 3, 1, 1)], 1)).mean((2, 3)))


def _scalar_gate(net: Any, x: Tensor, see: See) -> Tensor:
    """The gate is made of the map, and pooled before it meets what was made of it."""
    h = see(torch.relu(net.b(net.a(x))))
    gate = torch.sigmoid(h).mean((1, 2, 3)).unsqueeze(1)
    return net.l(h.flatten(2).mean(2)) * gate


PLAIN = [
    *(_plain, _decoder, _auxiliary, _clone, _detached, _cut_input, _two_means, _adaptive, _einsum_head, _matrix_head),
    *(_flattened, _normed, _attention_pool, _bilinear_pool, _squeeze_excite, _two_scales, _written),
    *(_sliced_write, _written_view),
    *(_pool_of_the_same_size, _pool_beside, _scalar_gate),
    *(_five_channels_of_features, _class_map),
]


@pytest.mark.parametrize("run", PLAIN, ids=lambda f: f.__name__)
def test_the_layer_of_a_convolutional_network(run: Callable[..., Tensor]) -> None:
    provenance = check(run, first)
    assert provenance["layer_axes"].startswith("(n, c, h, w), grid ")
    assert "on the way to the score" in provenance["layer_choice"]


@pytest.mark.parametrize("run", [_sliced_write, _written_view, _class_map, _einsum_head, _auxiliary])
def test_the_layer_does_not_depend_on_the_default_dtype(run: Callable[..., Tensor]) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        check(run, first)
    finally:
        torch.set_default_dtype(torch.float32)


def test_tokens_of_class_scores_are_no_features() -> None:
    assert check(_class_tokens, lambda t: t.unflatten(2, (12, 16)))["layer"].startswith("relu[0]")


# Channels last


def _pointwise(net: Any, x: Tensor, see: See) -> Tensor:
    """A ConvNeXt block that stays channels-last: depthwise, norm, linear layers."""
    h = net.b(net.embed(x)).permute(0, 2, 3, 1)
    return net.l(see(h + net.down(F.gelu(net.up(net.norm(h))))).mean((1, 2)))


def _merged(net: Any, x: Tensor, see: See) -> Tensor:
    """Swin's patch merging: a quarter of the grid, four times the channels."""
    h = torch.relu(net.a(x)).permute(0, 2, 3, 1)
    parts = [h[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return net.l(see(net.norm(net.merge(torch.cat(parts, -1)))).flatten(1, 2).mean(1))


def _windows(net: Any, x: Tensor, see: See) -> Tensor:
    """Attention in shifted windows of two by two, and back."""
    h = torch.relu(net.b(net.a(x)))[:, :, :10, :14].permute(0, 2, 3, 1)
    n, height, width, c = h.shape
    padded = F.pad(h, (0, 0, 0, 2, 0, 2)).roll((-1, -1), (1, 2))
    windows = padded.view(n, 6, 2, 8, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
    q, k, v = net.qkv(windows).chunk(3, -1)
    out = (q @ k.mT * 0.3).softmax(-1) @ v
    out = out.view(n, 6, 8, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, 12, 16, c).roll((1, 1), (1, 2))
    return net.l(see(h + out[:, :height, :width]).mean((1, 2)))


@pytest.mark.parametrize("run", [_pointwise, _merged, _windows], ids=lambda f: f.__name__)
@pytest.mark.parametrize("size", [(12, 16), (32, 32)])  # a grid of 8 x 8 beside 8 channels
def test_channels_last(run: Callable[..., Tensor], size: tuple[int, int]) -> None:
    if run is _windows and size != (12, 16):
        pytest.skip("its windows fit one size")
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert check(run, last, x)["layer_axes"].startswith("(n, h, w, c), grid ")


# Targets of their own


def _two_heads(net: Any, x: Tensor, see: See) -> Tensor:
    h = torch.relu(net.a(x))
    one, two = torch.relu(net.b(h)), torch.relu(net.d8(h))
    return torch.cat([net.l(one.mean((2, 3)))[:, :3], net.l2(two.mean((2, 3)))[:, 3:]], 1)


def test_a_branch_that_only_another_targets_score_reads_is_not_taken() -> None:
    net, x = build(_two_heads), images()

    def alone(target: int) -> Tensor:
        def run(net: Any, x: Tensor, see: See) -> Tensor:
            h = torch.relu(net.a(x))
            branch, head = ((net.b, net.l), (net.d8, net.l2))[target // 3]
            return head(see(torch.relu(branch(h))).mean((2, 3)))

        return by_hand(build(run), x, first, torch.full((2,), target))

    for target in (0, 2, 3, 4):
        torch.testing.assert_close(GradCAM(net).attribute(x, target), alone(target))
    both = GradCAM(net).each(x, torch.tensor([[0, 4], [3, 1]]))
    torch.testing.assert_close(both[0].values, torch.stack([alone(0)[0], alone(3)[1]]))
    torch.testing.assert_close(both[1].values, torch.stack([alone(4)[0], alone(1)[1]]))
    assert both[0].provenance["layer"] == (
        "relu[1] at <model> (relu) for target 0, 1; relu[2] at <model> (relu) for target 3, 4"
    )
    with pytest.raises(
        InputError, match=r"layer must lie on the way .* score of target 4, but nothing of 'b' reaches it"
    ):
        GradCAM(net, layer="b")(x, 4)


def test_a_layer_whose_gradient_is_zero_is_still_on_the_way() -> None:
    """The last ReLU is closed everywhere: the map is zero, and its layer not an earlier one."""
    net = build(_plain)
    with torch.no_grad():
        net.get_submodule("b").bias.fill_(-100)  # type: ignore[union-attr]
    found = GradCAM(net)(images(), 1)
    assert found.provenance["layer"].startswith("relu[1]")
    assert float(found.values.abs().max()) == 0
    net = build(_plain)
    with torch.no_grad():
        net.get_submodule("l").weight[1] = 0  # type: ignore[index]
    assert GradCAM(net)(images(), 1).provenance["layer"].startswith("relu[1]")


# Named layers


def test_named_layers_are_read_as_they_are_found() -> None:
    net, x = build(vit(1)), images()

    by_site = GradCAM(net, layer="layer_norm[2]")(x, TARGETS)
    torch.testing.assert_close(by_site.values, by_hand(net, x, tokens(3, 4, 1)))
    assert by_site.provenance["layer_choice"] == "named"
    for options in ({"grid": (3, 4)}, {"grid": [3, 4], "channels": "last"}):
        given = GradCAM(net, layer="layer_norm[2]", **options)(x, TARGETS)
        torch.testing.assert_close(given.values, by_site.values)
        assert given.provenance["layer_choice"] == "named, axes as given"


def test_a_named_layer_of_which_only_the_class_token_is_read_is_refused_with_one_that_works() -> None:
    net, x = build(vit(1)), images()
    with pytest.raises(InputError, match=r"it reads no place of the grid .* which finds 'layer_norm\[2\]', in 'norm'"):
        GradCAM(net, layer="norm")(x, TARGETS)
    GradCAM(net, layer="layer_norm[2]")(x, TARGETS)


def test_a_named_layer_off_the_way_is_refused_with_one_that_works() -> None:
    net, x = build(_decoder), images()
    with pytest.raises(InputError, match=r"layer must lie on the way .* but nothing of 'd' reaches it. Use layer=None"):
        GradCAM(net, layer="d")(x, TARGETS)
    torch.testing.assert_close(GradCAM(net).attribute(x, TARGETS), by_hand(net, x, first))


def test_a_module_that_stores_a_copy_and_returns_a_tuple_is_read_at_its_last_value_on_the_way() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(8, 8)

        def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.relu(self.conv(h))
            self.copy = h.clone()
            return h, h.mean((2, 3))

    def run(net: Any, x: Tensor, see: See) -> Tensor:
        h, _ = net.block(torch.relu(net.a(x)))
        h = see(net.block(h)[0])  # called twice: the last call counts
        return net.l(h.mean((2, 3)))

    torch.manual_seed(0)
    net = Net({"a": conv(3, 8), "block": Block(), "l": nn.Linear(8, 5)}, run).double().eval()
    expected = by_hand(net, images(), first)
    for options in ({}, {"layer": "block"}):
        found = GradCAM(net, **options)(images(), TARGETS)
        torch.testing.assert_close(found.values, expected)
        assert found.provenance["layer"].startswith("relu[2] at block")


def _scrambled(net: Any, x: Tensor, see: See) -> Tensor:
    """Tokens in the order of their norms: where each stands is not known to any dataflow."""
    t = net.embed(x).flatten(2).transpose(1, 2)
    t = t.sort(1)[0]
    return net.l(torch.relu(net.down(net.up(t))).mean(1))


def test_where_the_places_are_not_known_the_layer_is_refused_with_what_to_give() -> None:
    net, x = build(_scrambled), images()
    with pytest.raises(
        UnsupportedOp, match=r"cannot be told where .* Name a layer and say how to read it: layer=\.\.\., with"
    ):
        GradCAM(net)(x, TARGETS)
    with pytest.raises(InputError, match=r"layer 'down' puts out \(2, 12, 8\) .* Say how to read it: channels='first'"):
        GradCAM(net, layer="down")(x, TARGETS)
    found = GradCAM(net, layer="relu[0]", grid=(3, 4))(x, TARGETS)
    assert found.provenance["layer_axes"] == "(n, t, c), grid 3 x 4"
    with pytest.raises(
        InputError, match=r"channels and grid must fit the output \(2, 12, 8\) .* but are None and \(4, 4\)"
    ):
        GradCAM(net, layer="relu[0]", grid=(4, 4))(x, TARGETS)


def test_some_of_the_tokens_are_no_grid() -> None:
    def run(net: Any, x: Tensor, see: See) -> Tensor:
        t = net.embed(x).flatten(2).transpose(1, 2)
        return net.l(torch.relu(net.down(net.up(t[:, torch.tensor([0, 3, 5, 6, 7])]))).mean(1))

    with pytest.raises(UnsupportedOp, match="cannot be told where in the image its values stand"):
        GradCAM(build(run))(images(), TARGETS)


def test_the_image_itself_is_no_feature_map() -> None:
    """Attention reads the pixels of each patch: no layer stands before it."""

    def run(net: Any, x: Tensor, see: See) -> Tensor:
        t = F.pixel_unshuffle(x, 4).flatten(2).transpose(1, 2) * 2
        q, k, v = net.pixels(torch.cat([t.new_ones(len(t), 1, 48), t], 1)).chunk(3, -1)
        return net.l(F.scaled_dot_product_attention(q, k, v)[:, 0])

    with pytest.raises(UnsupportedOp, match=r"reads no feature map .* Name a layer: layer='a module path'"):
        GradCAM(build(run))(images(), TARGETS)


def test_axes_that_are_given_are_checked() -> None:
    net = build(_plain)
    with pytest.raises(InputError, match="channels must be 'first', 'last', or None, but is 'middle'"):
        GradCAM(net, layer="b", channels="middle")
    with pytest.raises(InputError, match=r"grid must be the height and the width .*, but is \(3, 0\)"):
        GradCAM(net, layer="b", grid=(3, 0))
    with pytest.raises(InputError, match=r"but layer is None\. Give layer as well"):
        GradCAM(net, grid=(3, 4))


def test_several_inputs_that_join_and_that_do_not() -> None:
    x, y = images(), images().flip(0)

    def joined(net: Any, x: Tensor, y: Tensor, see: See) -> Tensor:
        return net.l(see(torch.relu(net.b(torch.relu(net.a(x)) - net.a(y)))).mean((2, 3)))

    check(joined, first, (x, y))

    def apart(net: Any, x: Tensor, y: Tensor, see: See) -> Tensor:
        return net.l(torch.relu(net.a(x)).mean((2, 3)) + see(torch.relu(net.b(net.a(y)))).mean((2, 3)))

    provenance = check(apart, first, (x, y))
    assert "beside" in provenance["layer_choice"]


def test_guided_grad_cam_weights_the_same_layer() -> None:
    net, x = build(vit(1)), images()
    coarse = GradCAM(net, layer="layer_norm[2]", grid=(3, 4)).attribute(x, TARGETS)
    found = GuidedGradCAM(net, layer="layer_norm[2]", grid=(3, 4))(x, TARGETS)
    torch.testing.assert_close(found.values, coarse * GuidedBackprop(net).attribute(x, TARGETS))
    assert found.provenance["layer_axes"] == "(n, t, c), grid 3 x 4 of 13 tokens"


def test_a_network_that_goes_another_way_with_all_images_than_with_one() -> None:
    def run(net: Any, x: Tensor, see: See) -> Tensor:
        h = torch.relu(net.a(x))
        h = torch.relu(net.b(h)) if len(x) > 1 else h
        return net.l(see(h).mean((2, 3)))

    check(run, first)
    check_one = GradCAM(build(run))(images(1), 1)
    assert check_one.provenance["layer"].startswith("relu[0]")
