import { defineConfig } from "vitest/config";

const API = "http://127.0.0.1:8480";

export default defineConfig({
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  server: { proxy: { "/api": API, "/docs": API, "/openapi.json": API } },
  build: {
    outDir: "../src/cncmon_api/static",
    emptyOutDir: true,
    // One script (and one of the worker) and one style sheet: a page left open for days never asks for a chunk that an upgrade has removed.
    assetsInlineLimit: 0,
    reportCompressedSize: true,
  },
  test: { environment: "node", include: ["src/**/*.test.ts"] },
});
