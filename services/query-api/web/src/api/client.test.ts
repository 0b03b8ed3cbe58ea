import { afterEach, expect, test, vi } from "vitest";
import { type ApiError, getMachines } from "./client";

afterEach(() => vi.unstubAllGlobals());

function answering(status: number, body: string) {
  vi.stubGlobal("fetch", async () => new Response(body, { status, statusText: "Bad Gateway" }));
  return getMachines().then(
    () => expect.unreachable(),
    (error: ApiError) => error,
  );
}

test("a problem is shown once, in the words of its detail", async () => {
  const detail = "The database is not available: it can't be reached. This service tries again by itself.";
  const error = await answering(503, JSON.stringify({ title: "The database is not available", detail }));
  expect([error.kind, error.detail]).toEqual(["unavailable", detail]);
});

test("without a detail its title is all there is", async () => {
  const error = await answering(404, JSON.stringify({ title: "Not found" }));
  expect([error.kind, error.detail]).toEqual(["not-found", "Not found"]);
});

test("a proxy's own page is no problem", async () => {
  const error = await answering(502, "<html>");
  expect([error.kind, error.detail]).toEqual(["unavailable", "Bad Gateway"]);
});
