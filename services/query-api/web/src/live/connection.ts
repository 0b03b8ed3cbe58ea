/**
 * The page's one live connection (SSE). A page says what it wants with `listen`; the connection recovers by itself:
 * the browser re-opens a dropped stream, this module one that the browser has given up or that has gone silent.
 * Three links are told apart: page to server, server to its database, and the edges to the server.
 */
import { signal } from "@preact/signals";
import { getMachines } from "../api/client";
import type { LiveEdge, LiveEdges, LiveSamples, LiveStatus, MachineList, Sample } from "../api/types";
import { learnServerTime, serverNow } from "./clock";
import { applyMachines, applySamples, fleet } from "./fleet";

export type ConnectionState = "connecting" | "live" | "lost";

export interface Connection {
  state: ConnectionState;
  /** When the connection was lost, epoch ms; null if there has been none yet. */
  lostMs: number | null;
  /** What the server says about its database when that is why nothing comes; null otherwise. */
  databaseMessage: string | null;
}

/** Silence after which the server counts as lost: it says something every 2 s. */
const SILENCE_MS = 5_000;
const REOPEN_MS_MIN = 2_000;
const REOPEN_MS_MAX = 15_000;

export const connection = signal<Connection>({ state: "connecting", lostMs: null, databaseMessage: null });
/** All edges, as the server last told; null: it has not yet. */
export const edges = signal<readonly LiveEdge[] | null>(null);
/** Counts up when the connection is back after a loss: history on the page has a hole then and should be read again. */
export const recoveries = signal(0);

/** The time up to which the page knows what happened, epoch ms: now, or when the connection was lost. */
export function knownUntil(): number {
  return connection.peek().lostMs ?? serverNow();
}

let source: EventSource | null = null;
let wantedQuery = "";
let onSamples: ((samples: readonly Sample[]) => void) | null = null;
let lastEventMs = 0;
/** What the current stream last said; the machines it tells of meanwhile are those of before. */
let databaseAway = false;
let reopenMs = REOPEN_MS_MIN;
let reopenTimer: ReturnType<typeof setTimeout> | undefined;

function markLive(): void {
  const before = connection.peek();
  if (before.state === "live" || databaseAway) return;
  connection.value = { state: "live", lostMs: null, databaseMessage: null };
  if (before.state === "lost") recoveries.value++;
}

/** `heardMs`: when the last news came, on our clock. */
function markLost(databaseMessage: string | null, heardMs = Date.now()): void {
  const before = connection.peek();
  const lostMs = before.state === "live" ? serverNow() - (Date.now() - heardMs) : before.lostMs;
  connection.value = { state: "lost", lostMs, databaseMessage };
}

function hearStatus(status: LiveStatus): void {
  databaseAway = status.database !== "ok";
  if (databaseAway) markLost(status.message);
  else markLive();
}

function scheduleReopen(): void {
  clearTimeout(reopenTimer);
  reopenTimer = setTimeout(open, reopenMs * (0.75 + Math.random() / 2));
  reopenMs = Math.min(reopenMs * 2, REOPEN_MS_MAX);
}

function parse<T>(event: MessageEvent<string>): T {
  lastEventMs = Date.now();
  reopenMs = REOPEN_MS_MIN;
  return JSON.parse(event.data) as T;
}

function open(): void {
  source?.close();
  clearTimeout(reopenTimer);
  const query = wantedQuery;
  const opened = new EventSource(`/api/v1/live?${query}`);
  source = opened;
  lastEventMs = Date.now();
  // Not "open": a stream that has opened may still have nothing to tell.
  opened.addEventListener("status", (event) => hearStatus(parse<LiveStatus>(event)));
  opened.addEventListener("alive", (event) => learnServerTime(parse<{ now: string }>(event).now));
  opened.addEventListener("edges", (event) => {
    edges.value = parse<LiveEdges>(event).edges;
  });
  opened.addEventListener("machines", (event) => {
    const list = parse<MachineList>(event);
    learnServerTime(list.now);
    markLive();
    applyMachines(fleet, list, !query.includes("machines="));
  });
  opened.addEventListener("samples", (event) => {
    const news = parse<LiveSamples>(event);
    learnServerTime(news.now);
    markLive();
    applySamples(fleet, news.samples);
    onSamples?.(news.samples);
  });
  opened.addEventListener("error", () => {
    if (source !== opened) return;
    databaseAway = false; // the next stream says so if it still is
    markLost(null);
    if (opened.readyState === EventSource.CLOSED) scheduleReopen();
  });
}

/** A stream that has been silent is lost, and opened anew: what is frozen closes no connection. */
function checkSilence(): void {
  if (document.hidden || Date.now() - lastEventMs < SILENCE_MS) return;
  databaseAway = false;
  markLost(null, lastEventMs);
  open();
}

/** Asks for a sign of life when the page is looked at again: a phone may have frozen it meanwhile. */
async function checkAfterSleep(): Promise<void> {
  if (document.hidden || Date.now() - lastEventMs < SILENCE_MS) return;
  const heardMs = lastEventMs;
  lastEventMs = Date.now();
  try {
    applyMachines(fleet, await getMachines(AbortSignal.timeout(SILENCE_MS)), true);
  } catch {
    markLost(null, heardMs);
  }
  open();
}

/**
 * What the current page wants live: the newest sample of every machine (null), or every sample of one machine.
 * `receive` also gets the samples themselves. Returns the function that ends `receive`.
 */
export function listen(machine: string | null, receive: ((samples: readonly Sample[]) => void) | null): () => void {
  const query = machine === null ? "every=latest" : `every=all&machines=${encodeURIComponent(machine)}`;
  onSamples = receive;
  if (query !== wantedQuery || !source) {
    wantedQuery = query;
    open();
  }
  return () => {
    if (onSamples === receive) onSamples = null;
  };
}

/** Starts watching for silence; called once at start. */
export function startConnection(): void {
  setInterval(checkSilence, 500);
  document.addEventListener("visibilitychange", () => void checkAfterSleep());
}
