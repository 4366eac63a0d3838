"""clone(x), detach(x), dropout(x) in evaluation, … => x; what the trace asserts of dtypes and devices => nothing."""

import torch
from torch import fx

_aten = torch.ops.aten

# In a functional graph a copy or an alias is the value itself. A clone or _to_copy that changes the memory
# format only moves data about: layouts are the business of the runtime.
_IDENTITIES = {
    _aten.clone.default,
    _aten.detach.default,
    _aten.alias.default,
    _aten.contiguous.default,
    _aten.lift_fresh_copy.default,
    _aten.dropout.default,
    _aten.feature_dropout.default,
    _aten.alpha_dropout.default,
    _aten.feature_alpha_dropout.default,
}


def remove_identities(module: fx.GraphModule) -> int:
    """Replace every node that returns its input unchanged by that input; returns how many.

    Dropout has been checked to be in evaluation mode when it gets here. What torch.export asserts at every ``.to()``,
    the dtype and device that the trace had, would not let the graph be converted or moved.
    """
    removed = 0
    for node in list(module.graph.nodes):
        if node.target is _aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
        if node.op == "call_function" and node.target in _IDENTITIES:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
            removed += 1
    return removed
