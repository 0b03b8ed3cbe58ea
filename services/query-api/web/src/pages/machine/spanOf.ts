import { formatNumber } from "../../format/number";
import type { Column } from "../../live/buckets";

export interface Span {
  min: number;
  mean: number;
  max: number;
}

/** Lowest, mean and highest over all buckets of a column; null when it holds nothing. */
export function spanOf(column: Column): Span | null {
  let min = Infinity;
  let max = -Infinity;
  let sum = 0;
  let count = 0;
  for (let i = 0; i < column.mean.length; i++) {
    const mean = column.mean[i] ?? null;
    if (mean === null) continue;
    min = Math.min(min, column.min[i] ?? mean);
    max = Math.max(max, column.max[i] ?? mean);
    sum += mean;
    count++;
  }
  return count === 0 ? null : { min, mean: sum / count, max };
}

/** "2,310 – 2,690"; one number where both ends read the same. */
export function formatSpan({ min, max }: { min: number; max: number }, decimals: number): string {
  const [low, high] = [formatNumber(min, decimals), formatNumber(max, decimals)];
  return low === high ? low : `${low} – ${high}`;
}
