// Reads answers with TanStack AI's adapter: node read_with_tanstack_ai.cjs <url>...
const { join } = require('node:path');
const { pathToFileURL } = require('node:url');
const { forEachUrl, report } = require('./report.cjs');

// The package is for `import` alone, which does not look in NODE_PATH.
const file = join(process.env.NODE_PATH, '@tanstack/ai-client/dist/esm/index.js');

forEachUrl(async (url) => {
  const { fetchServerSentEvents } = await import(pathToFileURL(file));
  for await (const chunk of fetchServerSentEvents(url).connect([], undefined, undefined, { threadId: 't', runId: 'r' })) {
    report(chunk.type, chunk.delta ?? '');
  }
  report('closed', '');
});
