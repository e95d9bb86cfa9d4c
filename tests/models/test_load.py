from __future__ import annotations

import sys

import pytest
import torch

from backlit._errors import FileError, InputError
from backlit.models import fingerprint, load_model, model_names


def test_names() -> None:
    pytest.importorskip("torchvision")
    names = model_names()
    assert names[:3] == ("digits", "cifar_resnet20", "cifar_cnn")
    assert {"squeezenet1_0", "resnet50", "vit_b_16"} < set(names)
    assert "fasterrcnn_resnet50_fpn" not in names


def test_names_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert model_names() == ("digits", "cifar_resnet20", "cifar_cnn")


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "torch.bfloat16"])
def test_dtype(dtype) -> None:
    model = load_model("digits", dtype=dtype)
    assert {p.dtype for p in model.network.parameters()} == {torch.bfloat16}


def test_default_dtype_and_device() -> None:
    model = load_model("digits")
    assert {(p.dtype, p.device.type) for p in model.network.parameters()} == {(torch.float32, "cpu")}


@pytest.mark.parametrize(("dtype", "match"), [("float", "Did you mean 'float"), (torch.int64, "found 'int64'")])
def test_other_dtypes(dtype, match: str) -> None:
    with pytest.raises(InputError, match=f"dtype: must be one of float32, float64, bfloat16, float16.*{match}"):
        load_model("digits", dtype=dtype)


def test_unknown_device() -> None:
    with pytest.raises(InputError, match=r"device: 'gpu' cannot be used \(.*\)\. At hand: cpu"):
        load_model("digits", device="gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_missing_device() -> None:
    with pytest.raises(InputError, match=r"device: 'cuda' cannot be used \(.*\)\. At hand: cpu"):
        load_model("digits", device="cuda")


def test_preprocessing_is_overridden() -> None:
    model = load_model("digits", size=48, mean=0.5, std=[0.25], interpolation="bicubic")
    assert model.preprocess.size == (48, 48)
    assert (model.preprocess.mean, model.preprocess.std) == ((0.5,), (0.25,))
    assert model.preprocess.interpolation == "bicubic"


def test_caller_overrules_the_file(tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    load_model("digits", size=48, mean=0.5).save(path)
    from_file = load_model("digits", weights=path)
    assert (from_file.preprocess.size, from_file.preprocess.mean) == ((48, 48), (0.5,))
    overruled = load_model("digits", weights=path, mean=0.25)
    assert (overruled.preprocess.size, overruled.preprocess.mean) == ((48, 48), (0.25,))


def test_misspelt_option() -> None:
    with pytest.raises(InputError, match=r"meen: not a preprocessing option.*Did you mean 'mean'"):
        load_model("digits", meen=0.5)


def test_weights_file_is_checked_first() -> None:
    with pytest.raises(FileError, match=r"'no\.safetensors' must be a \.safetensors file, found nothing there"):
        load_model("digits", weights="no.safetensors")


def test_random_weights_repeat_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = fingerprint(load_model("digits", weights="random").network)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert fingerprint(load_model("digits", weights="random").network) == first
    assert fingerprint(load_model("digits").network) != first
