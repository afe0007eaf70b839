// The http2 module of Node through balancer: http2.mjs FRONT
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { connect, constants } from 'node:http2';
import { frame, Frames } from './frames.mjs';

const [front] = process.argv.slice(2);
const SIZE = 3_000_000;
const sha256 = (bytes) => createHash('sha256').update(bytes).digest('hex');

// The whole answer to one request, with what came before and behind it.
async function ask(session, fields, { body, trailers } = {}) {
  const stream = session.request(fields, { endStream: !body, waitForTrailers: !!trailers });
  const answer = { interim: [], parts: [] };
  stream.on('headers', (head) => answer.interim.push(head));
  stream.on('continue', () => (answer.wasContinued = true));
  stream.on('response', (head) => (answer.head = head));
  stream.on('trailers', (fields) => (answer.trailers = fields));
  stream.on('data', (part) => answer.parts.push(part));
  stream.on('wantTrailers', () => stream.sendTrailers(trailers));
  if (body && fields.expect) stream.on('continue', () => stream.end(body));
  else if (body) stream.end(body);
  await once(stream, 'close');
  return { ...answer, status: answer.head[':status'], body: Buffer.concat(answer.parts) };
}

async function multiplexes(session) {
  const asked = Array.from({ length: 8 }, () => ask(session, { ':path': '/together' }));
  for (const answer of await Promise.all(asked)) assert.equal(answer.body.toString(), 'together');
  const large = Array.from({ length: 4 }, () => ask(session, { ':path': `/bytes/${SIZE}` }));
  for (const answer of await Promise.all(large)) assert.equal(sha256(answer.body), answer.head['x-sha256']);
}

async function carriesTrailers(session) {
  const got = await ask(session, { ':path': `/chunks/${SIZE}`, te: 'trailers' });
  assert.equal(got.trailers['x-sha256'], sha256(got.body));
  const body = Buffer.alloc(SIZE, 'body');
  const sent = await ask(session, { ':method': 'POST', ':path': '/sha256' }, { body, trailers: { 'x-last': 'word' } });
  assert.equal(sent.body.toString(), sha256(body));
  assert.equal(sent.head['x-trailers'].toLowerCase(), 'x-last: word');
}

async function carriesInterim(session) {
  const early = await ask(session, { ':path': '/early' });
  assert.equal(early.interim[0][':status'], 103);
  assert.equal(early.interim[0].link, '</style.css>; rel=preload');
  const body = Buffer.from('waited');
  const waited = await ask(session, { ':method': 'POST', ':path': '/sha256', expect: '100-continue' }, { body });
  assert.ok(waited.wasContinued);
  assert.equal(waited.body.toString(), sha256(body));
}

async function resetsOneStream(session) {
  const stream = session.request({ ':path': '/endless' });
  const other = ask(session, { ':path': '/given-up' });
  await once(stream, 'data');
  stream.close(constants.NGHTTP2_CANCEL);
  assert.equal((await other).body.toString(), 'given up');
}

// RFC 8441.
async function opensWebSocket(session) {
  const stream = session.request({
    ':method': 'CONNECT', ':protocol': 'websocket', ':path': '/websocket',
    'sec-websocket-version': '13', 'sec-websocket-protocol': 'echo',
  }, { endStream: false });
  const [head] = await once(stream, 'response');
  assert.equal(head[':status'], 200);
  assert.equal(head['sec-websocket-protocol'], 'echo');
  assert.equal(head['sec-websocket-accept'], undefined);
  const waiting = [], come = [];
  const frames = new Frames((opcode, payload) => {
    const waiter = waiting.shift();
    if (waiter) waiter({ opcode, payload });
    else come.push({ opcode, payload });
  });
  stream.on('data', (data) => frames.push(data));
  const next = () => (come.length ? come.shift() : new Promise((done) => waiting.push(done)));
  for (const size of [0, 1, 125, 126, 65535, 65536, 1_000_000, 3]) {
    const payload = Buffer.alloc(size, String(size));
    stream.write(frame(1, payload, true));
    const got = await next();
    assert.equal(got.opcode, 1);
    assert.ok(got.payload.equals(payload), `${size}`);
  }
  const close = Buffer.from([0x03, 0xe8]);
  stream.end(frame(8, close, true));
  const last = await next();
  assert.equal(last.opcode, 8);
  assert.ok(last.payload.equals(close));
  await once(stream, 'close');
  assert.equal(stream.rstCode, constants.NGHTTP2_NO_ERROR);
}

const session = connect(front);
session.on('error', (error) => { throw error; });
const [settings] = await once(session, 'remoteSettings');
assert.equal(settings.enableConnectProtocol, true);
assert.equal(session.alpnProtocol, front.startsWith('https') ? 'h2' : 'h2c');
for (const step of [multiplexes, carriesTrailers, carriesInterim, resetsOneStream, opensWebSocket]) await step(session);
session.close();
await once(session, 'close');
console.log(`Node ${process.version}, nghttp2 ${process.versions.nghttp2}: HTTP/2 to ${front}`);
