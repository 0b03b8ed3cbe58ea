/** The data behind the machine page: history of the chosen window from the API, carried on by every live sample. */
import { signal, type Signal } from "@preact/signals";
import { useEffect, useMemo, useState } from "preact/hooks";
import { ApiError, getSamples, getSeries } from "../../api/client";
import type { Sample } from "../../api/types";
import type { Window } from "../../charts/holes";
import { BucketSeries } from "../../live/buckets";
import { serverNow } from "../../live/clock";
import { knownUntil, listen, recoveries } from "../../live/connection";
import type { Machine } from "../../live/fleet";
import { PointRing } from "../../live/ring";
import { HISTORY_FIELDS } from "./fields";
import { POINTS, RANGES, type RangeName, type Zoom } from "./range";

/** The tool path shows this much. */
export const PATH_SPAN_MS = 60_000;
/** 60 s at 20 samples a second; a faster machine shows less than 60 s. */
const PATH_POINTS_MAX = 1_200;
/** Live samples kept while the history is on its way. */
const PENDING_MAX = 2_000;
const RETRY_MS = 5_000;

export interface History {
  readonly series: BucketSeries;
  readonly path: PointRing;
  /** Counts up when `series` or `path` changed. */
  readonly version: Signal<number>;
  readonly range: RangeName;
  readonly zoom: Zoom | null;
  /** The window to draw, epoch ms; its end moves with the clock unless zoomed. */
  window(): Window;
}

export interface HistoryLoading {
  history: History;
  loading: boolean;
  error: ApiError | null;
  retry: () => void;
}

function createHistory(machine: Machine, range: RangeName, zoom: Zoom | null): History {
  const spanMs = RANGES[range];
  return {
    // Two spare buckets: the API may align its buckets before `from`.
    series: new BucketSeries(HISTORY_FIELDS, spanMs / POINTS, POINTS + 2),
    path: new PointRing(PATH_POINTS_MAX),
    version: signal(0),
    range,
    zoom,
    window: () => {
      const nowMs = knownUntil();
      const ends = zoom ?? { fromMs: nowMs - spanMs, toMs: nowMs };
      return { ...ends, live: zoom === null, lastMs: machine.sampleMs.peek() };
    },
  };
}

function addToPath(path: PointRing, timeMs: number, sample: Sample): void {
  if (sample.x_pos_mm !== null && sample.y_pos_mm !== null) path.push(timeMs, sample.x_pos_mm, sample.y_pos_mm);
}

/** Collects live samples in `history`; those that come before the history is there wait for it. */
function createReceiver(id: string, history: History) {
  let pending: Sample[] | null = [];
  const add = (sample: Sample) => {
    const timeMs = Date.parse(sample.timestamp);
    if (!history.zoom) history.series.add(timeMs, sample);
    addToPath(history.path, timeMs, sample);
  };
  return {
    receive(samples: readonly Sample[]) {
      const mine = samples.filter((sample) => sample.machine_id === id);
      if (pending === null) for (const sample of mine) add(sample);
      else if (pending.length < PENDING_MAX) pending.push(...mine);
      if (mine.length > 0) history.version.value++;
    },
    begin() {
      for (const sample of pending ?? []) add(sample);
      pending = null;
      history.version.value++;
    },
    wait() {
      pending ??= [];
    },
  };
}

async function load(id: string, history: History, abort: AbortSignal): Promise<void> {
  const { fromMs, toMs } = history.window();
  const pathFromMs = serverNow() - PATH_SPAN_MS;
  const [series, samples] = await Promise.all([
    getSeries(id, { fromMs, toMs, fields: HISTORY_FIELDS, points: POINTS }, abort),
    getSamples(id, pathFromMs, PATH_POINTS_MAX, abort),
  ]);
  history.series.load(series);
  history.path.clear();
  for (const sample of samples) addToPath(history.path, Date.parse(sample.timestamp), sample);
}

/** `zoom` must stay the same object as long as it says the same. */
export function useHistory(machine: Machine, range: RangeName, zoom: Zoom | null): HistoryLoading {
  const { id } = machine;
  const history = useMemo(() => createHistory(machine, range, zoom), [machine, range, zoom]);
  const receiver = useMemo(() => createReceiver(id, history), [id, history]);
  const [loaded, setLoaded] = useState<History | null>(null);
  const [error, setError] = useState<ApiError | null>(null);
  const [attempt, setAttempt] = useState(0);
  const recovery = recoveries.value;
  useEffect(() => listen(id, receiver.receive), [id, receiver]);
  useEffect(() => {
    const abort = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    receiver.wait();
    load(id, history, abort.signal)
      .then(() => setError(null))
      .catch((problem: unknown) => {
        if (!(problem instanceof ApiError)) throw problem;
        if (abort.signal.aborted) return;
        setError(problem);
        if (problem.kind !== "refused") timer = setTimeout(() => setAttempt((n) => n + 1), RETRY_MS);
      })
      .finally(() => {
        if (abort.signal.aborted) return;
        receiver.begin(); // live samples are worth drawing without a history, too
        setLoaded(history);
      });
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [id, history, receiver, attempt, recovery]);
  return { history, loading: loaded !== history, error, retry: () => setAttempt((n) => n + 1) };
}
