"""Networks with a constant for each image of the batch, as a wrapper of a second input holds it: no method may run them on others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _methods import EVERYWHERE, quick
from backlit import RISE, DeepSHAP, InputError, Occlusion
from backlit.capture import freeze
from backlit.methods import METHODS, FittedMethod, Method, Random
from backlit.methods.biases import BiasMethod
from backlit.methods.passes import CopyStep, Passes
from backlit.metrics import Examples, Insertion

N = 6
X = torch.randn(N, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Net(nn.Module):
    """Layers, and a constant for each image that stands in the way given by ``join``."""

    def __init__(self, join: str, meta: Tensor) -> None:
        super().__init__()
        self.conv, self.norm, self.conv2 = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
        self.wide, self.fc, self.fc8 = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), nn.Linear(8, 5)
        self.join = join
        generator = torch.Generator().manual_seed(0)
        self.double()
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        self.meta = meta
        self.eval()

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.norm(self.conv(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return JOINS[self.join](self, x)


def _cat(net: Net, x: Tensor) -> Tensor:
    return net.fc8(torch.cat([net.features(x).mean((2, 3)), net.meta], 1))


def _image(net: Net, x: Tensor) -> Tensor:
    x = torch.cat([x, net.meta[:, :1, None, None].expand(-1, 1, 8, 8)], 1)
    return net.fc(F.relu(net.conv2(F.relu(net.norm(net.wide(x))))).mean((2, 3)))


def _added(net: Net, x: Tensor) -> Tensor:
    h = F.relu(net.norm(net.conv(x)) + net.meta[:, :, None, None])
    return net.fc(F.relu(net.conv2(h)).mean((2, 3)))


def _scaled(net: Net, x: Tensor) -> Tensor:
    return net.fc((net.features(x) * net.meta.sigmoid()[:, :, None, None]).mean((2, 3)))


def _stacked(net: Net, x: Tensor) -> Tensor:
    h = torch.stack([net.features(x).mean((2, 3)), net.meta], 1)
    return net.fc8(h.flatten(1))


def _in_place(net: Net, x: Tensor) -> Tensor:
    h = net.features(x).mean((2, 3))
    h += net.meta
    return net.fc(h)


def _row_by_row(net: Net, x: Tensor) -> Tensor:
    h = net.features(x).mean((2, 3))
    return torch.stack([net.fc(h[i] + net.meta[i]) for i in range(len(net.meta))])


def _reshaped(net: Net, x: Tensor) -> Tensor:
    return net.fc(net.features(x).reshape(len(net.meta), 4, -1).mean(2))


JOINS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "cat": _cat, "image": _image, "added": _added, "scaled": _scaled, "stacked": _stacked, "in place": _in_place,
    "row by row": _row_by_row, "reshaped": _reshaped,
}  # fmt: skip
META = torch.randn(N, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Any1(nn.Module):
    """The same network for one image, by a way that takes any number of images: the oracle."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        self.net.meta = self.net.meta[:1].expand(len(x), -1)
        return self.net(x)


KINDS = [m for m in EVERYWHERE if not issubclass(m, FittedMethod)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("n", [1, 3, N])
@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda m: m.name)
def test_every_method_explains_it(kind: type[Method], join: str, n: int) -> None:
    if join == "row by row" and issubclass(kind, BiasMethod) and n > 1:
        with pytest.raises(InputError, match=r"model must take any number of images here, .* only together, and not 1"):
            kind(Net(join, META[:n]))(X[:n], 1)  # it would run them one by one
        return
    if join == "image" and not kind.own_size:  # a constant of the images' size
        with pytest.raises(InputError, match=r"model must take images of other sizes .*, but does not take"):
            kind(Net(join, META[:n]), **quick(kind))(X[:n], 1)
        return
    target = torch.arange(n) % 5
    found = kind(Net(join, META[:n]), **quick(kind)).attribute(X[:n], target)
    for i in (0, n - 1):
        alone = Any1(Net(join, META[i : i + 1]))
        torch.testing.assert_close(found[i], kind(alone, **quick(kind)).attribute(X[i : i + 1], int(target[i]))[0])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS, ids=lambda m: m.name)
def test_a_chunk_size_that_cannot_be_says_so_and_its_ways_out_work(kind: type[Method]) -> None:
    model = Net("cat", META)
    message = (
        rf"chunk must be None or at least {N}, but is 4: the model takes these {N} images only together, and not 1 "
        r"\(.*\)\. Does it hold a constant for each image\? One of shape \(1, d\), expanded to len\(x\) in forward"
    )
    with pytest.raises(InputError, match=message):
        kind(model, chunk=4, **quick(kind))(X, 1)
    kind(model, chunk=N, **quick(kind))(X, 1)
    kind(Any1(Net("cat", META[:1])), chunk=4, **quick(kind))(X, 1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda m: m.name)
def test_another_number_of_images_than_the_models_is_called_what_it_is(kind: type[Method]) -> None:
    with pytest.raises(
        InputError, match=r"inputs of shape \(3, 2, 8, 8\) do not run through the model: .*Sizes of tensors"
    ):
        kind(Net("cat", META), **quick(kind))(X[:3], 1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda m: m.name)
@pytest.mark.parametrize("bound", [2, 4, 8, 12])
def test_a_chunk_that_happens_to_fit_is_not_taken_for_the_batch(kind: type[Method], bound: int) -> None:
    images = torch.cat([X, X])[: 8 if bound == 4 else 4]  # chunks of 4, or 2 and 3 times as many as copies
    model = Net("cat", torch.cat([META, META])[:bound])
    with pytest.raises(InputError, match=rf"inputs of shape \({len(images)}, 2, 8, 8\) do not run through the model"):
        kind(model, **quick(kind))(images, 1)


def test_given_references_run_image_by_image() -> None:
    references = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = DeepSHAP(Net("cat", META[:3]), references=references).attribute(X[:3], 1)
    for i in range(3):
        alone = DeepSHAP(Any1(Net("cat", META[i : i + 1])), references=references).attribute(X[i : i + 1], 1)
        torch.testing.assert_close(found[i : i + 1], alone)


def test_doubled_network_is_the_frozen_one_twice() -> None:
    from backlit.methods.masks import doubled

    frozen = freeze(Net("added", META[:3]), X[:3])
    twice = frozen.mapped(lambda node: (doubled(node),), lambda v: torch.cat([v, v]))
    y = torch.cat([X[:3], 2 * X[:3]])
    torch.testing.assert_close(twice(y), torch.cat([frozen(X[:3]), frozen(2 * X[:3])]))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", [m for m in METHODS if issubclass(m, FittedMethod)], ids=lambda m: m.name)
def test_fitted_methods_explain_it(kind: type[FittedMethod]) -> None:
    model = Net("added", META[:1])
    generator = torch.Generator().manual_seed(4)
    data = [(torch.randn(3, 2, 8, 8, generator=generator, dtype=torch.float64), torch.arange(3)) for _ in range(30)]
    fitted = kind.fit(model, data)
    model.meta = META[:3]
    assert kind(model, fitted=fitted).attribute(X[:3], torch.arange(3)).isfinite().all()


def test_metrics_say_what_the_network_does_not_take() -> None:
    model = Net("cat", META)
    examples, maps = Examples(X, torch.zeros(N, dtype=torch.long)), {"random": Random(model)(X, 0)}
    with pytest.raises(InputError, match=r"takes these 6 images only together, and not .*expanded to len\(x\)"):
        Insertion(replacement="zero", steps=4)(model, examples, maps)
    one = Any1(Net("cat", META[:1]))
    first = Examples(X[:1], torch.zeros(1, dtype=torch.long))
    Insertion(replacement="zero", steps=4)(one, first, {"random": Random(one)(X[:1], 0)})


class Counting(nn.Module):
    """A network that counts the images that it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * 8 * 8, 3).double()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return self.fc(x.flatten(1))


@pytest.mark.parametrize(("method", "options"), [(RISE, {"masks": 64}), (Occlusion, {"window": 1, "stride": 1})])
def test_a_fault_of_the_callback_is_raised_and_nothing_runs_again(
    method: type[Passes], options: dict[str, int]
) -> None:
    steps: list[int] = []

    def stop_late(step: CopyStep) -> None:
        steps.append(step.index)
        if step.index == 60:
            raise KeyError("of the user's own")

    network = Counting().eval()
    with pytest.raises(KeyError, match="of the user's own"):
        method(network, **options, chunk=4, callback=stop_late)(X[:1])
    assert steps == [4 * i for i in range(1, 16)]
    assert network.seen.count(1) <= 4  # looks at the image itself, no copies one at a time
