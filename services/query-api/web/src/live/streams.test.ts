import { beforeEach, expect, it, vi } from "vitest";
import { type Message, SILENCE_MS, type Source, Streams } from "./streams";

class FakeSource {
  readonly listeners = new Map<string, (event: MessageEvent<string>) => void>();
  readyState = 1;
  constructor(readonly query: string) {}
  addEventListener(name: string, listener: (event: MessageEvent<string>) => void): void {
    this.listeners.set(name, listener);
  }
  close(): void {
    this.readyState = 2;
  }
  say(name: string, data = ""): void {
    this.listeners.get(name)?.({ data } as MessageEvent<string>);
  }
}

let made: FakeSource[];
let streams: Streams;

beforeEach(() => {
  vi.useFakeTimers();
  made = [];
  streams = new Streams((query) => {
    const source = new FakeSource(query);
    made.push(source);
    return source as unknown as Source;
  });
});

function tab(machine: string | null, key: object = {}): { key: object; heard: string[] } {
  const heard: string[] = [];
  streams.listen(key, machine, ({ name, data }: Message) => heard.push(data ? `${name} ${data}` : name));
  return { key, heard };
}

const open = () => made.filter(({ readyState }) => readyState !== 2).map(({ query }) => query);

it("twenty tabs on the wall share one stream, and who joins is told what it has said", () => {
  const first = tab(null);
  made[0]?.say("edges", "E");
  made[0]?.say("machines", "M");
  made[0]?.say("samples", "S");
  const others = Array.from({ length: 19 }, () => tab(null));
  expect(open()).toEqual(["every=latest"]);
  for (const { heard } of others) expect(heard).toEqual(["edges E", "machines M"]);
  made[0]?.say("samples", "T");
  for (const { heard } of [first, ...others]) expect(heard.at(-1)).toBe("samples T");
});

it("machines of all tabs are in one stream, up to twenty; tabs whose stream is another one now are told so", () => {
  const first = tab("m00");
  const second = tab("m01");
  expect(open()).toEqual(["every=all&machines=m00%2Cm01"]);
  expect(first.heard).toEqual(["resumed"]);
  expect(second.heard).toEqual([]);
  for (let n = 2; n < 25; n++) tab(`m${String(n).padStart(2, "0")}`);
  expect(open()).toHaveLength(2);
  expect(Math.max(...open().map((query) => query.split("%2C").length))).toBe(20);
});

it("a stream that nobody wants any more is closed", () => {
  const { key } = tab(null);
  const other = tab("m1");
  streams.leave(key);
  expect(open()).toEqual(["every=all&machines=m1"]);
  tab(null, other.key);
  expect(open()).toEqual(["every=latest"]);
  streams.leave(other.key);
  expect(streams.size).toBe(0);
});

it("a silent stream is lost and opened anew; one that is told that there is nothing to tell is not", () => {
  const { heard } = tab(null);
  made[0]?.say("machines", "L");
  vi.advanceTimersByTime(SILENCE_MS - 1);
  made[0]?.say("alive", "A");
  vi.advanceTimersByTime(SILENCE_MS - 1);
  streams.checkSilence();
  expect(heard).toEqual(["machines L", "alive A"]);
  vi.advanceTimersByTime(1);
  streams.checkSilence();
  expect(heard.slice(2)).toEqual(["lost"]);
  expect(made).toHaveLength(2);
  expect(tab(null).heard).toEqual(["lost"]);
  made[1]?.say("machines", "M");
  expect(tab(null).heard).toEqual(["machines M"]);
});

it("a stream that the browser gives up is opened again, later each time", () => {
  tab(null);
  const waits = [];
  for (let n = 0; n < 5; n++) {
    made.at(-1)?.close();
    made.at(-1)?.say("error");
    const began = Date.now();
    const before = made.length;
    while (made.length === before) vi.advanceTimersByTime(100);
    waits.push(Date.now() - began);
  }
  expect(waits[0]).toBeLessThanOrEqual(2_500);
  expect(waits[4]).toBeGreaterThanOrEqual(11_000);
  expect(Math.max(...waits)).toBeLessThanOrEqual(19_000);
});
