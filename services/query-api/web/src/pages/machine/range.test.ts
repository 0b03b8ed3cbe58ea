import { expect, it } from "vitest";
import { movedBy, RANGES, readRange, readZoom, widenZoom, zoomAround } from "./range";

it.each([
  [null, "10m"],
  ["1h", "1h"],
  ["toString", "10m"],
])("range=%s is %s", (text, range) => expect(readRange(text)).toBe(range));

it.each([
  [null, null, null],
  ["0", "60000", { fromMs: 0, toMs: 60_000 }],
  ["60000", "0", null],
  ["1", "2", null],
  ["x", "60000", null],
])("from=%s to=%s", (from, to, zoom) => expect(readZoom(from, to)).toEqual(zoom));

it("widens a tiny window around its middle", () => {
  expect(widenZoom(10_000, 11_000)).toEqual({ fromMs: 8_000, toMs: 13_000 });
  expect(widenZoom(10_000.4, 60_000.4)).toEqual({ fromMs: 10_000, toMs: 60_001 });
});

const HOUR = RANGES["1h"];
const DAY = RANGES["24h"];
const NOW = 100 * DAY;
const window = { fromMs: NOW - 2 * HOUR, toMs: NOW - HOUR };

it.each([
  ["half as wide, the moment where it was", NOW - 2 * HOUR, 1 / 2, { fromMs: NOW - 2 * HOUR, toMs: NOW - 1.5 * HOUR }],
  ["around the middle", NOW - 1.5 * HOUR, 2, { fromMs: NOW - 2.5 * HOUR, toMs: NOW - 0.5 * HOUR }],
  ["not into the future", NOW - 2 * HOUR, 4, { fromMs: NOW - 4 * HOUR, toMs: NOW }],
  ["no wider than a day", NOW - 1.5 * HOUR, 1000, { fromMs: NOW - DAY, toMs: NOW }],
])("zooms: %s", (_, atMs, factor, zoom) => expect(zoomAround(window, atMs, factor, NOW)).toEqual(zoom));

it("is not zoomed to less than the smallest window", () => {
  const small = { fromMs: 0, toMs: 5_000 };
  expect(zoomAround(small, 2_500, 1 / 2, NOW)).toEqual(small);
});

it.each([
  [-1 / 4, { fromMs: NOW - 2.25 * HOUR, toMs: NOW - 1.25 * HOUR }],
  [2, { fromMs: NOW - HOUR, toMs: NOW }],
])("moves by %s of its width, not into the future", (share, zoom) => expect(movedBy(window, share, NOW)).toEqual(zoom));
