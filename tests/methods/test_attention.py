"""Maps from attention against their papers' formulas with the attention matrices written out, in every spelling."""

from __future__ import annotations

import pytest
import torch
from _attention_networks import SPELLINGS, Transformer, followed, grid_of
from torch import Tensor, nn

import backlit
from backlit import (
    LRP,
    AttentionRollout,
    Contrast,
    GradCAM,
    Gradient,
    GradientRollout,
    GradientXInput,
    InputError,
    LeGrad,
    LibraGrad,
    UnsupportedOp,
)
from backlit.methods import METHODS, Method
from backlit.methods.attention_maps import has_attention

X = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
TARGETS = torch.tensor([4, 0, 7])
READERS = [m for m in METHODS if m.reads_attention]
NETWORKS = [(spelling, token, before) for spelling in SPELLINGS for token in (True, False) for before in (True, False)]


def row_of(net: Transformer, matrix: Tensor) -> Tensor:
    return matrix[:, 0] if net.token else matrix.mean(1)


def rollout(net: Transformer, x: Tensor) -> Tensor:
    count = 16 + net.token
    rolled = torch.eye(count, dtype=torch.float64).expand(len(x), -1, -1)
    for weights, *_ in followed(net, x):
        added = weights.detach().mean(1) + torch.eye(count, dtype=torch.float64)
        rolled = (added / added.sum(-1, keepdim=True)) @ rolled
    return grid_of(net, row_of(net, rolled))


def legrad(net: Transformer, x: Tensor, targets: Tensor, last: int = 3) -> Tensor:
    total = torch.zeros(len(x), 16 + net.token, dtype=torch.float64)
    for weights, _, logits in followed(net, x)[-last:]:
        (grad,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), weights)
        for head in range(grad.shape[1]):
            for query in range(grad.shape[2]):
                total += grad[:, head, query].clamp(min=0) / (grad.shape[1] * grad.shape[2])
    return grid_of(net, total / last)


def gradient_rollout(net: Transformer, x: Tensor, targets: Tensor) -> Tensor:
    """Chefer et al. 2021: R = I; R = R + mean over heads of (grad * A)+ R, with A that all gradients pass."""
    kept: list[Tensor] = []
    t = net.embed(x)
    for block in net.blocks:

        def mix(s: Tensor, block: nn.Module = block) -> Tensor:
            q, k, v = block.qkv(s).reshape(len(s), -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
            weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)
            kept.append(weights)
            return block.proj((weights @ v).transpose(1, 2).flatten(2))

        t = net.block(block, t, mix)
    grads = torch.autograd.grad(net.classify(t).gather(1, targets[:, None]).sum(), kept)
    eye = torch.eye(16 + net.token, dtype=torch.float64).expand(len(x), -1, -1)
    rolled = eye
    for weights, grad in zip(kept, grads, strict=True):
        rolled = rolled + (weights * grad).clamp(min=0).mean(1) @ rolled
    return grid_of(net, row_of(net, rolled - eye).detach())


@pytest.mark.parametrize(("spelling", "token", "before"), NETWORKS)
def test_the_maps_are_the_papers(spelling: str, token: bool, before: bool) -> None:
    net = Transformer(spelling, token=token, before=before)
    torch.testing.assert_close(AttentionRollout(net).attribute(X, TARGETS), rollout(net, X))
    torch.testing.assert_close(LeGrad(net).attribute(X, TARGETS), legrad(net, X, TARGETS))
    torch.testing.assert_close(LeGrad(net, layers=1).attribute(X, TARGETS), legrad(net, X, TARGETS, last=1))
    torch.testing.assert_close(GradientRollout(net).attribute(X, TARGETS), gradient_rollout(net, X, TARGETS))


@pytest.mark.parametrize("kind", READERS, ids=lambda m: m.name)
def test_one_block_is_enough(kind: type[Method]) -> None:
    net = Transformer(blocks=1)
    oracles = {"attention_rollout": rollout(net, X), "legrad": legrad(net, X, TARGETS, last=1)}
    expected = oracles.get(kind.name, gradient_rollout(net, X, TARGETS))
    torch.testing.assert_close(kind(net).attribute(X, TARGETS), expected)


@pytest.mark.parametrize("kind", READERS, ids=lambda m: m.name)
def test_single_precision_and_half(kind: type[Method]) -> None:
    net = Transformer("by hand")
    expected = kind(net).attribute(X, TARGETS)
    single = kind(net.float()).attribute(X.float(), TARGETS)
    torch.testing.assert_close(single.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.max()))
    half = kind(net.bfloat16()).attribute(X.bfloat16(), TARGETS)
    assert half.dtype == torch.bfloat16
    assert float(torch.corrcoef(torch.stack([half.double().flatten(), expected.flatten()]))[0, 1]) > 0.95


def test_rollout_is_the_same_for_all_classes_and_the_others_are_not() -> None:
    net = Transformer()
    for kind in READERS:
        one, other = (kind(net).attribute(X, k) for k in (2, 5))
        assert torch.equal(one, other) == (not kind.follows_target)


def test_a_contrast_goes_through_the_head_of_each_layer() -> None:
    net = Transformer()
    less = nn.Linear(8, 10).double()
    with torch.no_grad():
        less.weight.copy_(net.head.weight - net.head.weight[5])
        less.bias.copy_(net.head.bias - net.head.bias[5])
    expected = Transformer()
    expected.head = less
    found = LeGrad(net)(X, Contrast(2, 5))
    torch.testing.assert_close(found.values, LeGrad(expected).attribute(X, 2))


def test_the_result_says_what_was_read() -> None:
    found = LeGrad(Transformer())(X)
    assert found.provenance["attention"] == "3 layers"
    assert found.provenance["tokens"] == "grid 4 x 4 of 17 tokens, of which the output reads 1"
    assert found.coverage.count()["attention"] == 3
    assert found.values.shape == (3, 1, 32, 32)
    pooled = AttentionRollout(Transformer(token=False))(X)
    assert pooled.provenance["tokens"] == "grid 4 x 4 of 16 tokens, of which the output reads 16"


def test_torchvisions_vision_transformer_in_a_moment() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=6).double().eval()
    nn.init.normal_(net.heads.head.weight)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for kind in READERS:
        found = kind(net).each(x, [[1, 2], [3, 4]])
        assert found[0].values.shape == (2, 1, 64, 64)
        assert found[0].provenance["tokens"] == "grid 4 x 4 of 17 tokens, of which the output reads 1"
        torch.testing.assert_close(found[1].values[1:], kind(net).attribute(x[1:], 4))


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_tiny_r_s16_p8_224"])
def test_timms_transformers(name: str) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, num_classes=5, depth=2).eval()
    x = torch.randn(2, 3, 224, 224)
    for fused in (True, False):
        for block in net.blocks:
            block.attn.fused_attn = fused
        for kind in READERS:
            assert kind(net)(x, 1).values.isfinite().all()


class TestRefusals:
    @pytest.mark.parametrize("kind", READERS, ids=lambda m: m.name)
    def test_no_attention(self, kind: type[Method]) -> None:
        digits = backlit.load_model("digits").network
        x = torch.rand(1, 1, 32, 32)
        assert not has_attention(digits, (x,))
        with pytest.raises(UnsupportedOp, match=r"this network has none on the way to its output.*take GradCAM or LRP"):
            kind(digits)(x, 1)
        assert GradCAM(digits)(x, 1).values.shape == x.shape

    @pytest.mark.parametrize("kind", READERS, ids=lambda m: m.name)
    def test_windows(self, kind: type[Method]) -> None:
        torchvision = pytest.importorskip("torchvision")
        net = torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2], num_classes=4).eval()
        x = torch.randn(1, 3, 32, 32)
        with pytest.raises(
            UnsupportedOp, match=r"attn \(Tensor.matmul\) stays inside windows of the image. Use LibraGrad"
        ):
            kind(net)(x, 1)
        assert LibraGrad(net)(x, 1).values.isfinite().all()

    def test_channels(self) -> None:
        class Cross(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.patch, self.head = nn.Conv2d(1, 8, 8, 8), nn.Linear(8, 3)

            def forward(self, x: Tensor) -> Tensor:
                t = self.patch(x).flatten(2)  # (n, c, tokens): channels attend to channels
                return self.head(((t @ t.mT).softmax(-1) @ t).mean(2))

        with pytest.raises(UnsupportedOp, match="mixes channels, not places of the image"):
            AttentionRollout(Cross().double().eval())(X, 1)

    def test_other_tokens_later(self) -> None:
        class Pooled(Transformer):
            def forward(self, x: Tensor) -> Tensor:
                t = self.block(self.blocks[0], self.embed(x), lambda s: SPELLINGS["fused"](self.blocks[0], s))
                t = t.transpose(1, 2).unflatten(2, (4, 4))
                t = nn.functional.avg_pool2d(t, 2).flatten(2).transpose(1, 2)
                t = self.block(self.blocks[1], t, lambda s: SPELLINGS["fused"](self.blocks[1], s))
                return self.classify(t)

        with pytest.raises(UnsupportedOp, match=r"needs the same tokens in every block.*grid of 2 x 2.*4 x 4"):
            AttentionRollout(Pooled(token=False))(X, 1)

    def test_blocks_that_differ_have_no_common_head(self) -> None:
        class Uneven(Transformer):
            def forward(self, x: Tensor) -> Tensor:
                t = self.embed(x)
                for block in self.blocks[:2]:
                    t = self.block(block, t, lambda s, block=block: SPELLINGS["fused"](block, s))
                return self.classify(t + SPELLINGS["fused"](self.blocks[2], t))

        net = Uneven()
        with pytest.raises(UnsupportedOp, match=r"runs the network's head on what each block puts out.*are not alike"):
            LeGrad(net)(X, 1)
        assert LeGrad(net, layers=1)(X, 1).values.isfinite().all()
        assert AttentionRollout(net)(X, 1).values.isfinite().all()

    @pytest.mark.parametrize("layers", [0, -1, 1.5, True])
    def test_layers_that_are_no_number(self, layers: object) -> None:
        with pytest.raises(InputError, match="layers must be a positive integer or None"):
            LeGrad(Transformer(), layers=layers)  # type: ignore[arg-type]

    def test_more_layers_than_there_are(self) -> None:
        with pytest.raises(InputError, match="layers must be at most 3, the number of attention layers, but is 4"):
            LeGrad(Transformer(), layers=4)(X, 1)


class TestLibraGrad:
    @pytest.mark.parametrize("spelling", SPELLINGS)
    def test_is_the_gradient_of_the_network_with_factors_held(self, spelling: str) -> None:
        net = Transformer(spelling)
        torch.testing.assert_close(LibraGrad(net).attribute(X, TARGETS), held(net, X, TARGETS))

    def test_is_lrp_with_epsilon_in_every_layer(self) -> None:
        net = Transformer("by hand")
        torch.testing.assert_close(
            LibraGrad(net).attribute(X, TARGETS), LRP(net, preset="epsilon", epsilon=1e-12).attribute(X, TARGETS)
        )

    def test_sum_and_biases_are_the_logit_where_all_else_is_linear(self) -> None:
        """Without biases and constants the map alone sums to the logit; plain gradient times input does not."""
        net = Transformer("by hand")
        for name, p in net.named_parameters():
            if name.endswith("bias") or name in ("cls", "pos"):
                p.data.zero_()
        found = LibraGrad(net)(X, TARGETS)
        torch.testing.assert_close(found.values.sum((1, 2, 3)), found.output)
        assert float(found.completeness["biases"].abs().max()) < 1e-9
        assert float(GradientXInput(net)(X, TARGETS).completeness["biases"].abs().max()) > 1e-3

    def test_a_gated_unit_passes_half_to_each_factor(self) -> None:
        class Gated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.head = (nn.Linear(i, o, bias=False) for i, o in ((64, 6), (64, 6), (6, 3)))

            def forward(self, x: Tensor) -> Tensor:
                x = x.flatten(1)
                return self.head(nn.functional.silu(self.a(x)) * self.b(x))

        net = Gated().double().eval()
        x = X[:, :, :8, :8]
        flat = x.flatten(1).requires_grad_()
        a, b = net.a(flat), net.b(flat)
        product = a * a.sigmoid().detach() * b
        (grad,) = torch.autograd.grad(net.head(product)[:, 2].sum() / 2, flat)
        torch.testing.assert_close(LibraGrad(net).attribute(x, 2), (grad * flat).detach().reshape(x.shape))
        found = LibraGrad(net)(x, 2)
        torch.testing.assert_close(found.values.sum((1, 2, 3)), found.output)

    def test_probabilities_at_the_end_keep_their_derivative(self) -> None:
        net = nn.Sequential(nn.Flatten(), nn.Linear(1024, 4), nn.Softmax(-1)).double().eval()
        torch.testing.assert_close(LibraGrad(net).attribute(X, 1), X * Gradient(net).attribute(X, 1))

    def test_on_a_relu_network_it_is_gradient_times_input(self) -> None:
        net = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(324, 4)).double()
        torch.testing.assert_close(LibraGrad(net.eval()).attribute(X, 1), GradientXInput(net).attribute(X, 1))


def held(net: Transformer, x: Tensor, targets: Tensor) -> Tensor:
    """Gradient times input by autograd, with detached attention weights, deviations and gates (Mehri et al. 2025)."""
    leaf = x.clone().requires_grad_()

    def norm(layer: nn.Module, t: Tensor) -> Tensor:
        centred = t - t.mean(-1, keepdim=True)
        return (
            centred / (t.var(-1, unbiased=False, keepdim=True) + layer.eps).sqrt().detach() * layer.weight + layer.bias
        )

    t = net.embed(leaf)
    for block in net.blocks:
        s = norm(block.norm1, t)
        q, k, v = block.qkv(s).reshape(len(s), -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) / 2).softmax(-1).detach()
        t = t + block.proj((weights @ v).transpose(1, 2).flatten(2))
        h = block.fc1(norm(block.norm2, t))
        gate = ((1 + torch.erf(h / 2**0.5)) / 2).detach()
        t = t + block.fc2(h * gate)
    logits = net.head(norm(net.norm, t)[:, 0])
    (grad,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), leaf)
    return (grad * leaf).detach()
