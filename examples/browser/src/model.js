// The exported model: its metadata, and embeddings by onnxruntime in one thread of WebAssembly.

import * as ort from "onnxruntime-web/wasm";
import { Refusal } from "./refusal.js";

// More threads would need the headers of a cross-origin isolated page.
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", document.baseURI).href };

/** Return what the model says about itself: see docs/guides/export.md. */
export async function loadFacts() {
  return (await get("model/model.json")).json();
}

/** Return a function that embeds mono samples at the model's rate: Float32Array (dim,). */
export async function loadEmbedder() {
  const file = await (await get("model/model.onnx")).arrayBuffer();
  const session = await ort.InferenceSession.create(new Uint8Array(file), { executionProviders: ["wasm"] });
  return async (samples) => {
    const start = performance.now();
    const { embedding } = await session.run({
      waveforms: new ort.Tensor("float32", samples, [1, samples.length]),
      lengths: new ort.Tensor("int64", [BigInt(samples.length)], [1]),
    });
    performance.measure("embed", { start }); // for developer tools and benchmarks
    return embedding.data;
  };
}

async function get(path) {
  const answer = await fetch(new URL(path, document.baseURI));
  if (!answer.ok) throw new Refusal(`${path} is missing here (status ${answer.status}); build the page again.`);
  return answer;
}
