/** Numbers in the reader's locale with a fixed count of decimals, so that digits stay in place. */
import { locale } from "../messages/language";

const cache = new Map<string, Intl.NumberFormat>();

export function formatNumber(value: number, decimals: number): string {
  const key = `${locale()}/${decimals}`;
  let format = cache.get(key);
  if (!format) {
    format = new Intl.NumberFormat(locale(), { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
    cache.set(key, format);
  }
  return format.format(value === 0 ? 0 : value); // -0 would print a minus sign
}

export function formatPercent(share: number): string {
  const percent = share * 100;
  if (percent > 0 && percent < 1) return `<${formatNumber(1, 0)} %`;
  return `${formatNumber(percent, 0)} %`;
}
