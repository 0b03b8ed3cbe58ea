/** Drawing at most once per frame, and not at all while nobody can see the page. */

const waiting = new Set<() => void>();
let scheduled = false;

function run(): void {
  scheduled = false;
  if (document.hidden) return; // what waits is drawn when the page is seen again
  const now = [...waiting];
  waiting.clear();
  for (const draw of now) draw();
}

function schedule(): void {
  if (scheduled || document.hidden || waiting.size === 0) return;
  scheduled = true;
  requestAnimationFrame(run);
}

/** Draws in the next frame; asking again before that draws once. */
export function drawSoon(draw: () => void): void {
  waiting.add(draw);
  schedule();
}

export function forgetDraw(draw: () => void): void {
  waiting.delete(draw);
}

if (typeof document !== "undefined") document.addEventListener("visibilitychange", schedule);
