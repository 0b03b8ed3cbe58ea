import { describe, expect, it } from "vitest";
import { keepParams, matchRoute } from "./router";

describe("matchRoute", () => {
  it.each([
    ["/", { page: "wall" }],
    ["/machines/mill-01", { page: "machine", id: "mill-01" }],
    ["/machines/mill-01/", { page: "machine", id: "mill-01" }],
    ["/machines/CNC%20%2F%201", { page: "machine", id: "CNC / 1" }],
    ["/machines/%", { page: "missing" }],
    ["/machines", { page: "missing" }],
    ["/elsewhere", { page: "missing" }],
  ])("%s", (path, route) => {
    expect(matchRoute(path)).toEqual(route);
  });
});

it("keeps filter and range, not the zoomed window, when the page changes", () => {
  expect(keepParams("?state=alarm&range=1h&from=1&to=2")).toBe("?state=alarm&range=1h");
  expect(keepParams("?from=1")).toBe("");
});
