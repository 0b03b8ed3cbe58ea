/** The server's time, so that ages are right on a device whose clock is wrong; ticks once a second. */
import { signal } from "@preact/signals";

let offsetMs = 0;

/** Epoch ms on the server's clock. */
export function serverNow(): number {
  return Date.now() + offsetMs;
}

/** `serverNow`, refreshed every second: for texts such as "since 12 min". */
export const clock = signal(Date.now());

export function learnServerTime(rfc3339: string): void {
  const ms = Date.parse(rfc3339);
  if (Number.isFinite(ms)) offsetMs = ms - Date.now();
}

/** Starts ticking; called once at start. */
export function startClock(): void {
  setInterval(() => {
    clock.value = serverNow();
  }, 1000);
}
