/**
 * What this page knows live, and whether it does. A page says what it wants with `listen`; the streams behind `link`
 * recover by themselves. Three links are told apart: page to server, server to its database, and the edges to the server.
 */
import { signal } from "@preact/signals";
import type { LiveEdge, LiveEdges, LiveSamples, LiveStatus, MachineList, Sample } from "../api/types";
import { learnServerTime, serverNow } from "./clock";
import { applyMachines, applySamples, fleet } from "./fleet";
import { type Link, openLink } from "./link";
import { type Message, SILENCE_MS } from "./streams";

export type ConnectionState = "connecting" | "live" | "lost";

export interface Connection {
  state: ConnectionState;
  /** When the connection was lost, epoch ms; null if there has been none yet. */
  lostMs: number | null;
  /** What the server says about its database when that is why nothing comes; null otherwise. */
  databaseMessage: string | null;
}

/** Without a word from the streams, which know of silence themselves, they are gone, too. */
const SILENCE_MS_MAX = SILENCE_MS + 1_000;

export const connection = signal<Connection>({ state: "connecting", lostMs: null, databaseMessage: null });
/** All edges, as the server last told; null: it has not yet. */
export const edges = signal<readonly LiveEdge[] | null>(null);
/** Counts up when the connection is back after a loss: history on the page has a hole then and should be read again. */
export const recoveries = signal(0);

/** The time up to which the page knows what happened, epoch ms: now, or when the connection was lost. */
export function knownUntil(): number {
  return connection.peek().lostMs ?? serverNow();
}

let link: Link | null = null;
let wanted: string | null | undefined;
let onSamples: ((samples: readonly Sample[]) => void) | null = null;
let lastMessageMs = Date.now();
/** What the current stream last said; the machines it tells of meanwhile are those of before. */
let databaseAway = false;

function markLive(): void {
  const before = connection.peek();
  if (before.state === "live" || databaseAway) return;
  connection.value = { state: "live", lostMs: null, databaseMessage: null };
  if (before.state === "lost") recoveries.value++;
}

/** `heardMs`: when the last news came, on our clock. */
function markLost(databaseMessage: string | null, heardMs: number): void {
  const before = connection.peek();
  const lostMs = before.state === "live" ? serverNow() - (Date.now() - heardMs) : before.lostMs;
  connection.value = { state: "lost", lostMs, databaseMessage };
}

function hearStatus(status: LiveStatus): void {
  databaseAway = status.database !== "ok";
  if (databaseAway) markLost(status.message, Date.now());
  else markLive();
}

function hearMachines(list: MachineList): void {
  learnServerTime(list.now);
  markLive();
  applyMachines(fleet, list, wanted === null);
}

function hearSamples(news: LiveSamples): void {
  learnServerTime(news.now);
  markLive();
  applySamples(fleet, news.samples);
  onSamples?.(news.samples);
}

function receive({ name, data }: Message): void {
  const heardMs = lastMessageMs;
  lastMessageMs = Date.now();
  switch (name) {
    case "status":
      return hearStatus(JSON.parse(data) as LiveStatus);
    case "edges":
      edges.value = (JSON.parse(data) as LiveEdges).edges;
      return;
    case "machines":
      return hearMachines(JSON.parse(data) as MachineList);
    case "samples":
      return hearSamples(JSON.parse(data) as LiveSamples);
    case "alive":
      return learnServerTime((JSON.parse(data) as { now: string }).now);
    case "resumed":
      recoveries.value++;
      return;
    case "lost":
      databaseAway = false;
      lastMessageMs = heardMs;
      return markLost(null, heardMs);
  }
}

function checkSilence(): void {
  if (document.hidden || wanted === undefined || Date.now() - lastMessageMs < SILENCE_MS_MAX) return;
  databaseAway = false;
  markLost(null, lastMessageMs);
  lastMessageMs = Date.now();
  link?.listen(wanted);
}

/**
 * What the current page wants live: the newest sample of every machine (null), or every sample of one machine.
 * `receive` also gets the samples themselves. Returns the function that ends `receive`.
 */
export function listen(machine: string | null, receiveSamples: ((samples: readonly Sample[]) => void) | null): () => void {
  onSamples = receiveSamples;
  if (machine !== wanted) {
    wanted = machine;
    link?.listen(machine);
  }
  return () => {
    if (onSamples === receiveSamples) onSamples = null;
  };
}

/** Opens the way to the streams; called once at start. */
export function startConnection(): void {
  link = openLink(receive);
  setInterval(checkSilence, 500);
}
