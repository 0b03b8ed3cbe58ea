import { describe, expect, it } from "vitest";
import { chooseLanguage } from "../messages/language";
import { formatDuration } from "./duration";

const MIN = 60_000;
const HOUR = 60 * MIN;

describe("formatDuration", () => {
  it.each([
    [-5_000, "0 s"],
    [0, "0 s"],
    [59_999, "59 s"],
    [60_000, "1 min"],
    [12 * MIN + 59_000, "12 min"],
    [59 * MIN + 59_999, "59 min"],
    [HOUR, "1 h 00 min"],
    [3 * HOUR + 5 * MIN, "3 h 05 min"],
    [24 * HOUR, "1 d 0 h"],
    [52 * HOUR, "2 d 4 h"],
  ])("%d ms is %s", (ms, text) => {
    chooseLanguage("en");
    expect(formatDuration(ms)).toBe(text);
  });

  it("speaks German", () => {
    chooseLanguage("de");
    expect(formatDuration(52 * HOUR)).toBe("2 T 4 h");
    chooseLanguage("en");
  });
});
