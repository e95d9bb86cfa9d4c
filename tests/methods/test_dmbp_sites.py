"""What DMBP masks: branches beside residual sums, layers, or everything; and what its terms say of the image."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import DMBP, InputError


class Block(nn.Module):
    """A stem, one residual block whose sum is spelled by ``join``, and a head."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.join = join
        self.stem, self.branch = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        identity = self.stem(x).relu()
        return self.fc(self.join(self.branch(identity), identity).relu().mean((2, 3)))


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def masked(net: nn.Module, sites: str, x: Tensor | None = None) -> list[str]:
    found = DMBP(net, steps=1, sites=sites)(images() if x is None else x, 0)
    return [row.site for row in found.coverage.rows if row.rule == "masked"]


SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a + b": lambda a, b: a + b,
    "a - (-b)": lambda a, b: a - (-b),
    "add_": lambda a, b: a.clone().add_(b),
    "alpha": lambda a, b: torch.add(a, b, alpha=0.3),
    "mean of two": lambda a, b: (a + b) / 2,
    "lerp": lambda a, b: torch.lerp(a, b, 0.5),
    "addcmul": lambda a, b: torch.addcmul(a, b, b.new_full((1,), 0.5)),
    "stack and sum": lambda a, b: torch.stack([a, b]).sum(0),
    "stack and mean": lambda a, b: torch.stack([a, b], 1).mean(1),
    "sum of a list": lambda a, b: sum([a, b], torch.zeros_like(a)),
    "scaled, shifted, dropped": lambda a, b: F.dropout((a + b) * 0.5 + 1, 0.5, training=False),
    "moved": lambda a, b: (a + b).flatten(1).view_as(a).flip(3),
}
NO_SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "nothing": lambda a, b: a,
    "a constant": lambda a, b: a + 0.5 * torch.ones(4, 1, 1, dtype=a.dtype),
    "a norm behind the sum": lambda a, b: F.group_norm(a + b, 2),
    "a concat": lambda a, b: torch.cat([a[:, :2], b[:, 2:]], 1),
    "a maximum": lambda a, b: torch.maximum(a, b),
    "a pool": lambda a, b: F.avg_pool2d(a, 3, 1, 1),
}


@pytest.mark.parametrize("name", SUMS)
def test_branches_leave_out_what_reads_a_sum_however_it_is_spelled(name: str) -> None:
    net = Block(SUMS[name]).double().eval()
    assert masked(net, "branches") == ["relu[0]"]
    assert masked(net, "layers") == ["relu[0]", "conv2d[1]"]
    assert masked(net, "everywhere") == ["relu[0]", "conv2d[1]", "relu[1]"]
    assert masked(net, "rectifiers") == ["relu[0]", "relu[1]"]


@pytest.mark.parametrize("name", NO_SUMS)
def test_branches_keep_what_reads_no_sum(name: str) -> None:
    assert masked(Block(NO_SUMS[name]).double().eval(), "branches") == ["relu[0]", "relu[1]"]


class BeforeTheSum(nn.Module):
    """Blocks whose activations all stand on the branch: norm, activation, layer (ResNet v2), and a linear bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.conv = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.expand, self.project, self.fc = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv(F.relu(self.norm(x)))
        x = x + self.project(F.relu6(self.expand(x)))
        return self.fc(x.mean((2, 3)))


def test_a_network_without_activations_behind_its_sums_masks_all_of_them() -> None:
    net = BeforeTheSum().double().eval()
    assert masked(net, "branches") == masked(net, "rectifiers") == ["relu[0]", "hardtanh[0]"]
    # The stem's output is read by the sum as well: it gets a mask of its own; the expansion's by its activation alone.
    expected = ["conv2d[0]", "relu[0]", "conv2d[1]", "hardtanh[0]", "conv2d[3]"]
    assert masked(net, "layers") == masked(net, "everywhere") == expected


@pytest.mark.parametrize(
    ("name", "branches", "layers", "everywhere"),
    [
        ("resnet18", 9, 9 + 11, 17 + 11),  # behind conv2 of 8 blocks, and behind 3 downsamplings
        ("mobilenet_v2", 35, 35 + 17, 35 + 17),  # ReLU6 stands before the sums, linear projections behind them
        ("squeezenet1_0", 26, 26, 26),  # no sums, a ReLU behind every layer
    ],
)
def test_the_readings_on_known_networks(name: str, branches: int, layers: int, everywhere: int) -> None:
    torchvision = pytest.importorskip("torchvision")
    net = getattr(torchvision.models, name)(weights=None).eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    counts = [len(masked(net, sites, x)) for sites in ("branches", "layers", "everywhere")]
    assert counts == [branches, layers, everywhere]


@pytest.mark.parametrize("sites", ["layers", "everywhere"])
def test_a_mask_behind_a_layer_is_one_behind_an_activation_of_slope_1(sites: str) -> None:
    """The same network with that activation written out masks the same, and gives the same map."""
    plain = Block(lambda a, b: a + b).double().eval()
    written = Block(lambda a, b: F.leaky_relu(a, 1.0) + b).double().eval()
    rectifiers = {"layers": "branches", "everywhere": "rectifiers"}[sites]
    options = {"steps": 4, "lr": 0.3, "init": 1.0}
    ours = DMBP(plain, sites=sites, **options)(images(), [0, 2])
    theirs = DMBP(written, sites=rectifiers, **options)(images(), [0, 2])
    torch.testing.assert_close(ours.values, theirs.values)
    torch.testing.assert_close(ours.trajectory["loss"], theirs.trajectory["loss"])
    assert ours.completeness["gap"].abs().max() < 1e-12


@pytest.mark.parametrize("sites", ["branches", "layers", "everywhere"])
def test_a_batch_equals_singles(sites: str) -> None:
    net, x = Block(lambda a, b: a + b).double().eval(), images(3)
    method = DMBP(net, steps=5, lr=0.2, sites=sites, init=1.0)
    batch = method(x, [0, 2, 1])
    for i in range(3):
        torch.testing.assert_close(method(x[i : i + 1], [0, 2, 1][i]).values, batch.values[i : i + 1])


def test_layers_are_masked_where_there_is_no_rectifier() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 6), nn.Tanh(), nn.Linear(6, 3)).double().eval()
    with pytest.raises(InputError, match="sites must leave DMBP an activation to mask"):
        DMBP(net, sites="rectifiers")(images(), 0)
    found = DMBP(net, sites="everywhere", steps=3)(images(), 0)
    assert [row.site for row in found.coverage.rows if row.rule == "masked"] == ["linear[0]"]  # not the last one
    assert found.completeness["gap"].abs().max() < 1e-12


def test_the_result_says_what_was_masked() -> None:
    net = Block(lambda a, b: a + b).double().eval()
    for sites, expected in (
        ("branches", "1 of 2 activations (2 rectifiers, 1 behind a residual sum), 0 layers"),
        ("everywhere", "2 of 2 activations (2 rectifiers, 1 behind a residual sum), 1 layer"),
    ):
        assert DMBP(net, steps=1, sites=sites)(images(), 0).provenance["masks"] == expected


def test_the_terms_say_what_the_pixels_hold() -> None:
    net = Block(lambda a, b: a + b).double().eval()
    found = DMBP(net, steps=4, lr=0.3)(images(), [0, 2])
    for sign in ("positive", "negative"):
        own = found.parts[sign].flatten(1).sum(1)
        torch.testing.assert_close(found.completeness[f"{sign}_image"], own)
        assert (own - found.completeness[sign]).abs().min() > 1e-3  # the rest are biases
    plain = DMBP(net, variant="nd")(images(), 0)
    torch.testing.assert_close(plain.completeness["positive_image"], plain.values.flatten(1).sum(1))
    assert not plain.completeness["negative_image"].any()


class Deep(nn.Module):
    """Twelve residual blocks with small biases: masks in a row dim the image long before the last biases."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(12))
        self.fc = nn.Linear(4, 3)
        with torch.no_grad():
            for block in self.blocks:
                block.bias.fill_(0.01)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            x = (block(x) + x).relu()
        return self.fc(x.mean((2, 3)))


def test_a_map_of_biases_alone_says_so_and_the_way_out_works() -> None:
    net, x = Deep().double().eval(), images(3).abs()
    with pytest.warns(
        UserWarning, match=r"its pixels account for .* the rest are biases.*\(3 of 3 images are under 1%\)"
    ):
        DMBP(net, steps=5, lr=0.1, sites="rectifiers", init=0.0)(x, 0)
    for remedy in ({"sites": "branches"}, {"init": 2.0}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            DMBP(net, **{"steps": 5, "lr": 0.1, "sites": "rectifiers", "init": 0.0, **remedy})(x, 0)


def test_chunks_warn_once() -> None:
    net, x = Deep().double().eval(), images(3).abs()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DMBP(net, steps=2, sites="rectifiers", init=0.0, chunk=1)(x, 0)
    assert len(caught) == 1


def test_the_last_bias_in_one_part_or_both() -> None:
    net = Block(lambda a, b: a + b).double().eval()
    both, half = (DMBP(net, steps=1, lr=1e-9, last_bias=b, sites="rectifiers")(images(), 0) for b in ("both", "half"))
    bias = net.fc.bias[0].detach()
    torch.testing.assert_close(both.completeness["positive"] - half.completeness["positive"], (bias / 2).expand(2))
    torch.testing.assert_close(both.completeness["nuisance"] - half.completeness["nuisance"], -bias.expand(2))
    with pytest.raises(InputError, match="last_bias must be 'both' or 'half', but is 'once'"):
        DMBP(net, last_bias="once")


class TokensFirst(nn.Module):
    """A layer whose tokens come before its images, between two that hold the images first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.fc = nn.Conv2d(2, 4, 4, stride=4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).permute(2, 0, 1)
        return self.fc(self.mix(tokens).sigmoid().mean(0))


def test_a_layer_with_its_tokens_before_its_images_has_no_mask() -> None:
    net, x = TokensFirst().double().eval(), images(2)  # 4 tokens, as many as two images twice
    assert masked(net, "layers", x) == ["conv2d[0]"]
    batch = DMBP(net, steps=3)(x, 0)
    torch.testing.assert_close(DMBP(net, steps=3)(x[1:], 0).values, batch.values[1:])
