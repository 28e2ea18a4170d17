"""VJP rules of data movement: the adjoint moves the gradient back."""

from __future__ import annotations

import numpy as np

from .registry import ForwardNode, Gradients, NoRule, vjp
from .tape import Tape


def constant_input(tape: Tape, node: ForwardNode, index: int, what: str) -> np.ndarray | None:
    """Value of an optional input that must be constant.

    Raises:
        NoRule: It is there and varies.
    """
    if not node.input(index):
        return None
    value = tape.value(node.input(index))
    if value is None:
        raise NoRule(f"its {what} is not constant")
    return value


def first(node: ForwardNode, gradient: str | None) -> Gradients:
    """Gradient of input 0 only."""
    return [gradient, *([None] * (len(node.inputs) - 1))]


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Reshape back."""
    assert grads[0] is not None
    return first(node, tape.reshape(grads[0], tape.shape(node.inputs[0])))


@vjp("Identity", "Dropout")
def identity(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """The gradient itself (Dropout at inference)."""
    training = tape.value(node.input(2)) if node.op == "Dropout" and node.input(2) else None
    if training is not None and bool(training):
        raise NoRule("it is in training mode")
    return first(node, grads[0])


@vjp("Cast", "CastLike")
def cast(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Cast back, between floating-point types; zero through integers."""
    assert grads[0] is not None
    source = tape.dtype(node.inputs[0])
    if not (np.issubdtype(source, np.floating) and np.issubdtype(tape.dtype(node.outputs[0]), np.floating)):
        return first(node, None)
    return first(node, tape.cast(grads[0], source))


@vjp("Transpose")
def transpose(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """The inverse permutation."""
    assert grads[0] is not None
    rank = len(tape.shape(node.inputs[0]))
    perm = list(node.attrs.get("perm") or range(rank)[::-1])
    return [tape.transpose(grads[0], [perm.index(axis) for axis in range(rank)])]


@vjp("Concat")
def concat(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Each input gets its slice."""
    assert grads[0] is not None
    axis = int(node.attrs["axis"]) % len(tape.shape(node.outputs[0]))
    found: list[str | None] = []
    start = 0
    for index, name in enumerate(node.inputs):
        end = start + tape.shape(name)[axis]
        part = None
        if node.need(index):
            part = tape.op("Slice", grads[0], tape.ints([start]), tape.ints([end]), tape.ints([axis]))
        found.append(part)
        start = end
    return found


@vjp("Split")
def split(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """The gradients of the parts, concatenated; zeros for parts that the loss does not see."""
    axis = int(node.attrs.get("axis", 0)) % len(tape.shape(node.inputs[0]))
    parts = [g if g is not None else tape.zeros(name) for g, name in zip(grads, node.outputs, strict=True) if name]
    return first(node, tape.op("Concat", *parts, axis=axis))


@vjp("Slice")
def slice_(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Pad with zeros; a step above 1 spreads the gradient first, a negative one turns it around."""
    g = grads[0]
    assert g is not None
    shape = tape.shape(node.inputs[0])
    starts = constant_input(tape, node, 1, "start")
    axes = constant_input(tape, node, 3, "axes")
    steps = constant_input(tape, node, 4, "step")
    assert starts is not None
    chosen = range(len(starts)) if axes is None else [int(axis) % len(shape) for axis in axes]
    current = list(tape.shape(node.outputs[0]))
    before, after = [0] * len(shape), [0] * len(shape)
    for index, axis in enumerate(chosen):
        step = 1 if steps is None else int(steps[index])
        limit = shape[axis] if step > 0 else shape[axis] - 1
        start = int(starts[index])
        start = min(max(start + shape[axis] if start < 0 else start, 0), limit)
        g, start = _undo_step(tape, g, current, axis, start, step)
        before[axis], after[axis] = start, shape[axis] - start - current[axis]
    return first(node, tape.pad(g, before, after))


def _undo_step(tape: Tape, g: str, shape: list[int], axis: int, start: int, step: int) -> tuple[str, int]:
    """Gradient at step 1 along ``axis``, and its start; ``shape`` is updated."""
    count = shape[axis]
    if step < 0:
        g = tape.op("Slice", g, tape.ints([-1]), tape.ints([-(2**31)]), tape.ints([axis]), tape.ints([-1]))
        start, step = start + (count - 1) * step, -step
    if step > 1:
        rank = len(shape)
        g = tape.reshape(g, [*shape[: axis + 1], 1, *shape[axis + 1 :]])
        after = [0] * (rank + 1)
        after[axis + 1] = step - 1
        g = tape.pad(g, [0] * (rank + 1), after)
        shape[axis] = count * step
        g = tape.reshape(g, shape)
    return g, start


@vjp("Gather")
def gather(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """One index: zeros around it. Several: a one-hot matrix, which also adds up repeated indices."""
    g = grads[0]
    assert g is not None
    if not node.need(0):
        return first(node, None)
    shape, index_shape = tape.shape(node.inputs[0]), tape.shape(node.inputs[1])
    axis = int(node.attrs.get("axis", 0)) % len(shape)
    size, count = shape[axis], int(np.prod(index_shape))
    g = tape.reshape(g, [*shape[:axis], count, *shape[axis + 1 :]])
    indices = tape.value(node.inputs[1])
    if indices is not None and indices.size == 1:
        position = int(indices.reshape(-1)[0]) % size
        before, after = [0] * len(shape), [0] * len(shape)
        before[axis], after[axis] = position, size - 1 - position
        return first(node, tape.pad(g, before, after))
    dtype = tape.dtype(node.inputs[0])
    if indices is not None:
        matrix: str | np.ndarray = np.eye(size, dtype=dtype)[indices.reshape(-1) % size]
    else:
        flat = tape.reshape(node.inputs[1], [count])
        matrix = tape.op("OneHot", flat, tape.ints([size]), tape.const(np.asarray([0, 1], dtype)))
    return first(node, tape.contract(g, len(shape), axis, matrix))


@vjp("GatherElements")
def gather_elements(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Scatter-add at the indices."""
    if tape.opset < 16:
        raise NoRule("its gradient needs opset 16")
    assert grads[0] is not None
    zeros = tape.zeros(node.inputs[0])
    axis = int(node.attrs.get("axis", 0))
    return [tape.op("ScatterElements", zeros, node.inputs[1], grads[0], axis=axis, reduction="add"), None]


@vjp("GatherND")
def gather_nd(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Scatter-add at the indices."""
    if tape.opset < 16 or node.attrs.get("batch_dims", 0):
        raise NoRule("its gradient needs opset 16 and no batch_dims")
    assert grads[0] is not None
    return [tape.op("ScatterND", tape.zeros(node.inputs[0]), node.inputs[1], grads[0], reduction="add"), None]


@vjp("ScatterND")
def scatter_nd(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Zeros where values were written for the data; a gather for the updates."""
    g = grads[0]
    assert g is not None
    if node.attrs.get("reduction", "none") not in ("none", "add"):
        raise NoRule(f"reduction {node.attrs['reduction']!r}")
    gathered = tape.op("GatherND", g, node.inputs[1])
    kept = g
    if node.need(0) and node.attrs.get("reduction", "none") == "none":
        kept = tape.op("ScatterND", g, node.inputs[1], tape.op("Mul", gathered, 0.0))
    return [kept, None, gathered]


@vjp("Expand")
def expand(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Sum over the new extent."""
    assert grads[0] is not None
    return [tape.unbroadcast(grads[0], tape.shape(node.outputs[0]), tape.shape(node.inputs[0])), None]


@vjp("Tile")
def tile(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Sum over the repeats."""
    assert grads[0] is not None
    shape, out = tape.shape(node.inputs[0]), tape.shape(node.outputs[0])
    pairs = [value for n, m in zip(shape, out, strict=True) for value in (m // n, n)]
    g = tape.reshape(grads[0], pairs)
    return [tape.reduce("ReduceSum", g, list(range(0, len(pairs), 2)), keepdims=False), None]


@vjp("Pad")
def pad(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Constant padding: crop. Reflect, edge, wrap: also add the border to the elements that it copies."""
    g = grads[0]
    assert g is not None
    rank = len(tape.shape(node.inputs[0]))
    amounts = constant_input(tape, node, 1, "amount of padding")
    axes = constant_input(tape, node, 3, "axes")
    assert amounts is not None
    chosen = list(range(rank)) if axes is None else [int(axis) % rank for axis in axes]
    before, after = [0] * rank, [0] * rank
    for index, axis in enumerate(chosen):
        before[axis], after[axis] = int(amounts[index]), int(amounts[len(chosen) + index])
    mode = node.attrs.get("mode", "constant")
    if mode == "constant":
        return first(node, tape.pad(g, [-n for n in before], [-n for n in after]))
    if min(*before, *after) < 0:
        raise NoRule(f"negative amounts in mode {mode!r}")
    for axis, size in enumerate(tape.shape(node.inputs[0])):
        if before[axis] or after[axis]:
            source = np.pad(np.arange(size), (before[axis], after[axis]), mode=mode)
            g = tape.contract(g, rank, axis, np.eye(size, dtype=tape.dtype(node.inputs[0]))[source])
    return first(node, g)


@vjp("DepthToSpace")
def depth_to_space(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """The blocks go back into channels."""
    assert grads[0] is not None
    n, c, h, w = tape.shape(node.inputs[0])
    b = int(node.attrs["blocksize"])
    column_first = node.attrs.get("mode", "DCR") == "CRD"
    split_space = tape.reshape(grads[0], [n, c // b**2, h, b, w, b])
    perm = [0, 1, 3, 5, 2, 4] if column_first else [0, 3, 5, 1, 2, 4]
    return [tape.reshape(tape.transpose(split_space, perm), [n, c, h, w])]


@vjp("SpaceToDepth")
def space_to_depth(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """The channels go back into blocks: DepthToSpace."""
    assert grads[0] is not None
    return [tape.op("DepthToSpace", grads[0], blocksize=int(node.attrs["blocksize"]), mode="DCR")]


@vjp("Col2Im")
def col2im(tape: Tape, node: ForwardNode, grads: Gradients) -> Gradients:
    """Each column reads the pixels that it was added to."""
    assert grads[0] is not None
    image, block = (constant_input(tape, node, index, what) for index, what in ((1, "image size"), (2, "block size")))
    assert image is not None and block is not None
    rank = len(block)
    pads = [int(pad) for pad in node.attrs.get("pads", [0] * 2 * rank)]
    strides, dilations = (node.attrs.get(name, [1] * rank) for name in ("strides", "dilations"))
    padded = [int(size) + pads[axis] + pads[rank + axis] for axis, size in enumerate(image)]
    reads = np.zeros((1, 1), np.int64)
    for axis in range(rank):  # pixel of the padded image for each (place in the block, block), row by row
        blocks = (padded[axis] - dilations[axis] * (int(block[axis]) - 1) - 1) // strides[axis] + 1
        along = np.arange(block[axis])[:, None] * dilations[axis] + np.arange(blocks) * strides[axis]
        reads = reads[:, None, :, None] * padded[axis] + along[None, :, None, :]
        reads = reads.reshape(reads.shape[0] * reads.shape[1], -1)
    n, columns, count = tape.shape(node.inputs[0])
    channels = columns // len(reads)
    whole = tape.pad(grads[0], [0, 0, *pads[:rank]], [0, 0, *pads[rank:]])
    flat = tape.reshape(whole, [n, channels, int(np.prod(padded))])
    found = tape.op("Gather", flat, tape.ints(reads.reshape(-1).tolist()), axis=2)
    return first(node, tape.reshape(found, [n, columns, count]))
