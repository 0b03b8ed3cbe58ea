/** Client-side routing over the History API: the address is a signal, and the URL is the only place filters live in. */
import { computed, signal } from "@preact/signals";

export type Route = { page: "wall" } | { page: "machine"; id: string } | { page: "missing" };

/** Parameters that stay when the page changes: what is filtered on the wall, and how far back is looked. */
const KEPT = new Set(["state", "q", "range"]);

export function matchRoute(path: string): Route {
  if (path === "/" || path === "/index.html") return { page: "wall" };
  const machine = /^\/machines\/([^/]+)\/?$/.exec(path);
  if (!machine?.[1]) return { page: "missing" };
  try {
    return { page: "machine", id: decodeURIComponent(machine[1]) };
  } catch {
    return { page: "missing" }; // a broken percent escape
  }
}

export function keepParams(search: string): string {
  const params = new URLSearchParams([...new URLSearchParams(search)].filter(([name]) => KEPT.has(name)));
  return params.size ? `?${params}` : "";
}

const address = signal(typeof location === "undefined" ? "/" : location.pathname + location.search);
const url = computed(() => new URL(address.value, "http://page"));
export const route = computed(() => matchRoute(url.value.pathname));

export function param(name: string): string | null {
  return url.value.searchParams.get(name);
}

/** The address of another page of ours, with the parameters that stay. */
export function pageHref(path: string): string {
  return path + keepParams(url.value.search);
}

export function navigate(href: string, how: "push" | "replace" = "push"): void {
  if (href === address.peek()) return; // no second step back to the same page
  history[how === "push" ? "pushState" : "replaceState"](null, "", href);
  address.value = location.pathname + location.search;
}

/** Sets or removes (null) parameters of the current page. */
export function setParams(changes: Record<string, string | null>, how: "push" | "replace" = "push"): void {
  const params = new URLSearchParams(url.value.search);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "") params.delete(name);
    else params.set(name, value);
  }
  const search = params.size ? `?${params}` : "";
  navigate(url.value.pathname + search, how);
}

function followLink(event: MouseEvent): void {
  const link = (event.target as Element | null)?.closest("a");
  const plain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
  if (!link || !plain || link.origin !== location.origin || link.hash) return;
  if (matchRoute(link.pathname).page === "missing") return;
  event.preventDefault();
  navigate(link.pathname + link.search);
  scrollTo(0, 0);
}

/** Ordinary links to our pages work without a reload; called once at start. */
export function startRouter(): void {
  addEventListener("popstate", () => {
    address.value = location.pathname + location.search;
  });
  document.addEventListener("click", followLink);
}
