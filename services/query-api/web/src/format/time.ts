/** Clock times, local, in the reader's locale. Inputs are epoch ms. */
import { locale } from "../messages/language";

const cache = new Map<string, Intl.DateTimeFormat>();

function formatter(name: string, options: Intl.DateTimeFormatOptions): Intl.DateTimeFormat {
  const key = `${locale()}/${name}`;
  let format = cache.get(key);
  if (!format) {
    format = new Intl.DateTimeFormat(locale(), options);
    cache.set(key, format);
  }
  return format;
}

const DAY_MS = 86_400_000;

/** "14:02:05" */
export function clockTime(ms: number): string {
  return formatter("s", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" }).format(ms);
}

/** "14:02" */
export function minuteTime(ms: number): string {
  return formatter("m", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" }).format(ms);
}

/** "14:02", or with the day when it is more than a day before `nowMs`. */
export function timeSeenFrom(ms: number, nowMs: number): string {
  return nowMs - ms < DAY_MS ? minuteTime(ms) : dayTime(ms);
}

/** "24 Nov, 14:02" */
export function dayTime(ms: number): string {
  const options = { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" } as const;
  return formatter("d", options).format(ms);
}

/** Date, time and zone, for a title on hover. */
export function fullTime(ms: number): string {
  return formatter("full", { dateStyle: "medium", timeStyle: "long" }).format(ms);
}
