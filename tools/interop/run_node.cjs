// Run one model over prepared inputs with onnxruntime-node, or with onnxruntime-web's wasm backend in node.
// node run_node.cjs PACKAGE MODEL INPUTS.f32 SHAPE(comma separated, one sample) INPUT_NAME; prints one JSON object.
const fs = require("fs");

async function main() {
  const [packageName, model, inputs, shapeText, name] = process.argv.slice(2);
  const ort = require(packageName);
  if (packageName.includes("onnxruntime-web")) ort.env.wasm.numThreads = 1;
  const shape = shapeText.split(",").map(Number);
  const size = shape.reduce((a, b) => a * b, 1);
  const raw = fs.readFileSync(inputs);
  const data = new Float32Array(raw.buffer, raw.byteOffset, raw.byteLength / 4);
  const options = packageName.includes("web")
    ? { executionProviders: ["wasm"] }
    : { executionProviders: ["cpu"], intraOpNumThreads: 1 };
  const start = performance.now();
  const session = await ort.InferenceSession.create(fs.readFileSync(model), options);
  const load = performance.now() - start;
  const outputs = [];
  const times = [];
  for (let index = 0; index < data.length / size; index++) {
    const tensor = new ort.Tensor("float32", data.slice(index * size, (index + 1) * size), [1, ...shape]);
    const before = performance.now();
    const results = await session.run({ [name]: tensor });
    times.push(performance.now() - before);
    outputs.push(Array.from(results[session.outputNames[0]].data));
  }
  times.sort((a, b) => a - b);
  console.log(JSON.stringify({ load_ms: load, run_ms: times[Math.floor(times.length / 2)], outputs }));
}

main().catch((error) => {
  console.log(JSON.stringify({ error: String(error.message || error) }));
  process.exitCode = 1;
});
