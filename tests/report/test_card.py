"""Cards: what they say of a map, how faint one is drawn that holds nothing, and that any map of any image fits on one."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from backlit import LRP, Attribution, InputError, SmoothGrad, VarGrad
from backlit.methods.base import Kind
from backlit.report import card as module
from backlit.report.canvas import Canvas, fitted, plain, width_of, wrapped
from backlit.report.card import card, made_by, numbers_of, scales
from backlit.report.kinds import PALETTES, drawn, limit_of, palette_of
from backlit.report.panels import Panels
from backlit.report.trust import FAINTNESS, trust

LONG = "a class whose name goes on and on, and then some more, " * 8


def make(
    height: int = 40,
    width: int = 40,
    c: int = 3,
    *,
    values: torch.Tensor | None = None,
    kind: str = "signed",
    p: float | None = 0.9,
    label: str | None = "tabby",
    method: str = "lrp",
    **fields: object,
) -> Attribution:
    """A map that falls from the left to the right, from for to against."""
    if values is None:
        values = torch.linspace(1, -1, width).expand(1, 1, height, width) / (height * width)
    given = {
        "inputs": torch.linspace(0, 1, c * height * width).view(1, c, height, width),
        "provenance": {"method": method, "kind": kind, "model": "Net", "options": {}},
        "labels": None if label is None else (label,),
        "probability": None if p is None else torch.tensor([p]),
    }
    return Attribution(values, torch.tensor([3]), torch.tensor([12.5]), **{**given, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "panel"),
    [((224, 224), (448, 448)), ((32, 32), (256, 256)), ((4000, 3000), (1024, 768)), ((20, 400), (40, 800))],
)
def test_panels_are_twice_the_input_within_limits(size: tuple[int, int], panel: tuple[int, int]) -> None:
    assert card(make(*size), style="bare").shape == (*panel, 3)
    assert card(make(*size), style="overlay").shape == (*panel, 3)
    whole = card(make(*size))
    assert whole.shape[1] > 3 * panel[1]
    assert max(whole.shape) < 3300


@pytest.mark.parametrize("c", [1, 2, 3, 4])
@pytest.mark.parametrize("style", ["card", "overlay", "jet", "bare"])
def test_images_of_any_channels_are_drawn(c: int, style: str) -> None:
    assert card(make(c=c), style=style).dtype == np.uint8  # type: ignore[arg-type]
    assert card(make(c=c), torch.rand(c, 80, 80), style=style).ndim == 3  # type: ignore[arg-type]


def test_the_photograph_keeps_its_colours() -> None:
    red = torch.tensor([0.8, 0.2, 0.4])[:, None, None].expand(3, 300, 300)
    one = make(300, 300, values=torch.zeros(1, 1, 300, 300))
    whole = card(one, red)
    assert (whole.reshape(-1, 3) == [204, 51, 102]).all(1).sum() == 600 * 600
    silent = card(one, red, style="overlay")[300, 300].astype(int)
    assert silent[0] - silent[2] > 50  # paler under a map, and red all the same


def test_an_input_gets_its_own_colours_back_by_the_bounds_that_were_recorded() -> None:
    photo = torch.rand(1, 3, 300, 300)
    bounds = [[-2.0, -1.0, 0.0], [3.0, 2.0, 5.0]]
    low, high = (torch.tensor(b)[:, None, None] for b in bounds)
    one = make(300, 300, inputs=photo * (high - low) + low)
    told = replace(one, provenance={**one.provenance, "pixels": bounds})
    wanted = Panels(make(300, 300), photo[0], 1.0).photo
    assert np.allclose(Panels(told, None, 1.0).photo, wanted, atol=1e-5)
    assert not np.allclose(Panels(one, None, 1.0).photo, wanted, atol=1e-2)


def test_the_overlay_shows_more_of_the_map_where_it_is_stronger() -> None:
    grey = torch.full((3, 40, 40), 0.5)
    row = card(make(), grey, style="overlay")[128].astype(int)
    redness = row[:, 0] - row[:, 2]
    assert redness[0] > 100
    assert redness[-1] < -100
    assert abs(redness[128]) < 20
    assert (np.diff(redness[::7]) <= 0).all()


def test_smooth_maps_have_no_bands() -> None:
    """A quarter of a wave over 448 pixels: neighbours differ by what 8 bits can show, and no more."""
    ramp = torch.sin(torch.linspace(0, 1.5, 224)).expand(1, 1, 224, 224)
    for kind in ("signed", "one-sided", "magnitude"):
        row = card(make(224, 224, values=ramp, kind=kind), style="bare")[200].astype(int)
        steps = np.abs(np.diff(row, axis=0)).max(1)
        assert steps.max() <= 3
        assert len({tuple(colour) for colour in row.tolist()}) > 250


def test_zero_is_white_in_every_palette_and_what_a_palette_claims_is_in_its_legend() -> None:
    for kind, palette in PALETTES.items():
        assert np.allclose(palette.colour(np.zeros(1)), 1), kind
        claims = "for the class" in palette.legend.split(":")[0] and "Red speaks" in palette.legend
        assert claims == (kind in ("signed", "one-sided")), kind
        assert ("against" in palette.below) == (kind == "signed")
    assert not PALETTES["one-sided"].two_sided
    assert not PALETTES["magnitude"].two_sided
    assert set(PALETTES) == {*get_args(Kind), None}


def test_a_magnitude_is_drawn_by_the_sum_of_magnitudes() -> None:
    values = torch.tensor([1.0, -1.0, 0.5])[None, :, None, None].expand(1, 3, 8, 8)
    assert float(drawn(make(8, 8, values=values, kind="magnitude")).amax()) == 2.5
    assert float(drawn(make(8, 8, values=values)).amax()) == 0.5


def test_a_one_sided_map_that_falls_below_zero_shows_that() -> None:
    """As of a negative logit: what is against the class is not left out in silence."""
    assert palette_of(make(kind="one-sided")).two_sided
    assert not palette_of(make(kind="one-sided", values=torch.rand(1, 1, 40, 40))).two_sided


def account_of(one: Attribution, **numbers: float) -> Attribution:
    return replace(one, completeness={k: torch.tensor([v]) for k, v in numbers.items()})


def relevance(share: float, gap: float = 0.0) -> dict[str, float]:
    logit = 12.5
    return {"relevance": share * logit, "ratio": share, "biases": (1 - share) * logit - gap, "gap": gap}


def test_a_class_that_the_network_does_not_see() -> None:
    found = trust(account_of(make(p=4e-9), **relevance(1.0)))
    assert found.reasons == ("The network does not see this class: p = 0.00.",)
    assert found.word == "Near nothing."
    assert found.faintness == FAINTNESS
    assert trust(account_of(make(p=0.0011), **relevance(1.0))).faintness == 0
    assert trust(account_of(make(p=None), **relevance(1.0))).faintness == 0


def test_a_map_that_explains_next_to_nothing() -> None:
    found = trust(account_of(make(values=torch.full((1, 1, 40, 40), 1e-6)), **relevance(1e-4)))
    assert found.reasons == ("This map explains 0.01 % of the logit.",)
    assert found.share == pytest.approx(1e-4)
    assert trust(make(values=torch.zeros(1, 1, 40, 40))).reasons == ("The map is zero everywhere.",)
    assert trust(make(values=torch.full((1, 1, 40, 40), torch.nan))).word == "No map."
    small = replace(make(p=None), output=torch.tensor([1e-5]))
    assert trust(small).reasons == ("The score to explain is near nothing itself: 1e-05.",)


def test_parts_that_cancel_are_not_nothing() -> None:
    """For and against of many times the logit, whose sum is small by chance, are no faint map."""
    large = make(values=torch.linspace(1, -1, 40).expand(1, 1, 40, 40), method="gradient_x_input")
    found = trust(account_of(large, biases=12.5))
    assert not found.near_nothing
    assert found.word == "Does not add up." or found.word == "Adds up in part."


def test_dmbp_is_near_nothing_where_its_pixels_hold_less_than_a_hundredth() -> None:
    parts = {"positive": 100.0, "negative": -100.0, "nuisance": 12.5}
    faint = account_of(make(method="dmbp"), **parts, positive_image=0.01, negative_image=-0.01)
    assert trust(faint).reasons == ("This map explains 0.01 % of y+ and y−.",)
    firm = account_of(make(method="dmbp"), **parts, positive_image=50.0, negative_image=-20.0)
    assert not trust(firm).near_nothing
    assert trust(firm).share == pytest.approx(0.35)
    assert trust(firm).whole == "y+ and y−"
    assert "The pixels hold 35 % of y+ and y−" in trust(firm).account


@pytest.mark.parametrize(
    ("numbers", "word", "said"),
    [
        (relevance(0.98), "Adds up.", "accounts for 98 % of the logit, the biases for 2 %; 0 % is lost"),
        (relevance(0.2), "Adds up in part.", "20 % of the logit, the biases for 80 %"),
        (relevance(0.5, gap=3.0), "Leaks.", "24 % is lost"),
        (relevance(1.84), "Adds up with what is not in the map.", "the biases for −84 %"),
        (relevance(-11.0), "Adds up with what is not in the map.", "the biases for 12 times"),
        ({"total": 9.0, "difference": 9.0, "ratio": 1.0, "gap": 0.0}, "Adds up.", "difference from its reference"),
        ({"biases": 2.5, "gap": 0.0}, "Adds up in part.", "the biases' part of the logit, which is 20 % of it"),
        ({"unplaced": 5.0, "gap": 0.0}, "Adds up in part.", "40 % has no place"),
        ({"unplaced": -0.0, "gap": 0.0}, "Adds up in part.", "; 0 % has no place"),
        ({}, "Shows where, not how much.", "promises no share of the logit"),
    ],
)
def test_the_verdict(numbers: dict[str, float], word: str, said: str) -> None:
    found = trust(account_of(make(values=torch.full((1, 1, 40, 40), 2 / 1600)), **numbers))
    assert found.word == word
    assert said in found.account


def test_a_contrast_speaks_of_a_difference() -> None:
    plain = account_of(make(values=torch.full((1, 1, 40, 40), 2 / 1600)), **relevance(0.5))
    apart = replace(plain, provenance={**plain.provenance, "less": 3})
    assert "logit = 12.5" in numbers_of(plain)
    assert "logit difference = 12.5" in numbers_of(apart)
    assert (trust(plain).whole, trust(apart).whole) == ("the logit", "the logits' difference")
    assert "of the logits' difference, the biases" in trust(apart).account


def test_what_is_near_nothing_is_drawn_faint_whatever_the_style() -> None:
    firm, faint = make(p=0.9), make(p=1e-9)
    for style in ("bare", "overlay", "jet", "card"):
        strong, weak = (card(one, torch.full((3, 40, 40), 0.5), style=style) for one in (firm, faint))  # type: ignore[arg-type]
        zero = make(values=torch.zeros(1, 1, 40, 40))
        ground = Panels(zero, torch.full((3, 40, 40), 0.5), 1.0).overlay() if style == "overlay" else 255
        ground = np.full((256, 256, 3), 128) if style == "jet" else ground
        if style != "card":
            far = [np.abs(p[:256].astype(int) - ground)[:, :20].sum() for p in (strong, weak)]
            assert far[1] < 0.55 * far[0]
        assert weak.shape[0] > strong.shape[0] or style == "bare"  # the words
    bars = [Panels(firm, None, None, faintness).bar(64, 4) for faintness in (0.0, FAINTNESS)]
    assert bars[1][0, -1, 1] > bars[0][0, -1, 1] + 100  # the bar is as faint as the map


def test_a_map_of_nan_is_said_and_drawn_as_none() -> None:
    broken = make(values=torch.full((1, 1, 40, 40), torch.nan))
    grey = card(broken, style="bare").astype(int)
    assert np.ptp(grey, axis=2).max() == 0
    assert card(broken).shape[0] > 256
    photo = torch.rand(3, 40, 40)
    assert np.array_equal(card(broken, photo, style="overlay")[:256], np.rint(Panels(make(), photo, 1.0).photo * 255))


def test_all_classes_of_an_image_share_a_scale_and_each_method_has_its_own() -> None:
    strong, weak = make(), make(values=make().values / 100)
    other = make(values=make().values * 7, method="deeplift")
    own = [limit_of(one)[0] for one in (strong, weak, other)]
    assert scales([strong, weak, other]) == [own[0], own[0], own[2]]
    assert scales([strong, weak, other], "own") == own
    assert scales([]) == []
    unseen = replace(weak, probability=torch.tensor([1e-9]))  # on a shared scale it is weak already: no fainter
    assert np.array_equal(card(unseen, scale=own[0], style="bare"), card(weak, scale=own[0], style="bare"))
    pale = card(weak, scale=scales([strong, weak])[1], style="bare").astype(int)
    assert pale.min() > 245
    with pytest.raises(InputError, match="how must be 'image' or 'own', but is 'all'"):
        scales([strong], "all")
    with pytest.raises(InputError, match="explanation must be of one image, but is of 2"):
        scales([Attribution.cat([strong, strong])])


def test_what_the_network_does_not_see_has_no_say_in_the_scale() -> None:
    seen, unseen = make(), make(values=make().values * 100, p=1e-9)
    own = [limit_of(one)[0] for one in (seen, unseen)]
    assert scales([unseen, seen]) == [own[0], own[0]]
    assert scales([unseen, unseen]) == [own[1], own[1]]


def test_a_map_of_regions_lets_the_photograph_be_seen() -> None:
    grey = torch.full((3, 224, 224), 0.5)
    region = torch.sin(torch.linspace(0, 3.14, 224)).expand(1, 1, 224, 224)
    noise = torch.rand(1, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    peaks = [
        card(make(224, 224, values=v, kind="one-sided"), grey, style="overlay")[..., 1].min() for v in (region, noise)
    ]
    assert peaks[0] > peaks[1] + 20  # less red over the grey


def test_a_weak_map_on_a_shared_scale_says_how_far_it_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    write = Canvas.text
    monkeypatch.setattr(
        module.Canvas, "text", lambda self, line, *a, **k: (said.append(line), write(self, line, *a, **k))
    )
    card(make(), scale=limit_of(make())[0] * 50)
    assert any("this map reaches 2%" in line for line in said)
    assert any(line == "tabby" for line in said)
    assert any("p = 0.90" in line and "logit = 12.5" in line for line in said)
    assert any("LRP" in line and "Net" in line for line in said)
    said.clear()
    card(replace(make(), provenance={**make().provenance, "less": 3}), scale=limit_of(make())[0] * 2)
    assert any("Red speaks for the first class, blue for the second." in line for line in said)
    assert any("this map reaches 50%" in line for line in said)


def test_a_bar_has_numbers_that_do_not_run_into_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, str]] = []
    write = Canvas.text

    def spy(self: Canvas, line: str, *a: Any, **k: Any) -> None:
        said.append((line, k.get("align", "left")))
        write(self, line, *a, **k)

    monkeypatch.setattr(Canvas, "text", spy)
    card(make(224, 224))
    assert ("0", "middle") in said
    said.clear()
    card(make(400, 20))
    assert ("0", "middle") not in said
    said.clear()
    card(make(values=torch.full((1, 1, 40, 40), torch.nan)))
    assert not any(align == "right" and "for" in line for line, align in said)


def test_numbers_and_makers() -> None:
    assert numbers_of(make(p=4e-9)).startswith("p = 0.00 (4e-09)")
    assert numbers_of(make(p=None)) == "logit = 12.5"
    one = make(method="dmbp")
    told = replace(one, provenance={**one.provenance, "options": {"steps": 20, "lr": 0.01, "seed": 4}})
    assert made_by(told) == "DMBP, steps=20   ·   Net"
    assert made_by(make(method="own")) == "own   ·   Net"
    assert module.class_of(make(label=None)) == "class 3"


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (lambda net: None, "SmoothGrad, samples=2   ·   Sequential"),
        (lambda net: "deep_taylor", "SmoothGrad of Deep Taylor, samples=2   ·   Sequential"),
        (lambda net: LRP(net, preset="z_plus"), "SmoothGrad of LRP, samples=2, of.preset=z_plus   ·   Sequential"),
        (
            lambda net: VarGrad(net, of=LRP, samples=3),
            "SmoothGrad of VarGrad of LRP, samples=2, of.samples=3   ·   Sequential",
        ),
    ],
)
def test_the_title_tells_which_method_is_averaged(of: Any, said: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    found = SmoothGrad(net, of=of(net), samples=2)(torch.rand(1, 3, 8, 8), 1)
    assert made_by(found) == said


@pytest.mark.parametrize("label", [LONG, "x" * 5000, "a\nb\tc\x00\u202e", "", "斑马", "<b>&amp;"])
def test_any_class_name_fits(label: str) -> None:
    assert card(make(label=label)).shape == card(make(label="tabby")).shape
    narrow = card(make(400, 20, label=label))
    assert narrow.shape[1] < 1700


def test_text_is_cut_where_the_room_ends() -> None:
    assert width_of(fitted(LONG, 16, 200), 16) <= 200
    assert fitted("short", 16, 200) == "short"
    assert fitted(LONG, 16, 200).endswith("…")
    rows = wrapped(LONG, 16, 300, most=2)
    assert len(rows) == 2
    assert rows[1].endswith("…")
    assert all(width_of(row, 16) <= 300 for row in rows)
    assert plain(" a\n b\u202e\x00 ") == "a b"


def test_the_bytes_are_the_same_in_every_process_without_a_display_or_fonts_of_the_system(tmp_path: object) -> None:
    code = (
        "import sys, hashlib; sys.path[:0] = ['tests/report', 'tests']; from test_card import make; "
        "from backlit.report.card import card; print(hashlib.sha256(card(make()).tobytes()).hexdigest())"
    )
    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "FONTCONFIG_PATH": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**bare, "HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == hashlib.sha256(card(make()).tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"style": "poster"}, "style must be one of card, overlay, jet, bare, but is 'poster'"),
        ({"scale": -1}, "scale must be a number from 0, or None for the map's own, but is -1"),
        ({"scale": float("nan")}, "scale must be a number from 0"),
        ({"picture": torch.zeros(3, 40, 80)}, r"picture must have the shape of the map, 40 x 40, at any size, but is 40 x 80"),
        ({"picture": torch.zeros(3, 40, 40) + 2}, r"picture must hold pixels from 0 to 1, but holds 2 to 2.*Preprocess\.restore"),
        ({"picture": torch.zeros(40, 40)}, r"picture must be a floating-point tensor \(c, h, w\).*Preprocess\.picture"),
        ({"picture": "cat.jpg"}, "picture must be a floating-point tensor .* but is str"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        card(make(), **change)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"explanation must be of one image, but is of 2.*explanation\[0\]"):
        card(Attribution.cat([make(), make()]))
