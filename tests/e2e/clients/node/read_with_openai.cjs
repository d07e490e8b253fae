// Reads answers with OpenAI's package: node read_with_openai.cjs <url>...
const { OpenAI } = require('openai');
const { forEachUrl, report } = require('./report.cjs');

forEachUrl(async (baseURL) => {
  const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0, logLevel: 'off' });
  const messages = [{ role: 'user', content: 'What is new?' }];
  for await (const chunk of await client.chat.completions.create({ model: 'any', messages, stream: true })) {
    report('chunk', chunk.choices ? chunk.choices[0].delta.content : 'without choices');
  }
  report('closed', '');
});
