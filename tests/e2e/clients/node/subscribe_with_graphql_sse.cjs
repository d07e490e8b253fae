// Subscribes to the `protocols` example with graphql-sse: node subscribe_with_graphql_sse.cjs <url>
const { createClient } = require('graphql-sse');

(async () => {
  const client = createClient({ url: `${process.argv[2]}/graphql/stream`, retryAttempts: 0 });
  const words = [];
  for await (const { data } of client.iterate({ query: 'What is new?' })) words.push(data.word);
  console.log(JSON.stringify({ text: words.join('') }));
})();
