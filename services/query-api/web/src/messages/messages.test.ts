import { describe, expect, it } from "vitest";
import { fill, pickLanguage } from "./language";
import { MESSAGES, type MessageKey } from "./messages";

const holes = (text: string) => [...text.matchAll(/\{(\w+)\}/g)].map((match) => match[1]).sort();

describe("messages", () => {
  it.each(Object.keys(MESSAGES.en) as MessageKey[])("%s has the same blanks in every language", (key) => {
    expect(holes(MESSAGES.de[key])).toEqual(holes(MESSAGES.en[key]));
    expect(MESSAGES.de[key]).not.toBe("");
  });
});

describe("fill", () => {
  it("fills blanks and leaves unknown ones visible", () => {
    expect(fill("{a} of {b}, {a}", { a: 1, c: 2 })).toBe("1 of {b}, 1");
  });
});

describe("pickLanguage", () => {
  it.each([
    [["de-AT", "en"], "de"],
    [["fr-FR", "DE"], "de"],
    [["fr", "en-US", "de"], "en"],
    [["", "fr"], "en"],
    [[], "en"],
  ])("%j gives %s", (wanted, language) => {
    expect(pickLanguage(wanted)).toBe(language);
  });
});
