/** This tab's way to the live streams: by the worker that all tabs share, or by streams of its own where there is none. */
import { type Message, type Request, Streams } from "./streams";

export interface Link {
  /** Want every sample of a machine, or the newest of all (null). */
  listen(machine: string | null): void;
}

/** Streams of this tab, which a hidden one gives up: connections are few. */
function ownStreams(receive: (message: Message) => void): Link {
  const streams = new Streams((query) => new EventSource(`/api/v1/live?${query}`));
  let wanted: string | null | undefined;
  const arrange = () => {
    if (wanted === undefined || document.hidden) streams.leave(document);
    else streams.listen(document, wanted, receive);
  };
  setInterval(() => streams.checkSilence(), 500);
  document.addEventListener("visibilitychange", arrange);
  return {
    listen(machine) {
      wanted = machine;
      arrange();
    },
  };
}

function sharedStreams(receive: (message: Message) => void): Link {
  const worker = new SharedWorker(new URL("./worker.ts", import.meta.url), { type: "module", name: "cncmon live" });
  let wanted: string | null | undefined;
  let own: Link | null = null;
  // oxlint-disable-next-line unicorn/require-post-message-target-origin -- a port has one other end
  const ask = (request: Request) => worker.port.postMessage(request);
  const listen = () => {
    if (wanted === undefined) return;
    if (own) own.listen(wanted);
    else ask({ kind: "listen", machine: wanted });
  };
  worker.port.addEventListener("message", ({ data }: MessageEvent<Message>) => receive(data));
  worker.port.start();
  worker.addEventListener("error", () => {
    // Its script can't be had, or not be run.
    own ??= ownStreams(receive);
    listen();
  });
  addEventListener("pagehide", () => ask({ kind: "leave" }));
  addEventListener("pageshow", ({ persisted }) => {
    if (persisted) listen();
  });
  return {
    listen(machine) {
      wanted = machine;
      listen();
    },
  };
}

export function openLink(receive: (message: Message) => void): Link {
  return typeof SharedWorker === "undefined" ? ownStreams(receive) : sharedStreams(receive);
}
