"""A name finds what it names, and nothing that looks like it."""

from __future__ import annotations

import pytest
import torch

import backlit
from backlit import InputError, find_method
from backlit.cli.settings import methods, methods_and_metrics
from backlit.methods import BASELINES, METHODS
from backlit.metrics import METRICS
from backlit.metrics.lookup import find_metric

ALL = METHODS + BASELINES
SIGNS = ["+", "++", ".", "!", "2", "?", "*", "/", "’", "é", "s", "\0", "×", "²"]


def _spellings(name: str, class_name: str) -> list[str]:
    words = name.split("_")
    return [name, class_name, name.upper(), "-".join(words), " ".join(words).title(), "".join(words), f" {name} "]


@pytest.mark.parametrize("kind", [*ALL, *METRICS], ids=lambda kind: kind.name)
def test_case_dashes_underscores_and_spaces_are_left_aside(kind: type) -> None:
    for spelling in _spellings(kind.name, kind.__name__):
        found = find_metric(spelling) if kind in METRICS else find_method(spelling, ALL)
        assert found is kind, spelling


@pytest.mark.parametrize("kind", [*ALL, *METRICS], ids=lambda kind: kind.name)
def test_every_other_sign_counts(kind: type) -> None:
    places = (0, 3, len(kind.name))
    for name in (kind.name[:at] + sign + kind.name[at:] for at in places for sign in SIGNS):
        with pytest.raises(InputError, match=r"must be one of .*Did you mean"):
            find_metric(name) if kind in METRICS else find_method(name, ALL)


@pytest.mark.parametrize(
    "name", ["grad.cam", "gradcam++", "grad_cam2", "lrp!", "eigen_cam", "", "-", "_", 3, None, ["dmbp"]]
)
def test_a_name_that_is_none_is_refused(name: object) -> None:
    with pytest.raises(InputError, match=r"method must be one of .*but is"):
        find_method(name, ALL)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"metric must be one of .*but is"):
        find_metric(name)  # type: ignore[arg-type]


def test_the_command_line_and_the_function_refuse_a_neighbours_name(tmp_path) -> None:
    with pytest.raises(InputError, match=r"but is 'gradcam\+\+'. Did you mean 'grad_cam'"):
        methods("gradcam++", [], 0)
    with pytest.raises(InputError, match=r"but is 'insertion\+'. Did you mean 'insertion'"):
        methods_and_metrics("dmbp", "insertion+", [], 0)
    network, examples = _digits()
    with pytest.raises(InputError, match=r"but is 'GradCAM\+\+'"):
        backlit.compare(network, examples, ["GradCAM++"], ["insertion"], out=tmp_path / "out")
    with pytest.raises(InputError, match=r"but is 'lrp.z'"):
        backlit.explain_func(network.network, examples.inputs.numpy(), 1, method="lrp.z")


def _digits():
    model = backlit.load_model("digits")
    images = backlit.models.digits.digits_images().images[:1]
    return model, backlit.metrics.Examples(model.preprocess.batch(images), torch.tensor([1]))


@pytest.mark.parametrize("option", ["dmbp+.steps=3", "dm.bp.steps=3", ".steps=3", "grad.cam.steps=3", "dmbp2.steps=3"])
def test_the_owner_of_an_option_is_named_exactly(option: str) -> None:
    with pytest.raises(InputError, match=r"fits nothing that was asked for"):
        methods("dmbp", [option], 0)


@pytest.mark.parametrize("option", ["dmbp.steps=3", "DMBP.steps=3", "steps=3", "D-M-B-P.steps=3"])
def test_the_owner_of_an_option_may_be_spelled_as_a_method(option: str) -> None:
    assert methods("dmbp", [option], 0)[0].options["steps"] == 3


@pytest.mark.parametrize("name", ["resnet-18", "ResNet18+", "digits2", "dig.its", "resnet18 "])
def test_a_models_name_is_exact(name: str) -> None:
    with pytest.raises(InputError, match=r"model: no model named"):
        backlit.load_model(name)
