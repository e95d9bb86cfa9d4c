"""Published weights are fetched when that is asked for, once, and never otherwise; the network is a local folder here."""

from __future__ import annotations

import hashlib
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from _commands import command
from backlit._errors import FileError, InputError
from backlit.models import load_model

models = pytest.importorskip("torchvision.models")
NAME = "squeezenet1_1"


class _Server:
    """A folder from which torch's own downloader takes a file, and the cache that it comes to."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.cache = root / "server", root / "hub" / "checkpoints"
        self.folder.mkdir()
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(root / "hub"))
        self.own = models.get_model_weights(NAME).DEFAULT
        self._patch = monkeypatch

    def publish(self, content: bytes, name: str | None = None) -> None:
        digest = hashlib.sha256(content).hexdigest()[:8]
        path = self.folder / (name or f"tiny-{digest}.pth")
        path.write_bytes(content)
        default = SimpleNamespace(
            url=path.as_uri(), transforms=self.own.transforms, meta={**self.own.meta, "_file_size": 4.7}
        )
        self._patch.setattr(models, "get_model_weights", lambda name: SimpleNamespace(DEFAULT=default))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Server:
    return _Server(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return models.get_model(NAME, weights=None).state_dict()


@pytest.fixture(scope="module")
def published(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("published") / "state.pth"
    torch.save(state, path)
    return path.read_bytes()


class TestTorchvision:
    def test_is_fetched_once_and_said_before(
        self, server: _Server, published: bytes, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.publish(published)
        told: list[str] = []
        with pytest.raises(InputError, match="download=True"):
            load_model(NAME)
        assert not server.cache.exists()
        loaded = load_model(NAME, download=told.append)
        assert torch.equal(loaded.network.state_dict()["classifier.1.weight"], state["classifier.1.weight"])
        (path,) = server.cache.iterdir()
        assert told == [f"--download fetches {next(server.folder.iterdir()).as_uri()} (5 MB) to {path}, once"]
        monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("fetched again"))
        load_model(NAME, download=told.append)
        load_model(NAME)
        assert len(told) == 1

    def test_what_was_not_published_so_is_not_kept(self, server: _Server, published: bytes) -> None:
        server.publish(published, "tiny-00000000.pth")
        with pytest.raises(FileError, match=r"cannot be fetched .*invalid hash value"):
            load_model(NAME, download=True)
        assert list(server.cache.iterdir()) == []

    def test_a_pickle_that_runs_code_is_never_opened_as_one(self, server: _Server, tmp_path: Path) -> None:
        class Runs:
            def __reduce__(self) -> Any:
                return Path.touch, (tmp_path / "ran",)

        server.publish(pickle.dumps(Runs()))
        with pytest.raises(FileError, match="is damaged or holds more than tensors"):
            load_model(NAME, download=True)
        assert not (tmp_path / "ran").exists()

    def test_without_a_network(self, server: _Server, published: bytes) -> None:
        server.publish(published)
        next(server.folder.iterdir()).unlink()
        with pytest.raises(
            FileError, match=r"download: file:.* cannot be fetched .* put it at '.*', or give --weights FILE"
        ):
            load_model(NAME, download=True)

    def test_where_nothing_can_be_written(self, server: _Server, published: bytes) -> None:
        server.publish(published)
        server.cache.parent.write_text("a file")
        with pytest.raises(FileError, match="cannot be fetched"):
            load_model(NAME, download=True)

    def test_on_the_command_line(self, server: _Server, published: bytes, tmp_path: Path) -> None:
        server.publish(published)
        Image.new("RGB", (300, 200), (200, 30, 30)).save(tmp_path / "photo.jpg")
        words = (
            "explain",
            tmp_path / "photo.jpg",
            "--model",
            NAME,
            "--size",
            64,
            "--method",
            "gradient",
            "--out",
            tmp_path / "out",
        )
        refused = command(*words)
        assert refused.returncode == 2
        assert "--download on the command line" in refused.stderr
        done = command(*words, "--download", "--json")
        assert done.returncode == 0, done.stderr
        assert "--download fetches file:" in done.stderr
        assert "(5 MB) to " in done.stderr
        assert done.stdout.count("\n") == 1
        assert "fetches" not in command(*words, "--download").stderr


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("digits", {}, "only torchvision and timm publish weights, and 'digits' is none"),
        ("own:network", {}, "and 'own:network' is none"),
        (NAME, {"weights": "random"}, "weights are given, 'random', so nothing is to be fetched"),
    ],
)
def test_where_there_is_nothing_to_fetch(name: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(name, download=True, **more)


class TestTimm:
    """timm and its hub are played by stand-ins: they are optional, and the hub is a network."""

    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 4))
        network.num_classes = 4  # type: ignore[assignment]
        cfg = {"input_size": (3, 32, 32), "mean": (0.0,) * 3, "std": (1.0,) * 3, "hf_hub_id": "timm/tiny"}
        network.pretrained_cfg = cfg  # type: ignore[assignment]
        timm, hub = ModuleType("timm"), ModuleType("huggingface_hub")
        vars(timm).update(is_model=lambda name: True, create_model=lambda name, pretrained: network)
        found = SimpleNamespace(cfg=cfg, fetched=[], cached=None, weights=torch.rand(4, 3))

        def download(repository: str, name: str) -> str:
            found.fetched.append((repository, name))
            save_file({"2.weight": found.weights, "2.bias": torch.zeros(4)}, tmp_path / name)
            return str(tmp_path / name)

        constants = SimpleNamespace(HF_HUB_CACHE="/cache")
        vars(hub).update(hf_hub_download=download, try_to_load_from_cache=lambda *_: found.cached, constants=constants)
        monkeypatch.setitem(sys.modules, "timm", timm)
        monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
        return found

    def test_safetensors_are_fetched_once(self, hub: SimpleNamespace) -> None:
        told: list[str] = []
        with pytest.raises(InputError, match="download=True"):
            load_model("timm:tiny")
        loaded = load_model("timm:tiny", download=told.append)
        assert torch.equal(loaded.network.state_dict()["2.weight"], hub.weights)
        assert hub.fetched == [("timm/tiny", "model.safetensors")]
        assert told == ["--download fetches model.safetensors of timm/tiny (about 0 MB) to /cache, once"]

    def test_from_the_cache(self, hub: SimpleNamespace, tmp_path: Path) -> None:
        save_file({"2.weight": hub.weights, "2.bias": torch.zeros(4)}, tmp_path / "kept.safetensors")
        hub.cached = str(tmp_path / "kept.safetensors")
        told: list[str] = []
        assert torch.equal(load_model("timm:tiny", download=told.append).network.state_dict()["2.weight"], hub.weights)
        assert (told, hub.fetched) == ([], [])

    def test_no_pickles(self, hub: SimpleNamespace) -> None:
        hub.cfg["hf_hub_id"] = None
        with pytest.raises(
            InputError, match="timm publishes no safetensors file for timm:tiny, and nothing else is fetched"
        ):
            load_model("timm:tiny", download=True)

    def test_without_a_network(self, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: str) -> str:
            raise ConnectionError("no route")

        monkeypatch.setattr(sys.modules["huggingface_hub"], "hf_hub_download", refuse)
        with pytest.raises(FileError, match=r"timm/tiny cannot be fetched .*no route.*--weights FILE"):
            load_model("timm:tiny", download=True)
