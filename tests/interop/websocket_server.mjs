// A WebSocket echo over HTTP/1.1 without a library: prints its port.
import { createHash } from 'node:crypto';
import { createServer } from 'node:http';
import { frame, Frames } from './frames.mjs';

const server = createServer((request, response) => response.writeHead(426).end());
server.on('upgrade', (request, socket, head) => {
  const key = request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
  socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
    `Sec-WebSocket-Accept: ${createHash('sha1').update(key).digest('base64')}\r\n` +
    `Sec-WebSocket-Protocol: ${request.headers['sec-websocket-protocol']}\r\n\r\n`);
  const frames = new Frames((opcode, payload) => {
    socket.write(frame(opcode, payload, false));
    if (opcode === 8) socket.end();
  });
  socket.on('data', (data) => frames.push(data));
  socket.on('error', () => {});
  frames.push(head);
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
