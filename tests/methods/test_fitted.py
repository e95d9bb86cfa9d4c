"""Files of what was fitted, changed by hand; networks and arguments at the edges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _fit_networks import cnn, drawn, mlp, sequential
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import MIPIN, FileError, InputError, PatternAttribution, PatternNet
from backlit._packed import pack
from backlit.inverse import Fitted

Tensors = dict[str, Tensor]


def _all(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any], Tensors], None]:
    return lambda content, tensors: tensors.update({k: change(t).contiguous() for k, t in tensors.items()})


TAMPERED: dict[str, tuple[Callable[[dict[str, Any], Tensors], object], str]] = {
    "more classes": (lambda c, t: c.update(classes=[0, 1, 2, 3]), "has not one row for each of 4 classes"),
    "fewer classes": (lambda c, t: c.update(classes=[0, 1]), "has not one row for each of 2 classes"),
    "classes of text": (lambda c, t: c.update(classes=["0", "1", "2"]), "no whole numbers"),
    "no list of classes": (lambda c, t: c.update(classes=3), ""),
    "a class twice": (lambda c, t: c.update(classes=[0, 0, 2]), "some twice"),
    "no classes": (lambda c, t: c.update(classes=[]), "its classes are none"),
    "no start": (lambda c, t: c["facts"].pop("start"), "its facts name no start"),
    "start of None": (lambda c, t: c["facts"].update(start=None), "its facts name no start"),
    "facts as a list": (lambda c, t: c.update(facts=[]), "its facts name no start"),
    "kind": (lambda c, t: c.update(kind=1), "its kind and network are no text"),
    "network": (lambda c, t: c.update(network=None), "its kind and network are no text"),
    "sizes": (lambda c, t: c.update(input_shapes=None), ""),
    "sizes of text": (lambda c, t: c.update(input_shapes=["ab"]), "no whole numbers"),
    "rows cut": (_all(lambda t: t[:2]), "has not one row for each of 3 classes"),
    "numbers not finite": (_all(lambda t: t * torch.nan), "holds other than finite numbers"),
    "whole numbers": (_all(lambda t: t.long()), "holds other than finite numbers"),
}


def _written(path: Path, change: Callable[[dict[str, Any], Tensors], object]) -> Path:
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    content = json.loads(metadata["content"])
    change(content, tensors)
    path.write_bytes(pack("backlit.fitted", tensors, {"content": json.dumps(content)}))
    return path


@pytest.mark.parametrize("name", TAMPERED)
def test_damaged_files_are_refused_when_they_are_read(name: str, tmp_path: Path) -> None:
    change, message = TAMPERED[name]
    path = tmp_path / "inverse.safetensors"
    MIPIN.fit(cnn(), [drawn(30, 2, 6, 6)], out=path)
    with pytest.raises(FileError, match=rf"^fitted: the content of .* is damaged \(.*{message}.*\)\. Fit again"):
        MIPIN(cnn(), fitted=_written(path, change))


def test_tensors_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    net, x, path = cnn(), drawn(30, 2, 6, 6), tmp_path / "inverse.safetensors"
    MIPIN.fit(net, [x], out=path)
    cut = _written(path, lambda c, t: t.update({"linear[0]/bias": t["linear[0]/bias"][:, :7].contiguous()}))
    with pytest.raises(InputError, match=r"must hold a bias of shape \(3, 20\) for linear\[0\], but it is \(3, 7\)"):
        MIPIN(net, fitted=cut)(x[:2], 1)
    MIPIN.fit(net, [x], out=path)
    without = _written(path, lambda c, t: c["layers"].update({"linear[0]": ["weight"]}))
    with pytest.raises(InputError, match=r"must hold a bias of shape \(3, 20\) for linear\[0\], but it is missing"):
        MIPIN(net, fitted=without)(x[:2], 1)


class _Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", drawn(3, 12))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.w)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [MIPIN, PatternNet, PatternAttribution])
def test_weights_may_be_buffers(method: type[MIPIN | PatternNet]) -> None:
    net, x = _Buffers().eval(), drawn(60, 3, 2, 2)
    for dtype in (torch.float64, torch.float32):
        learned = method.fit(net.to(dtype), [x])  # the data are cast to it
        assert learned.layers["linear[0]"][next(iter(learned.layers["linear[0]"]))].dtype == dtype
        assert float(method(net, fitted=learned).attribute(x[:3].to(dtype), 1).abs().max()) > 0


@pytest.mark.parametrize("method", [MIPIN, PatternNet])
def test_parameters_are_placed_once_for_each_dtype(
    method: type[MIPIN | PatternNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = cnn(), drawn(30, 2, 6, 6)
    learned, copies = method.fit(net, [x]), []
    to = Fitted.to
    monkeypatch.setattr(Fitted, "to", lambda self, *where: copies.append(where) or to(self, *where))
    explain = method(net, fitted=learned)
    for _ in range(3):
        explain(x[:2], 1)
    net.float()
    assert explain(x[:2].float(), 1).values.dtype == torch.float32
    assert [dtype for _, dtype in copies] == [torch.float64, torch.float32]


class _One(nn.Module):
    """Reads the first of its two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 3).double()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("method", [MIPIN, PatternNet, PatternAttribution])
def test_an_input_that_nothing_reads_gets_zeros_for_each_target(method: type[MIPIN | PatternNet]) -> None:
    net, x, y = _One().eval(), drawn(60, 3, 2, 2), drawn(60, 1, 5, 5)
    learned = method.fit(net, [((x, y), torch.arange(60) % 3)])
    found = method(net, fitted=learned).each((x[:2], y[:2]), [[0, 1, 2], [2, 1, 0]])
    for one, other in found:
        assert other.values.shape == (2, 1, 5, 5)
        assert not bool(other.values.any())
        assert float(one.values.abs().max()) > 0


def test_a_feature_map_that_the_part_begins_with_is_gated_and_an_image_is_not() -> None:
    net, x = cnn(), drawn(30, 2, 6, 6)
    features = net[:5](x[:4])
    assert bool((features == 0).any())
    for signal in MIPIN(net, fitted=MIPIN.fit(net, [x], start="4")).signals(x[:4], 1):
        assert torch.equal(signal != 0, features != 0)
    dense, z = mlp(), drawn(30, 3, 2, 2)
    method = MIPIN(dense, fitted=MIPIN.fit(dense, [z]))
    z[:4, :, 1] = 0
    for signal in method.signals(z[:4], 1):
        assert bool((signal != 0).all())


def test_signals_take_what_a_call_takes() -> None:
    net, x = cnn(), drawn(30, 2, 6, 6)
    method = MIPIN(net, fitted=MIPIN.fit(net, [x], start=None))
    expected = method.signals(x[:2], torch.tensor([1, 1]))
    for target in (1, [1, 1], np.int64(1), np.array([1, 1])):
        for ours, theirs in zip(method.signals(x[:2], target), expected, strict=True):
            assert torch.equal(ours, theirs)
    predicted = method.signals(x[:2], net(x[:2]).argmax(1))
    assert all(torch.equal(a, b) for a, b in zip(method.signals(x[:2]), predicted, strict=True))
    for arguments, message in (
        ((x[:2], 3), "target must be a class index from 0 to 2, but is 3"),
        ((x[:2], -1), "target must be a class index from 0 to 2, but is -1"),
        ((x[:2], [1]), r"target must be one index or one per image \(2\)"),
        ((x[:2].float(), 1), "inputs must have the model's dtype torch.float64, but are torch.float32"),
        ((x[0], 1), "inputs must be images of shape"),
        ((torch.full_like(x[:1], torch.nan), 1), "inputs must be finite"),
    ):
        with pytest.raises(InputError, match=message):
            method.signals(*arguments)  # type: ignore[arg-type]


def test_the_source_signal_of_a_feature_map_is_drawn_with_its_signs_and_the_map_without() -> None:
    net, x = sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3)), drawn(30, 2, 6, 6)
    method = MIPIN(net, fitted=MIPIN.fit(net, [x], start="0"))
    source, attribution = method.signals(x[:4], 1)
    found = method(x[:4], 1)
    for ours, signal in ((found.parts["source"], source), (found.values, attribution.relu())):
        torch.testing.assert_close(ours, F.interpolate(signal.mean(1, keepdim=True), (6, 6), mode="bilinear"))
    assert bool((source.mean(1) < 0).any())


def test_a_file_and_what_was_read_from_it_are_the_same_option(tmp_path: Path) -> None:
    net, x = cnn(), drawn(30, 2, 6, 6)
    fitted = MIPIN.fit(net, [x], out=tmp_path / "a")
    of_object, of_file = MIPIN(net, fitted=fitted)(x[:2], 1), MIPIN(net, fitted=tmp_path / "a")(x[:2], 1)
    assert of_object.provenance["options"] == of_file.provenance["options"]
    other = MIPIN(net, fitted=MIPIN.fit(net, [x[1:]]))(x[:2], 1)
    assert other.provenance["options"] != of_file.provenance["options"]
    with torch.no_grad():
        next(iter(fitted.layers["linear[0]"].values())).view(-1)[0] += 1  # what is changed in place is another one
    assert MIPIN(net, fitted=fitted)(x[:2], 1).provenance["options"] != of_object.provenance["options"]
