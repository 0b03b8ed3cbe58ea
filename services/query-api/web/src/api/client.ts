/** Requests to the query API. Every failure becomes an ApiError; no other error leaves this module. */
import type { MachineList, Sample, Series } from "./types";

const REQUEST_TIMEOUT_MS = 15_000;

/** `unreachable`: nothing answered; `unavailable`: it answers but can't serve (5xx); `refused`: our request was wrong (4xx). */
export type ErrorKind = "unreachable" | "unavailable" | "not-found" | "refused";

export class ApiError extends Error {
  constructor(
    readonly kind: ErrorKind,
    /** The problem's own words (RFC 9457): its detail, a whole sentence, or else its title; empty when there were none. */
    readonly detail: string,
    readonly status: number | null,
    options?: ErrorOptions,
  ) {
    super(`${kind} ${status ?? ""} ${detail}`.trim(), options);
    this.name = "ApiError";
  }
}

export function kindOfStatus(status: number): ErrorKind {
  if (status === 404) return "not-found";
  return status >= 500 ? "unavailable" : "refused";
}

async function problemOf(response: Response): Promise<ApiError> {
  let detail = "";
  try {
    const problem = (await response.json()) as { title?: string; detail?: string };
    detail = problem.detail || problem.title || "";
  } catch {
    detail = response.statusText; // a proxy's HTML page, not problem+json
  }
  return new ApiError(kindOfStatus(response.status), detail, response.status);
}

async function getJson<T>(path: string, signal?: AbortSignal): Promise<T> {
  const timeout = AbortSignal.timeout(REQUEST_TIMEOUT_MS);
  const either = signal ? AbortSignal.any([signal, timeout]) : timeout;
  let response: Response;
  try {
    response = await fetch(path, { signal: either, headers: { accept: "application/json" } });
    if (response.ok) return (await response.json()) as T;
  } catch (cause) {
    if (signal?.aborted) throw new ApiError("unreachable", "aborted", null, { cause });
    throw new ApiError("unreachable", "", null, { cause });
  }
  throw await problemOf(response);
}

const machinePath = (id: string) => `/api/v1/machines/${encodeURIComponent(id)}`;
const iso = (ms: number) => new Date(ms).toISOString();

/** All machines, read page by page: where the next one begins is known from the one before. */
export async function getMachines(signal?: AbortSignal, after?: string): Promise<MachineList> {
  const query = after === undefined ? "" : `?after=${encodeURIComponent(after)}`;
  const page = await getJson<MachineList>(`/api/v1/machines${query}`, signal);
  if (!page.next_after) return page;
  const rest = await getMachines(signal, page.next_after);
  return { ...page, machines: [...page.machines, ...rest.machines], next_after: null };
}

export interface SeriesQuery {
  fromMs: number;
  toMs: number;
  fields: readonly string[];
  points: number;
}

export function getSeries(id: string, query: SeriesQuery, signal?: AbortSignal): Promise<Series> {
  const params = new URLSearchParams({
    from: iso(query.fromMs),
    to: iso(query.toMs),
    fields: query.fields.join(","),
    points: String(query.points),
  });
  return getJson(`${machinePath(id)}/series?${params}`, signal);
}

export async function getSamples(id: string, fromMs: number, limit: number, signal?: AbortSignal): Promise<Sample[]> {
  const params = new URLSearchParams({ from: iso(fromMs), limit: String(limit) });
  const page = await getJson<{ samples: Sample[] }>(`${machinePath(id)}/samples?${params}`, signal);
  return page.samples;
}
