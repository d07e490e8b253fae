// Reads event streams with undici's EventSource, which is Node's own: node read_with_undici.cjs <url>...
const { EventSource } = require('undici');
const { forEachUrl, report } = require('./report.cjs');

const types = ['message', 'news', 'hub-cursor', 'gap', 'shutdown', 'end'];

forEachUrl(
  (url) =>
    new Promise((done) => {
      // The package does not keep a process alive that waits for a reconnection.
      const alive = setInterval(() => {}, 1000);
      const source = new EventSource(url);
      const finish = () => {
        source.close();
        clearInterval(alive);
        done();
      };
      for (const type of types) {
        source.addEventListener(type, ({ type, data }) => report(type, data) && finish());
      }
      source.addEventListener('error', () => {
        if (source.readyState !== EventSource.CLOSED) return;
        report('closed', '');
        finish();
      });
    }),
);
