import { expect, it } from "vitest";
import { PointRing } from "./ring";

function pointsOf(ring: PointRing, sinceMs = -Infinity): number[][] {
  const points: number[][] = [];
  ring.forEach(sinceMs, (...point) => points.push(point));
  return points;
}

it("keeps the newest points in order", () => {
  const ring = new PointRing(3);
  expect(pointsOf(ring)).toEqual([]);
  for (let i = 1; i <= 5; i++) ring.push(i, i * 10, i * 100);
  expect(ring.length).toBe(3);
  expect(pointsOf(ring)).toEqual([
    [3, 30, 300],
    [4, 40, 400],
    [5, 50, 500],
  ]);
  expect(pointsOf(ring, 5)).toEqual([[5, 50, 500]]);
  ring.clear();
  expect(pointsOf(ring)).toEqual([]);
  ring.push(6, 60, 600);
  expect(pointsOf(ring)).toEqual([[6, 60, 600]]);
});
