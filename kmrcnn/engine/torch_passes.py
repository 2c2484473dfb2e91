"""Simplifications of traced graphs. Each leaves the values as they are, up to the rounding of folded scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten

# Element-wise operations of one or two tensors of equal shape, through which a permutation can be moved.
_UNARY = {aten.relu.default, aten.sigmoid.default, aten.neg.default, aten._to_copy.default}
_BINARY = {aten.add.Tensor, aten.mul.Tensor, aten.threshold_backward.default}
_MAX_CONSTANT = 1 << 24  # elements; larger results are computed anew in every step rather than held


def remove_detach(graph: GraphModule) -> None:
    """Let users of detached tensors have the tensors; for graphs that nobody differentiates any more."""
    for node in list(graph.graph.nodes):
        if node.target in (aten.detach.default, aten.alias.default):
            _replace(graph.graph, node, node.args[0])


def fold_constants(graph: GraphModule) -> None:
    """Compute what depends on no argument now, once: anchors, small tables, and their copies to the device."""
    borders = known_results(graph, ())
    # Constants of a traced function are real tensors, so this computes real values.
    values = extract(graph, borders)()
    for index, (node, value) in enumerate(zip(borders, values, strict=True)):
        if value.numel() <= _MAX_CONSTANT:
            graph.register_buffer(f"constant_{index}", value, persistent=False)
            with graph.graph.inserting_before(node):
                constant = graph.graph.get_attr(f"constant_{index}")
            constant.meta.update(node.meta)
            _replace(graph.graph, node, constant)
    graph.graph.eliminate_dead_code()


def known_results(graph: GraphModule, arguments: Iterable[Node]) -> list[Node]:
    """What a graph computes of some of its arguments and of constants alone, as far as the rest of it uses that."""
    known = set(arguments)
    for node in graph.graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and _is_pure(node) and _all_known(node, known)):
            known.add(node)
    changed = {argument for node in graph.graph.nodes if not _is_pure(node) for argument in node.all_input_nodes}
    return [node for node in graph.graph.nodes if node in known - changed and node.op == "call_function"
            and isinstance(node.meta["val"], torch.Tensor) and any(user not in known for user in node.users)]


def extract(graph: GraphModule, wanted: Sequence[Node], arguments: Sequence[Node] = ()) -> GraphModule:
    """The part of a graph that computes `wanted`, a function of `arguments`."""
    part, places = Graph(), {}
    needed = _with_ancestors(wanted)
    for argument in arguments:
        places[argument] = part.placeholder(argument.name)
    for node in graph.graph.nodes:
        if node in needed and node not in places:
            places[node] = part.node_copy(node, places.__getitem__)
    part.output(tuple(places[node] for node in wanted))
    return GraphModule(graph, part)


def _is_pure(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return (node.op != "output" and not random and not _is_shared(schema)
            and (schema is None or not schema.is_mutable))


def _is_shared(schema: torch.FunctionSchema | None) -> bool:
    """Whether all replicas have to do an operation together: it is given their group, by name."""
    arguments = () if schema is None else schema.arguments
    # Group norm has a `group`, too, but that is a number.
    return any(argument.name == "group_name" or (argument.name == "group" and str(argument.type) == "str")
               for argument in arguments)


def _all_known(node: Node, known: set[Node]) -> bool:
    return all(argument in known for argument in node.all_input_nodes)


def _with_ancestors(nodes: Sequence[Node]) -> set[Node]:
    found, waiting = set(), list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def cancel_permutes(graph: GraphModule) -> None:
    """Remove permutations that undo each other, after moving them down through element-wise operations."""
    for node in list(graph.graph.nodes):
        if node.target in _UNARY:
            _move_down(graph.graph, node, 1)
        elif node.target in _BINARY:
            _move_down(graph.graph, node, 2)
        elif node.target == aten.permute.default:
            _cancel(graph.graph, node)
    graph.graph.eliminate_dead_code()


def _move_down(graph: Graph, node: Node, count: int) -> None:
    """f(permute(a), permute(b)) -> permute(f(a, b))."""
    operands = node.args[:count]
    if not all(isinstance(operand, Node) and operand.target == aten.permute.default for operand in operands):
        return
    if len({tuple(operand.args[1]) for operand in operands}) > 1:
        return
    axes = list(operands[0].args[1])
    with graph.inserting_after(node):
        moved = _call(graph, node.target, (*(operand.args[0] for operand in operands), *node.args[count:]),
                      node.kwargs, like=node)
    with graph.inserting_after(moved):
        back = _call(graph, aten.permute.default, (moved, axes), like=node)
    moved.meta["val"] = _meta(node, lambda value: value.permute(_inverse(axes)))
    _replace(graph, node, back)


def _cancel(graph: Graph, node: Node) -> None:
    source, axes = node.args
    if source.target != aten.permute.default:
        return
    inner = source.args[1]
    combined = [inner[axis] for axis in axes]
    if combined == sorted(combined):
        _replace(graph, node, source.args[0])
    else:
        node.args = (source.args[0], combined)


def _inverse(axes: list[int]) -> list[int]:
    return sorted(range(len(axes)), key=lambda axis: axes[axis])


def fold_batch_norm(graph: GraphModule, least: float) -> None:
    """Replace normalisation with fixed statistics after a convolution by scaled weights and an offset.

    Args:
        least: where the map has at least this many elements for each of the convolution's weights.

    s = gamma / sqrt(variance + epsilon): norm(conv(x, w) + b) = conv(x, s w) + s (b - mean) + beta. It saves the passes
    over the activations, forward and backward; gradients reach gamma, beta and w through the products.
    """
    for node in list(graph.graph.nodes):
        if node.target != aten.native_batch_norm.default or node.args[5]:
            continue
        source, casts = _before_casts(node.args[0])
        shared = any(len(step.users) > 1 for step in (source, *casts))
        results = {user.args[1]: user for user in node.users}
        if source.target != aten.convolution.default or source.args[6] or shared or set(results) - {0}:
            continue
        weight, channels = source.args[1].meta["val"], node.args[1].meta["val"].numel()
        if weight.shape[0] != channels or node.args[0].meta["val"].numel() < least * weight.numel():
            continue
        _fold(graph.graph, source, node, results[0])
    graph.graph.eliminate_dead_code()


def _fold(graph: Graph, conv: Node, norm: Node, result: Node) -> None:
    x, weight, bias, *geometry = conv.args
    gamma, beta, mean, variance, epsilon = *norm.args[1:5], norm.args[7]
    dtype = result.meta["val"].dtype
    compute = weight.meta["val"].dtype
    with graph.inserting_before(conv):
        def call(target: Callable, *args: object) -> Node:
            return _call(graph, target, args, like=conv)

        scale = call(aten.mul.Tensor, gamma, call(aten.rsqrt.default, call(aten.add.Tensor, variance, epsilon)))
        rows = call(aten.view.default, scale, [-1] + [1] * (weight.meta["val"].ndim - 1))
        scaled = call(aten.mul.Tensor, _widest(weight), rows)
        centre = call(aten.neg.default, mean) if bias is None else call(aten.sub.Tensor, _widest(bias), mean)
        offset = call(aten.add.Tensor, call(aten.mul.Tensor, centre, scale), beta)
        if compute != torch.float32:
            scaled, offset = (_cast(graph, value, compute, conv) for value in (scaled, offset))
    with graph.inserting_after(norm):
        folded = _call(graph, aten.convolution.default, (x, scaled, offset, *geometry), like=conv)
    last = folded
    if dtype != compute:
        with graph.inserting_after(folded):
            last = _cast(graph, folded, dtype, conv)
    last.meta["val"] = result.meta["val"]
    _replace(graph, result, last)


def _before_casts(node: Node) -> tuple[Node, list[Node]]:
    """The node whose value reaches `node` by changes of dtype alone, and these."""
    casts = []
    while node.target == aten._to_copy.default:
        casts.append(node)
        node = node.args[0]
    return node, casts


def _widest(node: Node) -> Node:
    """A weight before it was rounded to the dtype of the computation, if it was."""
    if node.target == aten._to_copy.default and node.args[0].meta["val"].dtype == torch.float32:
        return node.args[0]
    return node


def _cast(graph: Graph, node: Node, dtype: torch.dtype, like: Node) -> Node:
    return _call(graph, aten._to_copy.default, (node,), {"dtype": dtype}, like=like)


def _call(graph: Graph, target: Callable, args: tuple, kwargs: dict | None = None, *, like: Node) -> Node:
    node = graph.call_function(target, args, kwargs or {})
    node.meta = {name: value for name, value in like.meta.items() if name != "val"}
    return node


def _meta(node: Node, change: Callable) -> torch.Tensor | None:
    value = node.meta.get("val")
    return None if value is None else change(value)


def _replace(graph: Graph, node: Node, by: Node) -> None:
    node.replace_all_uses_with(by)
    graph.erase_node(node)
