"""Mean over all of height and width ⇒ GlobalAveragePool, which runtimes run on integers; ReduceMean they do not."""

import onnx_ir as ir

from unit_fast.export.quantization.placement import data_input


def pool_means(graph: ir.Graph) -> dict[str, str]:
    """Rewrite in place.

    Returns:
        By the name of a tensor that is new, the name of the one that holds the same values.
    """
    made: dict[str, str] = {}
    for node in list(graph):
        if node.op_type != "ReduceMean" or node.domain or not _is_spatial(node):
            continue
        source, result = data_input(node), node.outputs[0]
        keeps = node.attributes.get("keepdims")
        pooled = ir.Value(name=f"{result.name}/pooled", type=ir.TensorType(ir.DataType.FLOAT))
        assert source.shape is not None
        pooled.shape = ir.Shape([*source.shape[:2], 1, 1])
        pool = ir.Node("", "GlobalAveragePool", [source], outputs=[pooled], name=f"{result.name}/pool")
        graph.insert_before(node, pool)
        if keeps is not None and keeps.as_int() == 0:
            flat = ir.Value(name=result.name, type=result.type, shape=result.shape)
            flatten = ir.Node("", "Flatten", [pooled], [ir.AttrInt64("axis", 1)], outputs=[flat], name=node.name)
            graph.insert_before(node, flatten)
        else:
            flat = pooled
        made[pooled.name or ""] = result.name or ""
        result.replace_all_uses_with(flat, replace_graph_outputs=True)
        graph.remove(node, safe=True)
    return made


def _is_spatial(node: ir.Node) -> bool:
    shape = data_input(node).shape
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if shape is None or len(shape) != 4 or axes is None or axes.const_value is None:
        return False
    return sorted(axis % 4 for axis in axes.const_value.numpy().reshape(-1).tolist()) == [2, 3]
