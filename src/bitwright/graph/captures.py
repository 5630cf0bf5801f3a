"""What the branches and bodies of If, Loop and Scan read from the graph around them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs among a node's attributes."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def has_subgraph(node: ir.Node) -> bool:
    """Whether a node holds graphs of its own."""
    return next(subgraphs(node), None) is not None


def captured_values(node: ir.Node) -> list[ir.Value]:
    """Values of the outer graph that a node's subgraphs read, each once, in the order of reading."""
    return list(dict.fromkeys(value for graph in subgraphs(node) for value in _outer_reads(graph)))


def _outer_reads(graph: ir.Graph) -> Iterator[ir.Value]:
    own = {*graph.inputs, *graph.initializers.values(), *(o for inner in graph for o in inner.outputs)}
    reads = [v for inner in graph for v in (*inner.inputs, *captured_values(inner))]
    yield from (v for v in (*reads, *graph.outputs) if v is not None and v not in own)
