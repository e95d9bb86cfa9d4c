from __future__ import annotations

import hashlib
import sys

import pytest
import torch
from safetensors.torch import save_file

from backlit._errors import FileError, InputError, ModelStateError
from backlit.models import load_model

models = pytest.importorskip("torchvision.models")
NAME = "squeezenet1_1"


@pytest.fixture(name="state", scope="module")
def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return models.get_model(NAME, weights=None).state_dict()


@pytest.fixture(name="cache")
def _cache(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("tried to download"))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_preset_is_understood(name: str) -> None:
    from backlit.models.torchvision_source import _preprocess

    transform = models.get_model_weights(name).DEFAULT.transforms()
    preprocess = _preprocess(transform)
    assert [preprocess.size[0]] == transform.crop_size
    assert preprocess.interpolation == transform.interpolation.value


def test_own_preprocessing_and_names_without_a_download(cache) -> None:
    model = load_model("efficientnet_b0", weights="random")
    assert (model.preprocess.size, model.preprocess.resize) == ((224, 224), 256)
    assert model.preprocess.interpolation == "bicubic"
    assert model.class_index("Tabby") == 281
    assert not model.network.training


def test_refuses_random_weights_unasked(cache) -> None:
    with pytest.raises(
        InputError,
        match=r"resnet18 has no file given, and torchvision's default weights are not at '.*/resnet18-.*pth'.*"
        r"Ways out: weights='FILE.safetensors'; download=True .--download on the command line.*"
        r"weights='random'",
    ):
        load_model("resnet18")


def test_state_from_a_file(state, tmp_path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    model = load_model(NAME, weights=tmp_path / "w.safetensors", size=64)
    twin = models.get_model(NAME, weights=None).eval()
    twin.load_state_dict(state)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(model.network(x), twin(x))
    assert len(model.class_names) == 1000


@pytest.mark.parametrize(("name", "final"), [("squeezenet1_1", "classifier.1"), ("densenet121", "classifier")])
def test_other_number_of_classes(name: str, final: str, tmp_path) -> None:
    network = models.get_model(name, weights=None, num_classes=7)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    model = load_model(name, weights=tmp_path / "w.safetensors")
    assert model.class_names == tuple(f"class {i}" for i in range(7))
    assert torch.equal(model.network.get_parameter(f"{final}.bias"), network.get_parameter(f"{final}.bias"))


def test_state_of_another_network(state, tmp_path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"does not fit SqueezeNet: .*missing.*unexpected.*of another shape"):
        load_model("squeezenet1_0", weights=tmp_path / "w.safetensors")


def test_nan(state, tmp_path) -> None:
    bad = {**state, "features.0.bias": torch.full((64,), torch.nan)}
    save_file(bad, tmp_path / "w.safetensors")
    with pytest.raises(ModelStateError, match=r"'features\.0\.bias' of .* has 64 NaN or Inf of 64 values"):
        load_model(NAME, weights=tmp_path / "w.safetensors")


def _publish(monkeypatch: pytest.MonkeyPatch, cache, content: object) -> str:
    """Put ``content`` in the cache as the default weights of NAME, under the name that its hash demands."""
    torch.save(content, cache / "tmp")
    digest = hashlib.sha256((cache / "tmp").read_bytes()).hexdigest()[:8]
    name = f"{NAME}-{digest}.pth"
    (cache / "tmp").rename(cache / name)
    weights = models.get_model_weights(NAME).DEFAULT
    monkeypatch.setattr(type(weights), "url", property(lambda self: f"scheme://host/{name}"))
    return name


def test_state_from_torchs_cache(state, cache, monkeypatch: pytest.MonkeyPatch) -> None:
    _publish(monkeypatch, cache, state)
    model = load_model(NAME)
    assert torch.equal(model.network.get_parameter("classifier.1.bias"), state["classifier.1.bias"])


def test_damaged_cache(state, cache, monkeypatch: pytest.MonkeyPatch) -> None:
    name = _publish(monkeypatch, cache, state)
    (cache / name).write_bytes((cache / name).read_bytes()[:-1])
    with pytest.raises(
        FileError, match=r"is not the file torchvision published .sha256 .*Delete it and download it again"
    ):
        load_model(NAME)


def test_cache_with_objects_in_it_is_not_unpickled(cache, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    _publish(monkeypatch, cache, {"features.0.weight": Bomb()})
    with pytest.raises(FileError, match=r"is damaged or holds more than tensors\. Delete it"):
        load_model(NAME)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("auxiliary", [True, False])
def test_auxiliary_heads(name: str, auxiliary: bool, tmp_path) -> None:
    network = models.get_model(
        name, weights=None, aux_logits=auxiliary, transform_input=True, init_weights=False
    ).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    model = load_model(name, weights=tmp_path / "w.safetensors")
    x = torch.rand(1, 3, *model.preprocess.size)
    with torch.no_grad():
        output = model.network(x)
        assert isinstance(output, torch.Tensor)
        assert torch.equal(output, network(x))


def test_layouts_of_old_checkpoints(tmp_path) -> None:
    network = models.get_model("densenet121", weights=None)
    old = {n.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): v for n, v in network.state_dict().items()}
    assert old.keys() != network.state_dict().keys()
    save_file(old, tmp_path / "w.safetensors")
    model = load_model("densenet121", weights=tmp_path / "w.safetensors")
    first = "features.denseblock1.denselayer1.conv2.weight"
    assert torch.equal(model.network.get_parameter(first), network.get_parameter(first))


def test_old_transformer_layout(tmp_path) -> None:
    network = models.get_model("vit_b_32", weights=None)
    old = {
        n.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): v
        for n, v in network.state_dict().items()
    }
    assert old.keys() != network.state_dict().keys()
    save_file(old, tmp_path / "w.safetensors")
    model = load_model("vit_b_32", weights=tmp_path / "w.safetensors")
    last = "encoder.layers.encoder_layer_11.mlp.3.weight"
    assert torch.equal(model.network.get_parameter(last), network.get_parameter(last))


def test_state_without_module_versions(tmp_path) -> None:
    network = models.get_model("mnasnet0_5", weights=None)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    model = load_model("mnasnet0_5", weights=tmp_path / "w.safetensors")
    assert torch.equal(model.network.get_parameter("classifier.1.weight"), network.get_parameter("classifier.1.weight"))


def test_transformer_at_another_size() -> None:
    model = load_model("vit_b_32", weights="random", size=64)
    assert model.network(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    with pytest.raises(InputError, match=r"torchvision cannot build vit_b_32 for size \(65, 65\): "):
        load_model("vit_b_32", weights="random", size=65)


def test_unknown_name() -> None:
    with pytest.raises(
        InputError,
        match=r"no model named 'resnet19'\. Did you mean 'resnet1\d+'\? There are 'digits'.*timm:NAME.*module:",
    ):
        load_model("resnet19")
    with pytest.raises(InputError, match="Did you mean 'digits'"):
        load_model("digit")


def test_missing_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match=r"'resnet18', unless it is misspelt.*pip install \"backlit\[vision\]\""):
        load_model("resnet18", weights="random")
