/**
 * The live streams (SSE) that a browser holds for all of its tabs: one for the tabs that want the newest sample of every
 * machine, and one for up to 20 machines of which tabs want every sample. A browser opens six connections to a host, so a
 * stream for each tab would leave the seventh without any. Runs in the worker that the tabs share, or else in a tab.
 */

/** An event of the server; or `lost`: the stream ended or is silent, `resumed`: it is another one, something is missing. */
export interface Message {
  name: string;
  data: string;
}

export type Send = (message: Message) => void;

/** What a tab asks of the worker. `machine`: of which it wants every sample; null: the newest of all. */
export type Request = { kind: "listen"; machine: string | null } | { kind: "leave" };

const EVENTS = ["status", "edges", "machines", "samples", "alive"];
/** What a tab is told that joins a stream which said so long ago. */
const KEPT = new Set(["status", "edges", "machines"]);

/** Silence after which a stream counts as lost: the server says something every 2 s. */
export const SILENCE_MS = 5_000;
const REOPEN_MS_MIN = 2_000;
const REOPEN_MS_MAX = 15_000;
const MACHINES_MAX = 20;

/** What of an `EventSource` is used. */
export type Source = Pick<EventSource, "addEventListener" | "close" | "readyState">;
const CLOSED = 2;

class Stream {
  private readonly kept = new Map<string, Message>();
  private lost = false;
  private lastEventMs = 0;
  private reopenMs = REOPEN_MS_MIN;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private source: Source | null = null;

  constructor(
    private readonly make: () => Source,
    private readonly tell: Send,
  ) {
    this.open();
  }

  /** Tells a tab that joins what the stream has said; of one that is lost only that, or old news would pass for life. */
  greet(send: Send): void {
    if (this.lost) send({ name: "lost", data: "" });
    else for (const message of this.kept.values()) send(message);
  }

  checkSilence(): void {
    if (Date.now() - this.lastEventMs < SILENCE_MS) return;
    this.end();
    this.open();
  }

  close(): void {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  private open(): void {
    this.close();
    const opened = this.make();
    this.source = opened;
    this.lastEventMs = Date.now();
    for (const name of EVENTS) {
      opened.addEventListener(name, (event) => this.hear(name, (event as MessageEvent<string>).data));
    }
    opened.addEventListener("error", () => {
      if (this.source !== opened) return;
      this.end();
      if (opened.readyState !== CLOSED) return; // it tries again by itself
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.open(), this.reopenMs * (0.75 + Math.random() / 2));
      this.reopenMs = Math.min(this.reopenMs * 2, REOPEN_MS_MAX);
    });
  }

  private hear(name: string, data: string): void {
    this.lastEventMs = Date.now();
    this.reopenMs = REOPEN_MS_MIN;
    this.lost = false;
    if (KEPT.has(name)) this.kept.set(name, { name, data });
    this.tell({ name, data });
  }

  private end(): void {
    this.lost = true;
    this.kept.delete("status"); // the next stream says so if the database is still away
    this.tell({ name: "lost", data: "" });
  }
}

interface Subscriber {
  machine: string | null;
  query: string;
  send: Send;
}

export class Streams {
  private readonly subscribers = new Map<unknown, Subscriber>();
  private readonly open = new Map<string, Stream>();

  constructor(private readonly make: (query: string) => Source) {}

  /** How many there are. */
  get size(): number {
    return this.open.size;
  }

  /** A tab (`key`) wants every sample of a machine, or the newest of all (null), and is told so by `send`. */
  listen(key: unknown, machine: string | null, send: Send): void {
    this.subscribers.set(key, { machine, query: "", send });
    this.arrange();
  }

  leave(key: unknown): void {
    if (this.subscribers.delete(key)) this.arrange();
  }

  /** To be called now and then: what is frozen closes no connection. */
  checkSilence(): void {
    for (const stream of this.open.values()) stream.checkSilence();
  }

  private arrange(): void {
    const queries = queriesOf([...this.subscribers.values()].map(({ machine }) => machine));
    for (const [query, stream] of this.open) {
      if ([...queries.values()].includes(query)) continue;
      stream.close();
      this.open.delete(query);
    }
    const before = new Set(this.open.keys());
    for (const query of queries.values()) {
      if (!this.open.has(query)) this.open.set(query, new Stream(() => this.make(query), (message) => this.tell(query, message)));
    }
    for (const subscriber of this.subscribers.values()) {
      const query = queries.get(subscriber.machine) as string;
      if (subscriber.query === query) continue;
      const joined = subscriber.query === "";
      subscriber.query = query;
      if (before.has(query)) this.open.get(query)?.greet(subscriber.send);
      if (!joined) subscriber.send({ name: "resumed", data: "" });
    }
  }

  private tell(query: string, message: Message): void {
    for (const subscriber of this.subscribers.values()) if (subscriber.query === query) subscriber.send(message);
  }
}

/** The stream of each machine that is wanted, as the query that opens it. */
function queriesOf(wanted: readonly (string | null)[]): Map<string | null, string> {
  const found = new Map<string | null, string>();
  if (wanted.includes(null)) found.set(null, "every=latest");
  const machines = [...new Set(wanted.filter((machine) => machine !== null))].sort();
  for (let at = 0; at < machines.length; at += MACHINES_MAX) {
    const some = machines.slice(at, at + MACHINES_MAX);
    for (const machine of some) found.set(machine, `every=all&machines=${encodeURIComponent(some.join(","))}`);
  }
  return found;
}
