"""Sums over replicas in traced graphs: each starts when what it sums is there, and is waited for at the end."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from kmrcnn.ops.torch_collectives import start_sum


def start_early(graph: GraphModule) -> None:
    """Move the start of every sum, and what packs its tensors, to right behind the last of these tensors.

    The sums stay in their order, which is the same on every replica: that of a bucket that is ready before the one in
    front of it waits for it.
    """
    places = {node: place for place, node in enumerate(graph.graph.nodes)}
    last: Node | None = None
    for start in [node for node in graph.graph.nodes if node.target == start_sum]:
        packing = _packing(start, places)
        needed = {source for node in packing for source in node.all_input_nodes} - set(packing)
        behind = max(needed, key=places.__getitem__)
        if last is not None and places[last] >= places[behind]:
            behind = last
        for node in packing:
            behind.append(node)
            places[node] = places[behind]
            behind = node
        last = start
    graph.recompile()


def _packing(start: Node, places: dict[Node, int]) -> list[Node]:
    """A start and the nodes that only bring its tensors into one, in order."""
    found, waiting = {start}, list(start.all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node.op == "call_function" and _only_packs(node) and set(node.users) <= found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return sorted(found, key=places.__getitem__)


def _only_packs(node: Node) -> bool:
    name = getattr(node.target, "_opname", "")
    return name in ("cat", "permute", "view", "reshape", "_unsafe_view", "clone", "expand", "unsqueeze")
