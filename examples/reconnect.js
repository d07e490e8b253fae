// Follows an event stream, also through the 502 of a deploy, which ends a bare EventSource for good.
// `url` is a text, or a function that returns it. `handlers` are functions by event type. `onState`
// gets "connecting", "open" or "reconnecting", and at the end "finished" (204), or "refused" with the
// response. See docs/clients.md.
function follow(url, handlers, onState = () => {}, options = {}) {
  let source, timer, lastId = "", failures = 0, turn = 0;
  function here() {
    const [base] = (typeof url === "function" ? url() : url).split("#");
    return lastId ? `${base}${base.includes("?") ? "&" : "?"}lastEventId=${encodeURIComponent(lastId)}` : base;
  }
  const close = () => (turn++, clearTimeout(timer), source?.close());
  const wait = () => (timer = setTimeout(ask, Math.random() * 1000 * 2 ** Math.min(failures++, 5), turn));
  async function ask(own) { // for the status, which an EventSource hides
    const init = { cache: "no-store", credentials: options.withCredentials ? "include" : "same-origin" };
    const response = await fetch(here(), init).catch(() => ({ status: 503 }));
    if (response.ok) response.body?.cancel();
    if (own !== turn) return; // closed in the meantime
    if (response.status === 204) return onState("finished");
    if (response.ok) return open();
    response.status >= 500 || [408, 425, 429].includes(response.status) ? wait() : onState("refused", response);
  }
  function open() {
    close();
    onState("connecting");
    source = new EventSource(here(), options);
    source.onopen = () => ((failures = 0), onState("open"));
    source.onerror = () => (onState("reconnecting"), source.readyState === EventSource.CLOSED && wait());
    for (const type of ["hub-cursor", ...Object.keys(handlers)])
      source.addEventListener(type, (event) => ((lastId = event.lastEventId || lastId), handlers[type]?.(event)));
  }
  return open(), { open, close };
}
