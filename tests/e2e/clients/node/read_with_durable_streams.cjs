// Reads a stream of JSON with the client of the Durable Streams protocol, and writes each batch as a line of JSON:
// node read_with_durable_streams.cjs <url> <offset> <pages | long-poll | sse>
const { stream } = require('@durable-streams/client');

const write = (object) => console.log(JSON.stringify(object));

// Without `live`, the client reads one page.
const readPages = async (url, offset) => {
  for (;;) {
    const response = await stream({ url, offset, live: false, warnOnHttp: false });
    const items = await response.json();
    ({ offset } = response);
    write({ items, offset });
    if (response.upToDate) return;
  }
};

const follow = async (url, offset, live) => {
  const response = await stream({ url, offset, live, json: true, warnOnHttp: false });
  response.subscribeJson(({ items, offset, streamClosed }) => write({ items, offset, closed: streamClosed }));
  await response.closed;
};

const [url, offset, live] = process.argv.slice(2);
(live === 'pages' ? readPages(url, offset) : follow(url, offset, live)).catch(({ name, status }) => {
  write({ error: name, status });
});
