import { useEffect, useState } from "preact/hooks";

/** No skeleton for a wait shorter than this: it would only flicker. */
const PATIENCE_MS = 300;

/** True once `waiting` has lasted longer than 300 ms. */
export function useDelayed(waiting: boolean): boolean {
  const [late, setLate] = useState(false);
  useEffect(() => {
    setLate(false);
    if (!waiting) return;
    const timer = setTimeout(() => setLate(true), PATIENCE_MS);
    return () => clearTimeout(timer);
  }, [waiting]);
  return waiting && late;
}
