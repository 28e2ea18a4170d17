"""Peak memory of one ``quantize`` in this process: what ``--max-memory`` does.

    python tools/measure_memory.py [--max-memory 256M] [--recipe mse]

Prints one JSON object: ``before_mb``, the peak of the process with everything loaded; ``peak_mb``, the peak in the end;
``activations_mb``, what the activations of a full batch take by themselves.
"""

from __future__ import annotations

import argparse
import json
import resource

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnx_hyvit
from onnx_hyvit.runtime import observe_shapes

SIDE, WIDTH, LAYERS, BATCH = 128, 32, 12, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-memory")
    parser.add_argument("--recipe", default="mse")
    options = parser.parse_args()
    model = wide_model()
    data = {"x": np.random.default_rng(0).normal(size=(BATCH, 3, SIDE, SIDE)).astype(np.float32)}
    warm = {"x": data["x"][:1]}
    config = onnx_hyvit.QuantConfig(recipe=options.recipe, verify=False, threads=1, batch_size=1)
    onnx_hyvit.quantize(model, calibration=warm, config=config)  # loads all code; one sample
    before = peak_mb()
    onnx_hyvit.quantize(
        model, calibration=data, config=config.replace(batch_size=BATCH, samples=BATCH, max_memory=options.max_memory)
    )
    made = {name for node in model.graph.node for name in node.output}
    sizes = [np.prod(shape) for name, shape in observe_shapes(model).items() if name in made]
    total = 4 * BATCH * float(np.sum(sizes)) / 2**20
    print(json.dumps({"before_mb": round(before), "peak_mb": round(peak_mb()), "activations_mb": round(total)}))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def wide_model() -> onnx.ModelProto:
    """Convolutions with a free batch whose activations are far larger than their weights."""
    rng = np.random.default_rng(0)
    nodes, weights, last, channels = [], [], "x", 3
    for index in range(LAYERS):
        name = f"w{index}"
        weights.append(numpy_helper.from_array(rng.normal(0, 0.2, (WIDTH, channels, 1, 1)).astype(np.float32), name))
        nodes.append(helper.make_node("Conv", [last, name], [f"c{index}"], f"conv{index}"))
        nodes.append(helper.make_node("Sigmoid", [f"c{index}"], [f"s{index}"], f"act{index}"))
        last, channels = f"s{index}", WIDTH
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", WIDTH, SIDE, SIDE])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


if __name__ == "__main__":
    main()
