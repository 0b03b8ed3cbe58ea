import type { Sample } from "../../api/types";

export interface Parts {
  done: number;
  /** null: the machine does not say how many are planned. */
  planned: number | null;
}

/** Parts made and planned, where the machine counts them. */
export function partsOf(sample: Sample | null): Parts | null {
  if (typeof sample?.part_count !== "number") return null;
  const planned = sample.extras?.["parts_planned"];
  return { done: sample.part_count, planned: typeof planned === "number" && planned > 0 ? planned : null };
}
