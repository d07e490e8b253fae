// Reads results with graphql-sse: node read_with_graphql_sse.cjs <url>...
const { createClient } = require('graphql-sse');
const { forEachUrl, report } = require('./report.cjs');

forEachUrl(async (url) => {
  const client = createClient({ url, retryAttempts: 1, retry: async () => {} });
  for await (const { data } of client.iterate({ query: 'subscription { news }' })) {
    report('next', data.news);
  }
  report('closed', '');
});
