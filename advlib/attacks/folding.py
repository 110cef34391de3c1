"""A network as the attack runs it: batch norm folded into the convolutions before it."""

import math
import warnings
from collections import Counter
from collections.abc import Callable

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from advlib.attacks.pgd import attack_mode
from advlib.networks.build import Normalize
from advlib.networks.device import autocast
from advlib.threat import ThreatModel

PASSES = 16  # of the network that is compared with its folded copy


def folding(model: nn.Module, x: torch.Tensor) -> Callable[[], nn.Module]:
    """A function that returns a faster copy of the network for attacks in evaluation mode.

    In evaluation mode a batch norm is a scale and a shift per channel, which the convolution before
    it can take over. The time of an attack step beside the convolutions is then about halved. Each
    call brings the one copy up to date with the weights of `model`, which is left as it is.

    A network that `torch.fx` cannot follow, or that gives other logits for the images x when folded
    (so does one that draws random numbers: a trace keeps the ones drawn), is returned as it is,
    with a warning: the attack is then slower, not different.
    """
    try:
        with attack_mode(model, "eval"):
            folded, pairs = _fold(model)
            with torch.no_grad(), autocast(x.device, torch.float32):
                found = folded(x)
                for _ in range(PASSES):  # it may draw the same numbers more than once
                    wanted = model(x)
                    close = {"rtol": 1e-3, "atol": 1e-3 * float(wanted.abs().max())}
                    if not torch.allclose(found, wanted, **close):
                        raise ValueError("it gives other logits")
    except Exception as error:  # whatever a stranger's network does when it is traced
        warnings.warn(
            f"batch norm stays unfolded, attacks are slower: {type(error).__name__}: {error}",
            stacklevel=2,
        )
        return lambda: model

    @torch.no_grad()
    def current() -> nn.Module:
        for layer, convolution, norm in pairs:
            weight, bias = fuse_conv_bn_weights(
                convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps,
                norm.weight, norm.bias,
            )  # fmt: skip
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        return folded

    return current


def sharpen(folded: fx.GraphModule) -> None:
    """Let the end of a folded network, from its last pooling on, compute in float32.

    The rounding of its last layer is what hides most of a small change of the image in bfloat16.
    """
    calls = Counter(node.target for node in folded.graph.nodes if node.op == "call_module")
    (node,) = next(n for n in folded.graph.nodes if n.op == "output").args
    head = False
    while isinstance(node, fx.Node) and len(node.all_input_nodes) == 1:
        if node.op == "call_module":
            layer = folded.get_submodule(node.target)
            weighty = any(True for _ in layer.parameters())
            if (weighty and head) or calls[node.target] > 1 or isinstance(layer, nn.Conv2d):
                break
            folded.set_submodule(node.target, _InFloat32(layer))
            head = head or weighty
        node = node.all_input_nodes[0]


@torch.no_grad()
def shows_small_changes(model: nn.Module, x: torch.Tensor, threat: ThreatModel, dtype) -> bool:
    """Whether the logits of a network show in `dtype` what a small square does to them.

    The square has an eighth of the image's side, and the size of the ball.
    """
    there, (height, width) = x.clone(), x.shape[-2:]
    rows, columns = (slice(side // 2, side // 2 + max(side // 8, 1)) for side in (height, width))
    square = there[:, :, rows, columns]
    square += threat.eps / (1 if threat.norm == "Linf" else math.sqrt(square[0].numel()))
    changes = []
    for precision in (torch.float32, dtype):
        with autocast(x.device, precision):
            changes.append((model(there) - model(x)).float())
    return bool((changes[1] - changes[0]).norm() < changes[0].norm() / 3)


class _InFloat32(nn.Module):
    """A layer, also under autocast."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.float())


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        # Layers stay whole: some ask for the shape of their images, which cannot be traced, and
        # `pixel_std` looks for the normalisation.
        whole = isinstance(module, Normalize | nn.BatchNorm2d) or not any(module.children())
        return (whole and module is not self.root) or super().is_leaf_module(module, name)


class _GlobalAveragePool(nn.Module):
    """As `nn.AdaptiveAvgPool2d(1)`, whose gradient is expanded and slows the layer before it."""

    def forward(self, x):
        return F.avg_pool2d(x, x.shape[-2:])


def _fold(model):
    """The folded copy in evaluation mode, and (its convolution, convolution, norm) of each pair."""
    tracer = _Tracer()
    folded = fx.GraphModule(model, tracer.trace(model))
    calls = Counter(node.target for node in folded.graph.nodes if node.op == "call_module")
    pairs = []
    for node in list(folded.graph.nodes):
        if node.op != "call_module" or calls[node.target] > 1:
            continue
        module = folded.get_submodule(node.target)
        if isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            folded.set_submodule(node.target, _GlobalAveragePool())
        if not isinstance(module, nn.BatchNorm2d) or not module.track_running_stats:
            continue
        before = node.args[0]
        if before.op != "call_module" or calls[before.target] > 1 or len(before.users) > 1:
            continue
        convolution = folded.get_submodule(before.target)
        if not isinstance(convolution, nn.Conv2d):
            continue
        layer = fuse_conv_bn_eval(convolution, module).requires_grad_(False)
        folded.set_submodule(before.target, layer.to(memory_format=torch.channels_last))
        pairs.append((layer, convolution, module))
        if any(module.children()):  # timm's norms hold the dropout and activation after them
            folded.set_submodule(node.target, nn.Sequential(*module.children()))
        else:
            node.replace_all_uses_with(before)
            folded.graph.erase_node(node)
    folded.recompile()
    return folded.eval(), pairs
