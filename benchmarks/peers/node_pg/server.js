// Check-ins with Node.js: https, a pool of pg connections, two UDP sockets.
'use strict';

const dgram = require('node:dgram');
const fs = require('node:fs');
const https = require('node:https');
const { Pool } = require('pg');

const POOL = 32;
const PATH = '/api/client';
const BAD_NAME = 'CN must be a valid email address';
const METHODS = new Set(['PATCH', 'POST', 'PUT']);

// An e-mail address of a web form (HTML Living Standard, 4.10.5.1.5), with a dot in it.
const EMAIL = new RegExp(
  "^[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]+@[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?" +
    '(?:\\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)+$',
);

const UPSERT = {
  name: 'upsert', // prepared once a connection
  text: `INSERT INTO user_status (email, last_seen, client_ip, client_port)
    VALUES ($1, $2, $3, $4)
    ON CONFLICT (email) DO UPDATE SET last_seen = excluded.last_seen,
      client_ip = excluded.client_ip, client_port = excluded.client_port`,
};

const setting = (name) => process.env[`PEER_${name}`];

const pool = new Pool({
  host: setting('DATABASE_SOCKET'),
  user: setting('DATABASE_USER'),
  database: setting('DATABASE'),
  max: POOL,
  idleTimeoutMillis: 0, // kept
});

function connectedSocket(address, prepare) {
  return new Promise((resolve) => {
    const socket = dgram.createSocket('udp4');
    socket.bind(0, '127.0.0.1', () => {
      prepare(socket);
      socket.connect(Number(setting('ANNOUNCE_PORT')), address, () => resolve(socket));
    });
  });
}

function emailOf(socket) {
  const name = socket.getPeerCertificate().subject?.CN; // an array if there are several
  return typeof name === 'string' && EMAIL.test(name) ? name : null;
}

async function main() {
  const targets = [
    await connectedSocket(setting('GROUP'), (s) => s.setMulticastInterface('127.0.0.1')),
    await connectedSocket(setting('BROADCAST'), (s) => s.setBroadcast(true)),
  ];

  async function checkIn(request, response) {
    const { socket } = request;
    if (request.url !== PATH || !METHODS.has(request.method)) {
      response.writeHead(404, { 'Content-Length': 0 }).end();
      return;
    }
    // Once a connection: reading the certificate costs as much as the rest of this function.
    if (socket.checkedInAs === undefined) socket.checkedInAs = emailOf(socket);
    const email = socket.checkedInAs;
    if (email === null) {
      response.writeHead(400, { 'Content-Length': BAD_NAME.length }).end(BAD_NAME);
      return;
    }
    const { remoteAddress, remotePort } = socket;
    const lastSeen = new Date().toISOString();
    await pool.query({ ...UPSERT, values: [email, lastSeen, remoteAddress, remotePort] });
    const payload = Buffer.from(
      JSON.stringify({
        email,
        last_seen: lastSeen,
        client_ip: remoteAddress,
        client_port: remotePort,
      }),
    );
    for (const target of targets) target.send(payload);
    response.writeHead(204).end();
  }

  const server = https.createServer(
    {
      cert: fs.readFileSync(setting('CERTIFICATE')),
      key: fs.readFileSync(setting('KEY')),
      ca: fs.readFileSync(setting('CA')),
      requestCert: true,
      rejectUnauthorized: true,
      minVersion: 'TLSv1.3',
    },
    (request, response) => {
      checkIn(request, response).catch((error) => {
        console.error(error);
        if (!response.headersSent) response.writeHead(503, { 'Content-Length': 0 }).end();
      });
    },
  );
  server.keepAliveTimeout = 180_000;
  server.listen(Number(setting('PORT')), '127.0.0.1', 1024);
}

main();
