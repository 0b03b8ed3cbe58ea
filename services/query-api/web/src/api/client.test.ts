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

test("a problem is told once, in the words of its detail", async () => {
  const detail = "The database is not available: it can't be reached. This service tries again by itself.";
  const error = await answering(503, JSON.stringify({ title: "The database is not available", detail }));
  expect([error.kind, error.detail]).toEqual(["unavailable", detail]);
});

test("without a detail its title is all there is", async () => {
  const error = await answering(400, JSON.stringify({ title: "The request can't be used" }));
  expect([error.kind, error.detail]).toEqual(["refused", "The request can't be used"]);
});

test("a proxy's own page is no problem", async () => {
  const error = await answering(502, "<html>");
  expect([error.kind, error.detail]).toEqual(["unavailable", "Bad Gateway"]);
});
