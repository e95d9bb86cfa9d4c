from __future__ import annotations

import json
import os
import stat

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from backlit import load_model
from backlit._errors import FileError, InputError, ModelStateError
from backlit.models.weights import CLASSES_KEY, PREPROCESS_KEY, Weights, check_finite, load_state, read_weights


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 3))


def _weights(**changes: torch.Tensor | None) -> Weights:
    torch.manual_seed(0)
    state = dict(_network().state_dict())
    for name, value in changes.items():
        if value is None:
            del state[name]
        else:
            state[name] = value
    return Weights("w.safetensors", state)


def test_reads_tensors_and_metadata(tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    metadata = {
        PREPROCESS_KEY: json.dumps({"size": 227, "mean": [0.5, 0.5, 0.5]}),
        CLASSES_KEY: json.dumps(["cat", "dog"]),
        "somebody's": "note",
    }
    save_file({"x": torch.arange(3.0)}, path, metadata)
    weights = read_weights(path)
    assert torch.equal(weights.state["x"], torch.arange(3.0))
    assert (weights.preprocess.size, weights.preprocess.mean) == (227, [0.5, 0.5, 0.5])
    assert weights.class_names == ("cat", "dog")
    assert weights.source == str(path)


def test_metadata_is_optional(tmp_path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    weights = read_weights(str(tmp_path / "w.safetensors"))
    assert weights.class_names == ()
    assert weights.preprocess.size is None


@pytest.mark.parametrize(
    ("key", "value"),
    [(PREPROCESS_KEY, "{"), (PREPROCESS_KEY, '{"sizes": 3}'), (PREPROCESS_KEY, "3"), (CLASSES_KEY, "3")],
)
def test_unusable_metadata(tmp_path, key: str, value: str) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"x": torch.zeros(1)}, path, {key: value})
    with pytest.raises(FileError, match=f"its metadata entry '{key}' cannot be used: "):
        read_weights(path)


class TestUnreadable:
    def test_missing(self, tmp_path) -> None:
        with pytest.raises(FileError, match=r"no\.safetensors' must be a \.safetensors file, found nothing there"):
            read_weights(tmp_path / "no.safetensors")

    def test_folder(self, tmp_path) -> None:
        with pytest.raises(FileError, match="found a folder"):
            read_weights(tmp_path)

    def test_empty(self, tmp_path) -> None:
        (tmp_path / "w.safetensors").touch()
        with pytest.raises(FileError, match=r"w\.safetensors' is empty \(0 bytes\)"):
            read_weights(tmp_path / "w.safetensors")

    def test_truncated(self, tmp_path) -> None:
        path = tmp_path / "w.safetensors"
        save_file({"x": torch.zeros(100)}, path)
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(FileError, match=r"not a readable safetensors file .* truncated"):
            read_weights(path)

    def test_something_else(self, tmp_path) -> None:
        (tmp_path / "w.safetensors").write_text("no tensors here, only words")
        with pytest.raises(FileError, match="not a readable safetensors file"):
            read_weights(tmp_path / "w.safetensors")

    @pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.BIN", "w.ckpt"])
    def test_pickle_is_not_opened(self, tmp_path, name: str) -> None:
        class Bomb:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        torch.save(Bomb(), tmp_path / name)
        with pytest.raises(FileError, match=r"looks like a pickle, which can run code.*weights_only=True"):
            read_weights(tmp_path / name)
        assert not (tmp_path / "ran").exists()

    def test_pickle_under_a_false_name(self, tmp_path) -> None:
        torch.save({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
        with pytest.raises(FileError, match="not a readable safetensors file"):
            read_weights(tmp_path / "w.safetensors")

    def test_forbidden(self, tmp_path) -> None:
        path = tmp_path / "w.safetensors"
        save_file({"x": torch.zeros(1)}, path)
        path.chmod(stat.S_IWUSR)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(FileError, match="not a readable safetensors file"):
            read_weights(path)


class TestLoading:
    def test_fills_the_network(self) -> None:
        network, weights = _network(), _weights()
        load_state(network, weights)
        for name, value in network.state_dict().items():
            assert torch.equal(value, weights.state[name])

    def test_missing_keys(self) -> None:
        changes = {f"{i}.{kind}": None for i in (0, 1) for kind in ("weight", "bias")} | {"1.running_var": None}
        with pytest.raises(
            InputError,
            match=r"does not fit Sequential: 5 missing \(0\.weight, 0\.bias, 1\.weight, 1\.bias and 1 more\)",
        ):
            load_state(_network(), _weights(**changes))

    def test_unexpected_keys(self) -> None:
        with pytest.raises(InputError, match=r"1 unexpected \(head\.weight\)\. Check that the file belongs"):
            load_state(_network(), _weights(**{"head.weight": torch.zeros(2)}))

    def test_other_shape(self) -> None:
        with pytest.raises(
            InputError, match=r"1 of another shape or type \(2\.bias is \(4,\) float32, the network's \(3,\) float32\)"
        ):
            load_state(_network(), _weights(**{"2.bias": torch.zeros(4)}))

    def test_single_value_is_no_bias(self) -> None:
        with pytest.raises(InputError, match=r"2\.bias is \(1,\)"):
            load_state(_network(), _weights(**{"2.bias": torch.zeros(1)}))

    def test_quantised_integers(self) -> None:
        with pytest.raises(InputError, match=r"2\.bias is \(3,\) int8, the network's \(3,\) float32"):
            load_state(_network(), _weights(**{"2.bias": torch.zeros(3, dtype=torch.int8)}))

    def test_network_is_untouched_by_a_state_that_does_not_fit(self) -> None:
        network = _network()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        with pytest.raises(InputError, match="unexpected"):
            load_state(network, _weights(extra=torch.zeros(1)))
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    @pytest.mark.parametrize("counter", [None, torch.tensor([3])])
    def test_training_counter_may_be_missing_or_of_the_old_shape(self, counter: torch.Tensor | None) -> None:
        load_state(_network(), _weights(**{"1.num_batches_tracked": counter}))

    def test_ignored_prefixes(self) -> None:
        extra = {"aux.weight": torch.zeros(1)}
        load_state(_network(), _weights(**extra), ignored=("aux.",))
        with pytest.raises(InputError, match=r"aux\.weight"):
            load_state(_network(), _weights(**extra))

    def test_half_precision_is_widened(self) -> None:
        network = _network()
        load_state(network, _weights(**{"2.bias": torch.tensor([0.5, 1.0, 2.0], dtype=torch.float16)}))
        assert network.get_parameter("2.bias").tolist() == [0.5, 1.0, 2.0]
        assert network.get_parameter("2.bias").dtype == torch.float32

    @pytest.mark.parametrize("name", ["2.weight", "1.running_var"])
    def test_nan_is_named(self, name: str) -> None:
        value = _weights().state[name].clone()
        value.view(-1)[1] = torch.nan
        with pytest.raises(
            ModelStateError, match=rf"'{name}' of w\.safetensors has 1 NaN or Inf of {value.numel()} values"
        ):
            load_state(_network(), _weights(**{name: value}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_infinite_in_any_dtype(dtype: torch.dtype) -> None:
    check_finite({"x": torch.ones(2).to(dtype), "n": torch.ones(2, dtype=torch.int64)})
    with pytest.raises(ModelStateError, match="'x' of the model has 2 NaN or Inf of 2 values"):
        check_finite({"x": torch.tensor([torch.inf, -torch.inf]).to(dtype)})


@pytest.mark.parametrize(
    "options",
    [
        '{"mean": ["a", "b", "c"]}',
        '{"std": [[1], [1], [1]]}',
        '{"mean": [true, 0, 0]}',
        '{"mean": 1, "std": 0}',
        '{"mean": {"a": 1}}',
        '{"size": "large"}',
        '{"size": 1000000000000}',
        '{"size": [224, 1000000000000]}',
        '{"size": [8, 8, 8]}',
        '{"resize": "a"}',
        '{"channels": "3"}',
        '{"channels": [1]}',
        '{"channels": 1000000000000, "mean": 0.5}',
        '{"crop": []}',
        '{"crop": {"a": 1}}',
        '{"interpolation": []}',
        '{"interpolation": {"a": 1}}',
        '{"interpolation": "nearest"}',
        '{"size": 8, "size": 9}',
        '{"size": NaN}',
        '{"mean": ' + "[" * 20_000 + "]" * 20_000 + "}",
        '{"other": 1}',
        "[1, 2]",
        "3",
        "null",
    ],
)
def test_metadata_of_other_kinds_is_named_with_its_file(tmp_path, options: str) -> None:
    state = {name: value.clone() for name, value in load_model("digits").network.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors", {"backlit.preprocess": options})
    with pytest.raises(FileError, match=r"w\.safetensors': its metadata entry 'backlit.preprocess' cannot be used"):
        load_model("digits", weights=tmp_path / "w.safetensors")


@pytest.mark.parametrize("names", ['"ab"', "5", '{"a": 1}', "[1, 2]", "[[]]", "null", "[" * 20_000])
def test_class_names_of_other_kinds(tmp_path, names: str) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors", {"backlit.class_names": names})
    with pytest.raises(FileError, match=r"its metadata entry 'backlit\.class_names' cannot be used"):
        read_weights(tmp_path / "w.safetensors")
