import { afterEach, describe, expect, it } from "vitest";
import { chooseLanguage } from "../messages/language";
import { formatNumber, formatPercent } from "./number";

afterEach(() => chooseLanguage("en"));

describe("formatNumber", () => {
  it.each([
    [2487.4, 0, "2,487"],
    [5, 2, "5.00"],
    [-0, 1, "0.0"],
    [-1.25, 2, "-1.25"],
  ])("%d with %d decimals is %s", (value, decimals, text) => {
    expect(formatNumber(value, decimals)).toBe(text);
  });

  it("follows the language", () => {
    chooseLanguage("de");
    expect(formatNumber(2487.4, 1)).toBe("2.487,4");
  });
});

describe("formatPercent", () => {
  it.each([
    [0, "0 %"],
    [0.004, "<1 %"],
    [0.735, "74 %"],
    [1, "100 %"],
  ])("%d is %s", (share, text) => {
    expect(formatPercent(share)).toBe(text);
  });
});
