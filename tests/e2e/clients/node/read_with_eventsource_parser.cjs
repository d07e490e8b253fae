// Reads event streams with fetch and eventsource-parser: node read_with_eventsource_parser.cjs <url>...
const { createParser } = require('eventsource-parser');
const { forEachUrl, report } = require('./report.cjs');

forEachUrl(async (url) => {
  const response = await fetch(url, { headers: { Accept: 'text/event-stream' } });
  if (response.status !== 200) throw new Error(`${response.status}`);
  const parser = createParser({ onEvent: ({ event, data }) => report(event ?? 'message', data) });
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) parser.feed(text);
});
