"""What must hold for every method: assertions that a test runs over METHODS."""

from __future__ import annotations

import threading
from dataclasses import replace

import torch
from torch import Tensor, nn

from backlit.methods import Method


def assert_batch_independent(method: Method, x: Tensor, target: Tensor) -> None:
    """Image i's map depends neither on its neighbours nor on the chunk size."""
    whole = method.attribute(x, target)
    for i in range(len(x)):
        torch.testing.assert_close(method.attribute(x[i : i + 1], target[i : i + 1])[0], whole[i])
    chunked = replace(method, chunk=2)
    torch.testing.assert_close(chunked.attribute(x, target), whole)


def assert_deterministic(method: Method, x: Tensor, target: Tensor) -> None:
    assert torch.equal(method.attribute(x, target), method.attribute(x, target))


def assert_sensitive_to_the_target(method: Method, x: Tensor, one: int, other: int) -> None:
    a, b = method.attribute(x, one), method.attribute(x, other)
    assert float((a - b).abs().max()) > 1e-3 * float(a.abs().max())


def assert_each_is_each_alone(method: Method, x: Tensor, targets: Tensor) -> None:
    for t, explanation in enumerate(method.each(x, targets)):
        torch.testing.assert_close(explanation.values, method.attribute(x, targets[:, t]))


def assert_model_untouched(method: Method, x: Tensor, target: Tensor) -> None:
    model = method.model
    before, image = fingerprint(model), x.clone()
    state = torch.get_rng_state()
    method(x, target)
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, image)
    assert not x.requires_grad
    assert all(p.grad is None for p in model.parameters())


def fingerprint(model: nn.Module) -> list[object]:
    """All that a method must leave alone."""
    found: list[object] = []
    for name, module in model.named_modules():
        hooks = [len(v) for k, v in vars(module).items() if "hooks" in k and v is not None]
        found += [name, module.training, sorted(vars(module)), hooks]
    for name, tensor in model.state_dict(keep_vars=True).items():
        found += [name, tensor.requires_grad, tensor._version, sorted(vars(tensor)), tensor.detach().numpy().tobytes()]
    return found


def assert_threads_do_not_disturb(method: Method, x: Tensor, targets: list[int], rounds: int) -> None:
    expected = {t: method.attribute(x, t) for t in targets}
    wrong: list[int] = []

    def work(t: int) -> None:
        for _ in range(rounds):
            if not torch.equal(method.attribute(x, t), expected[t]):
                wrong.append(t)

    threads = [threading.Thread(target=work, args=(t,)) for t in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
