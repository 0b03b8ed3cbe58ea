/** Reads the list of machines with their last samples, again after every loss of the live connection or error. */
import { useEffect, useState } from "preact/hooks";
import { ApiError, getMachines } from "../api/client";
import { learnServerTime } from "./clock";
import { recoveries } from "./connection";
import { applyMachines, fleet } from "./fleet";

const RETRY_MS = 5_000;

export interface FleetLoading {
  error: ApiError | null;
  retry: () => void;
}

export function useFleet(): FleetLoading {
  const [error, setError] = useState<ApiError | null>(null);
  const [attempt, setAttempt] = useState(0);
  const recovery = recoveries.value;
  useEffect(() => {
    const abort = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const load = async () => {
      try {
        const list = await getMachines(abort.signal);
        learnServerTime(list.now);
        applyMachines(fleet, list, true);
        setError(null);
      } catch (problem) {
        if (abort.signal.aborted || !(problem instanceof ApiError)) return;
        setError(problem);
        timer = setTimeout(() => setAttempt((n) => n + 1), RETRY_MS);
      }
    };
    void load();
    return () => {
      abort.abort();
      clearTimeout(timer);
    };
  }, [attempt, recovery]);
  return { error, retry: () => setAttempt((n) => n + 1) };
}
