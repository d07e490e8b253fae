// Follows an event stream with the `eventsource` package: node follow_with_eventsource.cjs <url> <type>...
const { EventSource } = require('eventsource');

const [url, ...types] = process.argv.slice(2);
const write = (object) => console.log(JSON.stringify(object));

// Since version 5 of the package, its timer for the reconnection does not keep the process alive.
const keepAlive = setInterval(() => {}, 1000);

const source = new EventSource(url);
for (const type of types) {
  source.addEventListener(type, (event) => write({ id: event.lastEventId, type: event.type, data: event.data }));
}
source.addEventListener('error', (event) => {
  if (source.readyState !== EventSource.CLOSED) return;
  write({ closed: event.code });
  clearInterval(keepAlive);
});
