"""What the app shows, without a browser: maps, curves, what is kept and hidden, forms, code that runs."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import backlit
from backlit import InputError
from backlit.app.drawing import curves_picture, curves_text, facts_html, link_to
from backlit.app.fields import filled_in, option_fields
from backlit.app.networks import Networks
from backlit.app.view import (
    MOST_PASSES,
    POINTS,
    Ask,
    MapView,
    Progress,
    StoppedByUser,
    as_python,
    chances,
    curves,
    explain,
    facts,
    hidden,
    kept,
    overlay,
    picture_of,
    read_image,
    shared_scale,
)
from backlit.methods import DMBP, LPR, METHODS, GradCAM, Method
from backlit.metrics import Deletion, Examples, Insertion
from backlit.models import LoadedModel
from backlit.models.digits import digits_images


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return backlit.load_model("digits")


@pytest.fixture(scope="module")
def digit() -> Image.Image:
    return Image.fromarray(digits_images()[0][3].numpy())


@pytest.fixture(scope="module")
def x(loaded: LoadedModel, digit: Image.Image) -> Tensor:
    return read_image(loaded, digit)


def test_the_likeliest_classes_come_first(loaded: LoadedModel, x: Tensor) -> None:
    with torch.no_grad():
        wanted = loaded.network(x).softmax(1)[0]
    found = chances(loaded, x)
    assert [c.index for c in found] == wanted.argsort(descending=True)[:5].tolist()
    assert [c.probability for c in found] == pytest.approx(wanted.sort(descending=True).values[:5].tolist())


def test_a_map_is_the_methods(loaded: LoadedModel, x: Tensor) -> None:
    name = chances(loaded, x)[0].name
    shown = explain(loaded, x, Ask("grad_cam", name))
    assert shown.explanation is not None
    assert torch.equal(shown.explanation.values, GradCAM(loaded)(x, name).values)
    against = explain(loaded, x, Ask("lrp(preset=epsilon)", "3", "5"))
    assert against.explanation is not None
    wanted = backlit.LRP(loaded, preset="epsilon")(x, "3 - 5").values
    assert torch.equal(against.explanation.values, wanted)
    assert ("cost", f"{against.seconds:.2f} s, 3 forward passes") in facts(against)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("nope", "method must be one of"),
        ("rise", f"RISE would cost 8,001 forward passes, over {MOST_PASSES:,}"),
        ("lpr(steps=0)", "steps must be a positive integer"),
        ("legrad", "attention"),
    ],
)
def test_a_map_that_cannot_be_had_says_why(loaded: LoadedModel, x: Tensor, method: str, said: str) -> None:
    shown = explain(loaded, x, Ask(method, "3"))
    assert shown.explanation is None
    assert said in shown.failed
    assert facts(shown) == [("no map", shown.failed)]
    assert explain(loaded, x, Ask("saliency", "nope")).failed.startswith("target")


def test_slow_methods_tell_their_steps_and_stop(loaded: LoadedModel, x: Tensor) -> None:
    told: list[tuple[int, int]] = []
    explain(loaded, x, Ask("dmbp(steps=3)", "3"), Progress(lambda step, of: told.append((step, of))))
    assert told == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(StoppedByUser):
        explain(loaded, x, Ask("lpr(steps=50)", "3"), Progress(stop=lambda: True))


def test_curves_are_the_metrics(loaded: LoadedModel, x: Tensor) -> None:
    shown = explain(loaded, x, Ask("gradient_x_input", "3"))
    assert shown.explanation is not None
    of = curves(loaded, x, shown)
    examples = Examples(x, torch.tensor([3]))
    for values, kind in ((of.insertion, Insertion), (of.deletion, Deletion)):
        wanted = kind(steps=POINTS)(loaded.network, examples, {"a": shown.explanation}).curves["a"][0]
        assert values == pytest.approx(wanted)
    assert len(of.positions) == POINTS + 1
    assert f"the probability is {of.insertion[4]:.2f}; without them {of.deletion[4]:.2f}" in curves_text(of, 0.2)
    assert (curves_picture(of, 0.2) != curves_picture(of, 0.8)).any()


def test_the_best_pixels_are_kept(loaded: LoadedModel, x: Tensor) -> None:
    shown = explain(loaded, x, Ask("gradient_x_input", "3"))
    assert shown.explanation is not None
    picture = picture_of(loaded, x)
    whole, none, some = (kept(shown, picture, share) for share in (1.0, 0.0, 0.25))
    assert (whole == np.asarray((picture.expand(3, -1, -1) * 255).round().byte().permute(1, 2, 0))).all()
    heat = shown.explanation.heatmap()[0, 0]
    order = sorted(range(heat.numel()), key=lambda i: -float(heat.flatten()[i]))  # of equal pixels the first
    best = torch.zeros(heat.numel(), dtype=torch.bool)
    best[order[: heat.numel() // 4]] = True
    best = best.view_as(heat)
    assert (some[best.numpy()] == whole[best.numpy()]).all()
    assert (some[~best.numpy()] == none[~best.numpy()]).all()


def test_paint_hides_or_reveals(loaded: LoadedModel, x: Tensor) -> None:
    paint = np.zeros((64, 64), np.uint8)
    paint[:32] = 200  # the upper half, of a picture of twice the size
    under, alone = (hidden(loaded, x, paint, reveal=reveal) for reveal in (False, True))
    assert torch.equal(under[:, :, 16:], x[:, :, 16:])
    assert not under[:, :, :16].any()
    assert torch.equal(under + alone, x)


def test_signs_and_scales_of_an_overlay(loaded: LoadedModel, x: Tensor) -> None:
    shown = explain(loaded, x, Ask("gradient_x_input", "3"))
    picture = picture_of(loaded, x)
    both, plus, minus = (overlay(shown, picture, opacity=1, sign=s, scale=None) for s in ("both", "for", "against"))
    assert (both != plus).any()
    assert (plus != minus).any()
    nothing = overlay(shown, picture, opacity=0, sign="both", scale=None)
    assert (overlay(shown, picture, opacity=1, sign="both", scale=1e9) == nothing).all()
    small = explain(loaded, x, Ask("saliency", "3"))
    assert shared_scale([shown, small]) == max(shared_scale([one]) for one in (shown, small))  # type: ignore[type-var]
    assert shared_scale([MapView(Ask("a", "b"), failed="no")]) is None


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_form_left_alone_changes_nothing(method: type[Method]) -> None:
    fields = option_fields(method)
    assert filled_in(method, {field.name: field.default for field in fields}) == {}
    for field in fields:
        assert field.help
        assert (field.kind == "choice") == bool(field.choices)


def test_a_form_gives_options_of_their_kinds() -> None:
    given = {"steps": "20", "mask": "gaussian", "reference": False, "alpha": 0.5, "lr": None}
    assert filled_in(LPR, given) == {"steps": 20, "mask": "gaussian", "reference": False, "alpha": 0.5}
    assert type(filled_in(LPR, given)["steps"]) is int
    with pytest.raises(InputError, match="steps must be a number, but is 'many'"):
        filled_in(DMBP, {"steps": "many"})
    with pytest.raises(InputError, match="mask must be 'sigmoid' or 'gaussian', but is 'round'"):
        filled_in(LPR, {"mask": "round"})


def test_the_code_runs_and_gives_the_same_maps(
    loaded: LoadedModel, digit: Image.Image, x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    digit.convert("RGB").save("photo.jpg", quality=100, subsampling=0)
    asks = [Ask("lpr(steps=2)", "3"), Ask("fast", "3", "5")]
    exec(as_python("digits", "", asks), {})
    again = read_image(loaded, Image.open("photo.jpg"))
    for ask, name in zip(asks, ("lpr.steps-2", "dmbp_fast"), strict=True):
        shown = explain(loaded, again, ask)
        assert shown.explanation is not None
        saved = backlit.Attribution.load(f"{name}.safetensors")
        assert torch.equal(saved.values, shown.explanation.values)


def test_texts_are_escaped() -> None:
    assert "&lt;b&gt;" in facts_html(MapView(Ask("a", "b"), failed="<b>"))
    assert (
        link_to("n", [Ask("lrp", "a&b"), Ask("fast", "a&b")]) == "?network=n&target=a%26b&against=&methods=lrp%3Bfast"
    )


def test_one_network_is_in_memory_and_one_request_uses_it() -> None:
    loads: list[str] = []

    def loader(name: str) -> LoadedModel:
        loads.append(name)
        return dataclasses.replace(backlit.load_model("digits"), name=name)

    networks = Networks({name: lambda name=name: loader(name) for name in ("a", "b")})
    inside, most = [0], [0]

    def work(name: str) -> None:
        for _ in range(20):
            with networks.use(name) as lent:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                assert lent.name == name
                inside[0] -= 1

    threads = [threading.Thread(target=work, args=(name,)) for name in "abab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    loads.clear()
    for name in ("a", "a", "b", "b"):
        with networks.use(name):
            pass
    assert loads[-1:] == ["b"]
    assert len(loads) <= 2
    with pytest.raises(InputError, match="network must be one of a, b, but is 'c'"), networks.use("c"):
        pass
