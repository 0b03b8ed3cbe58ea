/** The worker that all tabs of a browser share: it holds their live streams. */
import { type Request, Streams } from "./streams";

const streams = new Streams((query) => new EventSource(`/api/v1/live?${query}`));
setInterval(() => streams.checkSilence(), 500);

// The type of a shared worker's global scope is in a library that excludes the one of pages.
(globalThis as unknown as EventTarget).addEventListener("connect", (event) => {
  const [port] = (event as MessageEvent).ports;
  if (!port) return;
  port.addEventListener("message", ({ data }: MessageEvent<Request>) => {
    if (data.kind === "leave") streams.leave(port);
    else streams.listen(port, data.machine, (message) => port.postMessage(message));
  });
  port.start();
});
