import { expect, it } from "vitest";
import { readRange, readZoom, widenZoom } from "./range";

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
