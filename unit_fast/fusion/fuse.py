"""The fused graph: every pass of fusion, in order, over a copy."""

from torch import fx

from unit_fast.fusion.attend_batch_first import attend_batch_first
from unit_fast.fusion.fuse_batch_norm import fuse_batch_norm
from unit_fast.fusion.fuse_conv2d import fuse_conv2d
from unit_fast.fusion.fuse_epilogue import fuse_epilogue
from unit_fast.fusion.fuse_linear import fuse_linear
from unit_fast.fusion.hand_over_biases import hand_over_biases
from unit_fast.fusion.rewrite import copy_graph, tidy

# What gets a residual next to it first, then producers: what they leave goes to the passes over memory.
_PASSES = (attend_batch_first, fuse_conv2d, hand_over_biases, fuse_linear, fuse_batch_norm, fuse_epilogue)


def fuse(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a sanitised graph in which the elementwise tails have gone into ``torch.ops.unit_fast`` operators.

    It shares the tensors of ``module``. The node of each operator says in ``meta["fused"]`` what it does the work of,
    and in ``meta["site"]`` whose clamp it holds; ``meta["fusions"]`` of the graph counts the matches of each pass.
    """
    fused = copy_graph(module)
    fused.meta["fusions"] = {apply.__name__: apply(fused) for apply in _PASSES}
    tidy(fused)
    return fused
