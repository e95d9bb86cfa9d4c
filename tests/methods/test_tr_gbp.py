"""TR-GBP: against its equations with the ones-inputs made explicit, on odd geometries, and what it must refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _tr_gbp_oracle import tr_gbp
from torch import Tensor, nn
from torch.nn import functional as F

from _networks import ARCHITECTURES, SIX, SPELLINGS, build, images
from backlit import TRGBP, GuidedBackprop, InputError
from backlit.methods import biases

Layer = Callable[[str, nn.Module, Tensor], Tensor]
Act = Callable[[Tensor], Tensor]


def _plainly(name: str, module: nn.Module, z: Tensor) -> Tensor:
    return module(z)


class Everything(nn.Module):
    """Stride, padding, dilation, groups, depthwise, norms, other paddings, transposed, residual adds, pools, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, (5, 3), stride=(2, 1), padding=(2, 0))
        self.depth = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6)
        self.groups = nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.point = nn.Conv2d(6, 6, 1, stride=2)
        self.same = nn.Conv2d(6, 6, (4, 3), padding="same", dilation=(1, 2))
        self.valid = nn.Conv2d(6, 6, 2, padding="valid")
        self.circular = nn.Conv2d(6, 6, 3, padding=(1, 2), padding_mode="circular")
        self.reflect = nn.Conv2d(6, 6, 3, padding=(2, 1), padding_mode="reflect", stride=2)
        self.up = nn.ConvTranspose2d(6, 6, 3, stride=2, padding=1, output_padding=1, dilation=2)
        self.alone = nn.BatchNorm2d(6)  # reads a ReLU: it cannot fold
        self.group_norm = nn.GroupNorm(2, 6)
        self.line = nn.Conv1d(6, 6, 3, padding=1)
        self.cube = nn.Conv3d(6, 6, (1, 3, 3), padding=(0, 1, 1))
        self.hidden = nn.Linear(6, 12)
        self.fc = nn.Linear(12, 7)

    def forward(self, x: Tensor, layer: Layer = _plainly, act: Act = F.relu) -> Tensor:
        def run(name: str, z: Tensor) -> Tensor:
            return layer(name, getattr(self, name), z)

        x = act(run("first", x))
        x = act(run("depth", x)) + x
        x = act(run("norm", run("groups", x)))
        x = F.max_pool2d(x, 2, stride=1)
        x = x + act(run("circular", run("same", x)))[..., : x.shape[-1] - 0]
        x = run("alone", act(run("up", run("reflect", run("valid", act(run("point", x)))))))
        x = act(run("group_norm", x))
        x = act(run("cube", x[:, :, None]))[:, :, 0]
        x = F.adaptive_avg_pool2d(x, (3, 4)).flatten(2)
        x = act(run("line", x)).mean(2)
        return run("fc", act(run("hidden", x)))


@pytest.fixture(scope="module")
def everything() -> Everything:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        net = Everything()
        with torch.no_grad():  # weights that carry signals of the same size from layer to layer
            for name, tensor in net.state_dict().items():
                if tensor.dim() > 1:
                    nn.init.kaiming_normal_(tensor)
                elif "running_var" in name or name in ("norm.weight", "alone.weight", "group_norm.weight"):
                    tensor.uniform_(0.5, 1.5)
                elif tensor.is_floating_point():
                    tensor.normal_(0, 0.3)
    return net.double().eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(3, 3, 21, 18, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


TARGET = torch.tensor([0, 3, 6])


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("contrast", [None, 3])
@pytest.mark.parametrize("ones", ["one", "layer"])
def test_every_part_is_equation_8(
    everything: Everything, x: Tensor, fold: bool, normalise: bool, contrast: int | None, ones: str
) -> None:
    reading = {"normalise": normalise, "fold": fold, "own": ones == "layer"}
    expected = tr_gbp(everything, x, TARGET, contrast, **reading, pairs={"groups": "norm"})
    options = {"fold": fold, "normalise_kernel": normalise, "contrast": contrast, "ones": ones}
    found = TRGBP(everything, **options, layers=True)(x, TARGET)
    assert set(found.parts) == set(expected)
    assert len(expected) == 16
    for name, part in expected.items():
        largest = float(part.abs().max())
        assert largest > 1e-6, name
        torch.testing.assert_close(found.parts[name] / largest, part.detach() / largest, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.values, sum(expected.values()).detach())
    summed = TRGBP(everything, **options)(x, TARGET)
    assert list(summed.parts) == ["input", "biases"]
    torch.testing.assert_close(summed.values, found.values)


def test_no_contrast_is_guided_backprop_and_the_biases(everything: Everything, x: Tensor) -> None:
    found = TRGBP(everything, contrast=None)(x, TARGET)
    guided = GuidedBackprop(everything).attribute(x, TARGET).sum(1, keepdim=True)
    torch.testing.assert_close(found.parts["input"], guided)
    torch.testing.assert_close(TRGBP(everything, contrast=1).attribute(x, TARGET), found.values)


def test_contrast_over_all_classes_is_the_mean_of_the_maps(everything: Everything, x: Tensor) -> None:
    plain = TRGBP(everything, contrast=None)
    every = torch.stack([plain.attribute(x, k) for k in range(7)])
    torch.testing.assert_close(
        TRGBP(everything, contrast="all").attribute(x, TARGET), every[TARGET, range(3)] - every.mean(0)
    )
    torch.testing.assert_close(
        TRGBP(everything, contrast=7).attribute(x, TARGET), every[TARGET, range(3)] - every.mean(0)
    )


def test_targets_outside_the_likeliest_get_their_own_map(everything: Everything, x: Tensor) -> None:
    order = everything(x).argsort(1, descending=True)
    targets = torch.stack([order[:, 6], order[:, 0], order[:, 5], order[:, 6]], 1)
    together = TRGBP(everything, contrast=2).each(x, targets)
    for t, explanation in enumerate(together):
        torch.testing.assert_close(explanation.values, TRGBP(everything, contrast=2).attribute(x, targets[:, t]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_spelling_gives_the_twins_map(architecture: str) -> None:
    xs = images(architecture)
    for spellings in (SPELLINGS, SIX):
        whole = TRGBP(build(architecture, "module", spellings), contrast=2, layers=True)(xs, torch.tensor([2, 0]))
        for spelling in spellings:
            found = TRGBP(build(architecture, spelling, spellings), contrast=2, layers=True)(xs, torch.tensor([2, 0]))
            for ours, theirs in zip(found, whole, strict=True):
                assert list(ours.parts) == list(theirs.parts)
                torch.testing.assert_close(ours.values, theirs.values, msg=spelling)


def test_a_linear_layer_written_as_addmm_reads_as_many_features() -> None:
    class Head(nn.Module):
        def __init__(self, way: str) -> None:
            super().__init__()
            self.way, self.fc = way, nn.Linear(48, 5)

        def forward(self, x: Tensor) -> Tensor:
            weight, bias, z = self.fc.weight, self.fc.bias, x.flatten(1)
            if self.way == "turned":
                return torch.addmm(bias[:, None], weight, z.T).T
            return torch.addmm(bias, z, weight.T) if self.way == "addmm" else self.fc(z)

    x = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    module, addmm, turned = (Head(way).double().eval() for way in ("module", "addmm", "turned"))
    addmm.load_state_dict(module.state_dict())

    def biases_of(net: nn.Module, ones: str) -> Tensor:
        return TRGBP(net, contrast=None, ones=ones)(x, 3).parts["biases"]

    bias = module.fc.bias.detach()[3].expand(1, 1, 4, 4)
    for net in (module, addmm):
        torch.testing.assert_close(biases_of(net, "one"), bias)
        torch.testing.assert_close(biases_of(net, "layer"), 48 * bias)
    torch.testing.assert_close(biases_of(turned, "layer"), 48 * biases_of(turned, "one"))


def test_parts_are_named_by_module_and_by_site_where_one_is_used_often() -> None:
    found = TRGBP(build("reused layers", "module"), contrast=2, layers=True)(images("reused layers")[0])
    assert list(found.parts) == ["input", "a", "b conv2d[1]", "b conv2d[2]", "b conv2d[3]", "fc"]
    assert found.provenance["biases"] == 5


def test_a_constant_that_is_added_is_a_bias(x: Tensor) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, bias=False)
            self.shift = nn.Parameter(torch.randn(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (self.conv(x) + self.shift).relu().mean((2, 3))

    net = Shifted().double().eval()
    biased = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    found = TRGBP(net, contrast=None, layers=True)(x, 1)
    assert list(found.parts) == ["input", "add[0]"]
    with torch.no_grad():
        features = net.conv(x)
        gate = (features[:, 1] + net.shift[1] > 0).double()
        expected = gate * net.shift[1] / gate[0].numel()
    part = F.interpolate(expected[:, None], x.shape[2:], mode="bilinear")
    torch.testing.assert_close(found.parts["add[0]"], part)
    assert list(TRGBP(biased, contrast=None, layers=True)(x, 1).parts) == ["input", "0"]


def test_without_biases_it_says_what_it_is(x: Tensor) -> None:
    bare = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    bare = bare.double().eval()
    with pytest.warns(UserWarning, match="summed over colours, less the mean of the likeliest classes"):
        found = TRGBP(bare, contrast=2, layers=True)(x, TARGET % 6)
    assert list(found.parts) == ["input"]
    zero = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    nn.init.zeros_(zero[0].bias)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="All biases of the network are zero"):
        assert float(TRGBP(zero, contrast=2)(x).parts["biases"].abs().max()) == 0
    with pytest.warns(UserWarning, match="summed over colours, and ones and normalise_kernel change nothing"):
        alone = TRGBP(bare, contrast=None, ones="layer").attribute(x, TARGET % 6)
    torch.testing.assert_close(alone, GuidedBackprop(bare).attribute(x, TARGET % 6).sum(1, keepdim=True))


def test_bad_contrasts(everything: Everything, x: Tensor) -> None:
    with pytest.raises(
        InputError, match=r"contrast must be at most the number of classes, 7, but is 8\. Use contrast='all'"
    ):
        TRGBP(everything, contrast=8)(x)
    for wrong in (0, -1, 2.5, "some", True):
        with pytest.raises(InputError, match="contrast must be a number of classes, 'all', or None"):
            TRGBP(everything, contrast=wrong)
    single = nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    for contrast in (5, "all"):
        with pytest.raises(InputError, match="contrast must be None for a network of one class"):
            TRGBP(single, contrast=contrast)(x)
    assert TRGBP(single, contrast=None).attribute(x).shape == (3, 1, 21, 18)


def test_a_network_that_goes_another_way_with_several_images_is_folded_for_what_it_does(x: Tensor) -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.other, self.conv = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 4, 3)
            self.last, self.norm = nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x) if x.shape[0] == 1 else self.last(self.other(x).relu())
            return self.norm(x).relu().mean((2, 3))

    net = Fork().double().eval()
    nn.init.normal_(net.norm.running_mean)  # type: ignore[arg-type]
    found = TRGBP(net, contrast=2, layers=True)(x)
    assert list(found.parts) == ["input", "other", "last"]
    torch.testing.assert_close(found.output, net(x).amax(1).detach())


class TokensFirst(nn.Module):
    """Tokens first, images second, as torch's own attention has them; as many tokens as images."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.hidden, self.fc = nn.Conv2d(3, 8, 7, stride=7), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).permute(2, 0, 1)
        return self.fc(F.relu(self.hidden(tokens)).transpose(0, 1).mean(1))


def test_images_are_kept_apart_where_their_axis_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = TokensFirst().double().eval()
    x = torch.randn(6, 3, 14, 21, dtype=torch.float64)  # 6 tokens
    method = TRGBP(net, contrast=2, chunk=6)
    whole = method.attribute(x, 1)
    for i in range(6):
        torch.testing.assert_close(method.attribute(x[i : i + 1], 1)[0], whole[i])
    monkeypatch.setattr(biases, "_apart", lambda together, alone, n: True)
    assert not torch.allclose(method.attribute(x, 1), whole)  # what the check is there for


@pytest.mark.parametrize("options", [{"contrast": "all"}, {"fold": False}, {}])
def test_images_do_not_depend_on_each_other(everything: Everything, x: Tensor, options: dict[str, Any]) -> None:
    whole = TRGBP(everything, **options).attribute(x, TARGET)
    for i in range(3):
        one = TRGBP(everything, **options).attribute(x[i : i + 1], TARGET[i : i + 1])
        torch.testing.assert_close(one[0], whole[i])


class Tokens(nn.Module):
    """Position embeddings on tokens, or a constant on scores (n, heads, tokens, tokens): neither is an image."""

    def __init__(self, heads: bool) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(2, 5, 4, stride=4, bias=False), nn.Linear(5, 5, bias=False)
        self.fc, self.heads = nn.Linear(5, 3, bias=False), heads
        self.position = nn.Parameter(torch.randn(1, 2, 4, 4) if heads else torch.randn(1, 4, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.conv(x).flatten(2).transpose(1, 2))
        if not self.heads:
            return self.fc((x + self.position).mean(1))
        scores = x.sum(2)[:, None, :, None] + self.position
        return self.fc((scores.mean(1) @ torch.ones(4, 5).to(x)).mean(1))


@pytest.mark.parametrize(("heads", "positions"), [(False, 4), (True, 8)])
def test_a_constant_behind_a_linear_layer_is_one_number_an_image(heads: bool, positions: int) -> None:
    torch.manual_seed(0)
    net = Tokens(heads).double().eval()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    found = TRGBP(net, contrast=None, layers=True)(x, 1)
    (name,) = [part for part in found.parts if part != "input"]
    part = found.parts[name]
    torch.testing.assert_close(part, part[..., :1, :1].expand_as(part))
    (gradient,) = torch.autograd.grad(net(x)[0, 1], net.position)
    torch.testing.assert_close(part[0, 0, 0, 0], (gradient * net.position).sum().detach() / positions)
