// Validates an OpenAPI document against the JSON Schema of OpenAPI 3.2, and the events of each of its
// paths against the document: node validate_openapi.cjs <base url> [<last event id>]
const { join } = require('node:path');
const { pathToFileURL } = require('node:url');
const { Ajv2020 } = require('ajv/dist/2020');
const { createParser } = require('eventsource-parser');

// The package is for `import` alone, which does not look in NODE_PATH.
const validator = pathToFileURL(join(process.env.NODE_PATH, '@seriousme/openapi-schema-validator/index.js'));

const write = (object) => console.log(JSON.stringify(object));
const pointer = (...keys) => `#/${keys.map((key) => encodeURIComponent(key.replaceAll('~', '~0').replaceAll('/', '~1'))).join('/')}`;
// utoipa writes an `enum` with one name, and schemars a `const`.
const nameIn = (schema) => schema.const ?? schema.enum[0];

const read = async (url, id) => {
  const response = await fetch(url, id && { headers: { 'Last-Event-ID': id } });
  const events = [];
  const parser = createParser({ onEvent: (event) => events.push(event) });
  parser.feed(await response.text());
  return { status: response.status, events };
};

(async () => {
  const [base, id] = process.argv.slice(2);
  const document = await (await fetch(`${base}/openapi.json`)).json();
  const { Validator } = await import(validator);
  const { valid, errors } = await new Validator().validate(structuredClone(document));
  write({ openapi: document.openapi, valid, errors });

  // The document is one resource, so that its references can be followed. Its own keywords are not those of a schema.
  const ajv = new Ajv2020({ strict: false, validateFormats: false });
  ajv.addSchema({ $id: 'https://example.org/', $defs: document.components, ...document });
  const validate = (value, ...keys) => {
    const check = ajv.getSchema(`https://example.org/${pointer(...keys)}`);
    return check(value) ? [] : check.errors.map(({ schemaPath, message }) => `${schemaPath} ${message}`);
  };

  for (const path of Object.keys(document.paths)) {
    const { status, events } = await read(base + path, id);
    const { parameters, responses } = document.paths[path].get;
    write({ path, status, responses: Object.keys(responses), parameters: parameters.map(({ name }) => name) });
    const keys = ['paths', path, 'get', 'responses', '200', 'content', 'text/event-stream', 'itemSchema'];
    const variants = responses['200'].content['text/event-stream'].itemSchema.oneOf;
    for (const event of events) {
      const variant = variants.findIndex(({ properties }) => nameIn(properties.event) === event.event);
      const { contentSchema } = variants[variant]?.properties.data ?? {};
      const content = [...keys, 'oneOf', `${variant}`, 'properties', 'data', 'contentSchema'];
      const wrong = [
        ...validate(event, ...keys),
        ...(contentSchema ? validate(JSON.parse(event.data), ...content) : []),
      ];
      write({ path, event: event.event, data: event.data, wrong });
    }
  }
})();
