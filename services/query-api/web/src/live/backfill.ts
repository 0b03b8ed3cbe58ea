/** Reads the last 10 minutes of spindle load for sparklines: once per tile, a few at a time. */
import { ApiError, getSeries } from "../api/client";
import { serverNow } from "./clock";
import { SPARK_FIELD, SPARK_POINTS, SPARK_SPAN_MS, type Machine } from "./fleet";

const AT_ONCE = 3;
const QUEUE_MAX = 2_000;

/** The recovery for which a machine's history was last asked. */
const asked = new WeakMap<Machine, number>();
const queue: Machine[] = [];
let running = 0;

async function fetchOne(machine: Machine): Promise<void> {
  const toMs = serverNow();
  try {
    const query = { fromMs: toMs - SPARK_SPAN_MS, toMs, fields: [SPARK_FIELD], points: SPARK_POINTS };
    machine.spark.load(await getSeries(machine.id, query));
    machine.sparkVersion.value++;
  } catch (error) {
    // The sparkline then begins at the first live sample; the wall itself says when the server is unwell.
    if (!(error instanceof ApiError)) throw error;
  }
}

function pump(): void {
  while (running < AT_ONCE) {
    const machine = queue.shift();
    if (!machine) return;
    running++;
    void fetchOne(machine).finally(() => {
      running--;
      pump();
    });
  }
}

/** Asks for a machine's history unless that was done since the live connection was last restored (`recovery`). */
export function backfillSpark(machine: Machine, recovery: number): void {
  if (asked.get(machine) === recovery || queue.length >= QUEUE_MAX) return;
  asked.set(machine, recovery);
  queue.push(machine);
  pump();
}
