// Bundles the page into dist/, or the folder in the argument: scripts, styles and onnxruntime's WebAssembly, so that
// it needs no network.

import { cp } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const output = process.argv[2] ?? here("dist");

await build({
  // The audio thread loads a file of its own.
  entryPoints: [here("src/page.js"), here("src/capture.js")],
  outdir: output,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "linked",
});
await cp(here("static"), output, { recursive: true });
// The plain build: one thread, CPU alone.
const wasm = "ort-wasm-simd-threaded.wasm";
await cp(here(`node_modules/onnxruntime-web/dist/${wasm}`), join(output, wasm));
