"""Models, inputs and options in bad states: each is refused by name, by every method alike, and each way out works."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import backlit
from _methods import EVERYWHERE, quick
from backlit import DMBP, LPR, TRGBP, InputError, ModelStateError, UnsupportedOp
from backlit._errors import BacklitError
from backlit.methods import FittedMethod, Gradient, Method, Random

X = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(1))
ALL = [m for m in EVERYWHERE if not issubclass(m, FittedMethod)]
EXPLAINING = [m for m in ALL if m.traces]


def net() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator)
    return model


def of(kind: type[Method], model: Any) -> Method:
    return kind(model, **quick(kind, **({"contrast": 2} if kind is TRGBP else {})))


def _clear_hooks(model: nn.Module) -> nn.Module:
    for module in model.modules():
        module._backward_hooks.clear()
        module._backward_pre_hooks.clear()
    return model


def _hooked(register: str, at: int = 0) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = net()
        getattr(model[at], register)(lambda *_: None)
        return model

    return make


def _compiled_in_place(part: bool) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = net()
        (model[0] if part else model).compile(backend="eager")
        return model

    return make


@torch.inference_mode()
def _made_in_inference_mode() -> nn.Module:
    return net()


def _buffer_of_inference_mode() -> nn.Module:
    model = nn.Sequential(nn.BatchNorm2d(3), *net()).eval()
    with torch.inference_mode():
        model[0].running_mean = torch.ones(3)
    return model


def _lazy() -> nn.Module:
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(5)).eval()


def _run_once(model: nn.Module) -> nn.Module:
    model(X)
    return model


def _loaded(model: nn.Module) -> nn.Module:
    model = model.to_empty(device="cpu")
    model.load_state_dict(net().state_dict())
    return model


class _Parallel(nn.DataParallel):
    def __init__(self) -> None:
        super().__init__(net())
        self.device_ids = [0, 1]


STATES: dict[str, tuple[Callable[[], Any], type[Exception], str, Callable[[Any], nn.Module]]] = {
    "full backward hook": (
        _hooked("register_full_backward_hook"), ModelStateError, r"'0' \(Conv2d\) has one.*\.clear\(\)", _clear_hooks,
    ),
    "full backward pre-hook": (
        _hooked("register_full_backward_pre_hook", 4), ModelStateError, r"'4' \(Linear\) has one", _clear_hooks,
    ),
    "old backward hook": (_hooked("register_backward_hook"), ModelStateError, "without backward hooks", _clear_hooks),
    "scripted": (lambda: torch.jit.script(net()), UnsupportedOp, "'<model>' is scripted.*original nn.Module, given to torch.jit", lambda m: net()),
    "compiled": (lambda: torch.compile(net(), backend="eager"), UnsupportedOp, "'<model>' is compiled.*_orig_mod", lambda m: m._orig_mod),
    "compiled in place": (_compiled_in_place(False), UnsupportedOp, r"'<model>' is compiled.*copy.deepcopy\(model\)", copy.deepcopy),
    "a part compiled in place": (_compiled_in_place(True), UnsupportedOp, r"'0' is compiled.*copy.deepcopy\(model\)", copy.deepcopy),
    "inference mode": (_made_in_inference_mode, ModelStateError, r"'0.weight' was made under inference_mode.*deepcopy", copy.deepcopy),
    "a buffer of inference mode": (_buffer_of_inference_mode, ModelStateError, "'0.running_mean' was made under", copy.deepcopy),
    "lazy": (_lazy, ModelStateError, r"'0.weight' is not: a lazy module.*Run model\(inputs\) once", _run_once),
    "meta": (lambda: net().to("meta"), ModelStateError, "'0.weight' is on the meta device.*to_empty.*load_state_dict", _loaded),
    "data parallel": (_Parallel, UnsupportedOp, r"'<model>' \(_Parallel\) copies the model.*model.module", lambda m: m.module),
}  # fmt: skip

RUNNABLE = ("scripted", "compiled", "compiled in place", "a part compiled in place")
"""States in which a method of forward passes alone can run the network."""


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ALL, ids=lambda m: m.name)
def test_a_bad_state_is_named_and_its_way_out_works(kind: type[Method], state: str) -> None:
    make, error, message, way_out = STATES[state]
    model = make()
    if error is UnsupportedOp and state in RUNNABLE and not kind.traces:  # it looks at outputs alone
        torch.testing.assert_close(of(kind, model).attribute(X, 1), of(kind, net()).attribute(X, 1))
        return
    with pytest.raises(error, match=message):
        of(kind, model)(X, 1)
    of(kind, way_out(model))(X, 1)


def test_the_ways_out_give_the_plain_models_map() -> None:
    expected = Gradient(net()).attribute(X, 1)
    for state in (
        "compiled",
        "compiled in place",
        "a part compiled in place",
        "inference mode",
        "meta",
        "full backward hook",
    ):
        make, _, _, way_out = STATES[state]
        assert torch.equal(Gradient(way_out(make())).attribute(X, 1), expected), state


def test_quantized_models_are_named() -> None:
    quantize = pytest.importorskip("torch.ao.quantization").quantize_dynamic
    with pytest.warns(DeprecationWarning, match="deprecated"):
        model = quantize(net(), {nn.Linear})
    for kind in ALL:
        with pytest.raises(UnsupportedOp, match=r"'4' \(Linear\) is quantized.*Explain the float model"):
            of(kind, model)(X, 1)


def test_a_global_backward_hook_is_named() -> None:
    handle = nn.modules.module.register_module_full_backward_hook(lambda *_: None)
    try:
        with pytest.raises(ModelStateError, match=r"<every module> has one"):
            Gradient(net())(X, 1)
    finally:
        handle.remove()
    Gradient(net())(X, 1)


def _zeroed(module: nn.Module, inputs: Any, output: Tensor) -> None:
    output.register_hook(torch.zeros_like)


def _zeroed_behind(module: nn.Module, inputs: Any, output: Tensor) -> None:
    output.grad_fn.register_hook(lambda *_: None)  # type: ignore[union-attr]


@pytest.mark.parametrize("hook", [_zeroed, _zeroed_behind])
@pytest.mark.parametrize("kind", EXPLAINING, ids=lambda m: m.name)
def test_a_hook_on_a_signal_is_named_and_its_way_out_works(kind: type[Method], hook: Any) -> None:
    model = net()
    handle = model[0].register_forward_hook(hook)
    with pytest.raises(
        UnsupportedOp, match=r"at 0 hooks the gradient of a signal.*forward hook that makes it: handle.remove\(\)"
    ):
        of(kind, model)(X, 1)
    handle.remove()
    of(kind, model)(X, 1)


def test_forward_hooks_of_plain_operations_are_part_of_the_network() -> None:
    model, twin = net(), net()
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    model[4].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    with torch.no_grad():
        twin[0].weight *= 2
        twin[0].bias *= 2
        twin[4].bias += twin[4].weight.sum(1)
    for kind in (Gradient, backlit.GuidedBackprop):
        torch.testing.assert_close(kind(model).attribute(X, 1), kind(twin).attribute(X, 1))


def test_hooks_of_zennit_are_named() -> None:
    composites = pytest.importorskip("zennit.composites")
    for make in (composites.EpsilonPlus, composites.EpsilonAlpha2Beta1, composites.GuidedBackprop):
        model, composite = net(), make()
        composite.register(model)
        for kind in (Gradient, DMBP, Random):
            with pytest.raises(
                ModelStateError, match=r"without hooks of other libraries, but .* has one of zennit.*composite.remove"
            ):
                of(kind, model)(X, 1)
        composite.remove()
        assert torch.equal(Gradient(model).attribute(X, 1), Gradient(net()).attribute(X, 1))


def test_hooks_of_captum_are_named() -> None:
    attr = pytest.importorskip("captum.attr")
    model = net()
    attr.DeepLift(model)._hook_main_model() if hasattr(attr.DeepLift, "_hook_main_model") else pytest.skip(
        "another Captum"
    )
    with pytest.raises(ModelStateError, match=r"hooks of other libraries, but .* has one of captum|backward hooks"):
        Gradient(model)(X, 1)


@pytest.mark.parametrize("wrap", ["weight_norm", "spectral_norm"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_parametrised_weights_are_the_networks_own(wrap: str) -> None:
    model = net()
    model[0] = getattr(nn.utils.parametrizations, wrap)(model[0])
    model.eval()
    leaf = X.clone().requires_grad_()
    expected = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0]
    torch.testing.assert_close(Gradient(model).attribute(X, 1), expected)
    for kind in ALL:
        of(kind, model)(X, 1)


@pytest.mark.parametrize("transform", ["vmap", "grad"])
@pytest.mark.parametrize("kind", [Gradient, DMBP, Random])
def test_transforms_of_torch_func_around_a_method(kind: type[Method], transform: str) -> None:
    method = of(kind, net())
    run = {
        "vmap": lambda: torch.func.vmap(lambda x: method.attribute(x[None], 1)[0])(X),
        "grad": lambda: torch.func.grad(lambda x: method.attribute(x, 1).sum())(X),
    }[transform]
    with pytest.raises(InputError, match=r"inside a transform of torch.func.*on the whole batch"):
        run()


class Around(nn.Module):
    def __init__(self, part: nn.Module, before: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.part, self.before = part, before

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.before(x))


OTHER_SHAPES = {
    "signals": (
        nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5)),
        X[:, :, :, 0], r"For one image \(c, h, w\).*x\[None\]. .*LRP.* signals \(n, c, t\).*x\[:, :, None\]",
        lambda x: x[:, :, None], lambda x: x[:, :, 0],
    ),
    "volumes": (
        nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5)),
        X[:, :, :6, :, None].expand(-1, -1, -1, -1, 5), r"LRP.* take volumes.*x.flatten\(1, 2\).*unflatten",
        lambda x: x.flatten(1, 2), lambda x: x.unflatten(1, (3, 6)),
    ),
    "features": (
        nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 5)), X[:, :, 0, 0],
        r"Features \(n, d\).*x\[:, :, None, None\].*x.flatten\(1\)", lambda x: x[:, :, None, None], lambda x: x.flatten(1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", OTHER_SHAPES)
def test_inputs_that_are_no_images_are_told_a_way_that_works(shape: str) -> None:
    model, x, message, given, before = OTHER_SHAPES[shape]
    with pytest.raises(InputError, match=message):
        backlit.FullGrad(model.eval())(x, 1)
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0]
    wrapped = Around(model, before).eval()
    torch.testing.assert_close(before(Gradient(wrapped).attribute(given(x), 1)), expected)
    for kind in (DMBP, LPR, backlit.LRP, backlit.DeepLIFT, backlit.GuidedBackprop, backlit.FullGrad, Random):
        of(kind, wrapped)(given(x), 1)


def test_one_image_without_its_axis() -> None:
    with pytest.raises(
        InputError, match=r"but has shape \(3, 12, 10\).* For one image \(c, h, w\) add the batch axis: x\[None\]"
    ):
        Gradient(net())(X[0], 1)
    Gradient(net())(X[0][None], 1)


class Recurrent(nn.Module):
    """A recurrent layer on the rows of the image, or the same layer written with plain operations."""

    def __init__(self, layer: str, plain: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = getattr(nn, layer)(30, 8, **({} if layer.endswith("Cell") else {"batch_first": True}))
        self.fc, self.plain = nn.Linear(8, 5), plain
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) * 0.3

    def forward(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 1, 3).flatten(2)
        if self.plain:
            return self.fc(self.step_by_step(rows))
        if isinstance(self.layer, nn.RNNCellBase):
            found = self.layer(rows[:, 0])
            return self.fc(found[0] if isinstance(found, tuple) else found)
        return self.fc(self.layer(rows)[0][:, -1])

    def step_by_step(self, rows: Tensor) -> Tensor:
        names = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
        cell = isinstance(self.layer, nn.RNNCellBase)
        wi, bi, wh, bh = (getattr(self.layer, name if cell else f"{name}_l0") for name in names)
        h = c = rows.new_zeros(len(rows), 8)
        for row in rows.unbind(1)[:1] if cell else rows.unbind(1):
            a, b = F.linear(row, wi, bi), F.linear(h, wh, bh)
            if isinstance(self.layer, (nn.LSTM, nn.LSTMCell)):
                i, f, g, o = (a + b).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            elif isinstance(self.layer, (nn.GRU, nn.GRUCell)):
                (ar, az, an), (br, bz, bn) = a.chunk(3, 1), b.chunk(3, 1)
                n, z = (an + (ar + br).sigmoid() * bn).tanh(), (az + bz).sigmoid()
                h = (1 - z) * n + z * h
            else:
                h = (a + b).tanh()
        return h


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_recurrent_layers_are_refused_by_name_and_their_way_out_works(layer: str) -> None:
    fused, plain = Recurrent(layer, False).eval(), Recurrent(layer, True).eval()
    torch.testing.assert_close(fused(X), plain(X))
    for kind in EXPLAINING:
        with pytest.raises(
            UnsupportedOp, match=r"at layer is a recurrent layer that runs as one operation.*sigmoid and tanh"
        ):
            of(kind, fused)(X, 1)
    leaf = X.clone().requires_grad_()
    expected = torch.autograd.grad(fused(leaf)[:, 1].sum(), leaf)[0]
    torch.testing.assert_close(Gradient(plain).attribute(X, 1), expected)
    with pytest.raises(
        InputError, match=r"sites must leave DMBP an activation.*tanh\[0\].*sites='activations' takes them all"
    ):
        DMBP(plain, steps=2, sites="rectifiers")(X, 1)
    for method in (
        DMBP(plain, steps=2),
        DMBP(plain, steps=2, sites="activations"),
        LPR(plain, steps=2),
        backlit.LRP(plain),
        backlit.DeepLIFT(plain),
    ):
        assert method.attribute(X, 1).isfinite().all()


@pytest.mark.parametrize("layer", [nn.Embedding(3, 5), nn.EmbeddingBag(3, 5)])
def test_an_embedding_of_the_image_is_refused_by_its_reason(layer: nn.Module) -> None:
    model = Around(nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(5)), lambda x: (x[:, 0, 0] > 0).long())
    model(X)
    for kind in EXPLAINING:
        with pytest.raises(UnsupportedOp, match=r"looks values up by index .an embedding; explain what follows it"):
            of(kind, model)(X, 1)


def test_exported_graphs_are_refused_by_name() -> None:
    model = torch.export.export(net(), (X,)).module()
    with pytest.raises(UnsupportedOp, match=r"aten.conv2d.*is part of an exported graph.*Explain the nn.Module"):
        Gradient(model)(X, 1)


def _raising(error: Exception) -> nn.Module:
    def run(x: Tensor) -> Tensor:
        raise error

    return Around(net(), run)


class Odd(RuntimeError):
    pass


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mine"),
        ValueError("mine"),
        TypeError("mine"),
        IndexError("mine"),
        KeyError("mine"),
        Odd("mine"),
        OSError("mine"),
    ],
)
@pytest.mark.parametrize("kind", ALL, ids=lambda m: m.name)
def test_the_networks_own_error_comes_through(kind: type[Method], error: Exception) -> None:
    with pytest.raises(type(error), match="mine") as caught:
        of(kind, _raising(error))(X, 1)
    assert caught.value is error


@pytest.mark.parametrize(
    "run", [lambda x: x.nothing, lambda x: {}["k"], lambda x: x * int("a"), lambda x: [][3], lambda x: len(3)]
)
def test_a_mistake_in_the_networks_code_is_not_called_the_inputs(run: Callable[[Any], Any]) -> None:
    for kind in ALL:
        with pytest.raises((AttributeError, KeyError, ValueError, IndexError, TypeError)) as caught:
            of(kind, Around(net(), run))(X, 1)
        assert not isinstance(caught.value, BacklitError)


MISMATCHES: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "channels": (net, X[:, :2], "to have 3 channels, but got 2 channels"),
    "size": (net, X[:, :, :2, :2], "Kernel size can't be greater than actual input size"),
    "features": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, 5)), X, "shapes cannot be multiplied"),
    "too few inputs": (lambda: nn.Bilinear(3, 3, 5), X, "missing 1 required positional argument"),
    "too many inputs": (net, (X, X), "takes 2 positional arguments but 3 were given"),
    "no forward": (nn.Module, X, "missing the required \"forward\" function"),
    "another dtype inside": (lambda: nn.Sequential(*net()[:4], nn.Linear(8, 5).double()), X, "same dtype"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISMATCHES)
@pytest.mark.parametrize("kind", ALL, ids=lambda m: m.name)
def test_inputs_that_do_not_fit_the_network(kind: type[Method], what: str) -> None:
    make, x, message = MISMATCHES[what]
    with pytest.raises(InputError, match=rf"do not run through the model: .*{message}.*Check the number of channels"):
        of(kind, make().eval())(x, 1)


OUTPUTS = {
    "a tuple": lambda y: (y, y), "a list": lambda y: [y], "None": lambda y: None, "an index": lambda y: y.argmax(1),
    "a scalar": lambda y: y.sum(), "one number an image": lambda y: y[:, 0], "no class": lambda y: y[:, :0],
    "a map": lambda y: y[:, :, None], "an array": lambda y: y.detach().numpy(), "a row": lambda y: y[:1], "a string": lambda y: "y",
}  # fmt: skip


class Ending(nn.Module):
    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.part, self.end = net(), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.part(x))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("kind", ALL, ids=lambda m: m.name)
def test_outputs_that_are_no_logits(kind: type[Method], output: str) -> None:
    with pytest.raises(
        InputError, match=r"model must return (one tensor of logits|logits of shape) \(n, k\).* Wrap it"
    ):
        of(kind, Ending(OUTPUTS[output]))(X, 1)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.to_sparse(), r"must be a dense tensor.*to_dense\(\)"),
        (X.to(torch.complex64), "must be floating-point images"),
        (X.int(), "must be floating-point images"),
        (X > 0, "must be floating-point images"),
        (X.half(), r"float16 on the CPU.*\.float\(\)"),
        (X.double(), "must have the model's dtype torch.float32"),
        (X.numpy(), "must be a tensor of images"),
        ([X], "must be a tensor of images"),
        (None, "must be a tensor of images"),
        (X[:0], "at least one image"),
        ((), "at least one tensor"),
        ((X, X[:1]), "as many images as the first"),
        ((X, torch.ones(2, 4)), r"inputs\[1\] must be images.*Wrap the model so that other inputs are constants"),
        (X * torch.nan, "must be finite, but image 0, 1"),
        (X.to("meta"), "on one device"),
    ],
)
def test_inputs_of_other_kinds(x: Any, message: str) -> None:
    for kind in ALL:
        with pytest.raises((InputError, ModelStateError), match=message):
            of(kind, net())(x, 1)


def test_a_network_without_parameters() -> None:
    model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for kind in ALL:
        try:
            assert of(kind, model).attribute(X, 1).shape[0] == 2
        except UnsupportedOp as error:
            assert "needs a layer with weights" in str(error) or "feature map" in str(error)  # noqa: PT017  both are right
    with pytest.raises(InputError, match="inputs must hold values, but are on the meta device"):
        Gradient(model)(X.to("meta"), 1)
