// Run a model with onnxruntime-node on noise, and print its first output.
//   npm install onnxruntime-node --ignore-scripts
//   node run_in_node.mjs model_int8.onnx input 1,3,64,64
import * as ort from "onnxruntime-node";

const [path, name, sizes] = process.argv.slice(2);
const shape = sizes.split(",").map(Number);
const session = await ort.InferenceSession.create(path, { executionProviders: ["cpu"] });
const count = shape.reduce((product, size) => product * size, 1);
const values = Float32Array.from({ length: count }, (_, index) => Math.sin(index));
const results = await session.run({ [name]: new ort.Tensor("float32", values, shape) });
const output = results[session.outputNames[0]];
console.log(session.outputNames[0], output.dims, Array.from(output.data.slice(0, 5)));
