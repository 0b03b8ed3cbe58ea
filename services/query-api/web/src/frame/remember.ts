/** Choices kept in this browser only. Storage may be forbidden (private windows): then they last as long as the page. */

export function recall(name: string): string | null {
  try {
    return localStorage.getItem(`cncmon.${name}`);
  } catch {
    return null;
  }
}

export function remember(name: string, value: string): void {
  try {
    localStorage.setItem(`cncmon.${name}`, value);
  } catch {
    return;
  }
}
