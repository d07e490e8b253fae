// Writes what a client dispatches, a line of JSON for each event.
const write = (object) => console.log(JSON.stringify(object));

// Writes an event. Returns whether it is the last one of its stream.
const report = (type, data) => {
  write({ type, data });
  return type === 'end';
};

// Calls `read` with each URL of the command line, one after the other, after a line with the URL.
const forEachUrl = async (read) => {
  for (const url of process.argv.slice(2)) {
    write({ url });
    try {
      await read(url);
    } catch (error) {
      // A class of errors of its own, or the text, as most packages throw plain errors.
      const { name, message } = error;
      report('error', name === 'Error' ? message : name);
    }
  }
};

module.exports = { report, forEachUrl };
