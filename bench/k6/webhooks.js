// The load of `shardlane load` for those who use k6: webhooks at a constant arrival rate, signed if there is a secret.
//
//   k6 run -e URL=http://127.0.0.1:8080 -e RATE=500 -e DURATION=60s -e SECRET=whsec_... bench/k6/webhooks.js
//
// k6 counts `http_req_duration` from the send; iterations for which no virtual user was free are `dropped_iterations`
// and in no percentile. So the run fails when there are any. `shardlane load` counts from the scheduled time instead.
import { check } from 'k6';
import crypto from 'k6/crypto';
import encoding from 'k6/encoding';
import exec from 'k6/execution';
import http from 'k6/http';

const url = __ENV.URL || 'http://127.0.0.1:8080';
const users = Number(__ENV.USERS || 10000);
const secret = __ENV.SECRET ? encoding.b64decode(__ENV.SECRET.replace(/^whsec_/, ''), 'std') : null;
// Another run has other users and other events.
const run = __ENV.RUN || String(Date.now());

export const options = {
  scenarios: {
    webhooks: {
      executor: 'constant-arrival-rate',
      rate: Number(__ENV.RATE || 100),
      timeUnit: '1s',
      duration: __ENV.DURATION || '30s',
      preAllocatedVUs: Number(__ENV.CONNECTIONS || 64),
      maxVUs: Number(__ENV.CONNECTIONS || 64),
    },
  },
  thresholds: {
    checks: ['rate==1'],
    dropped_iterations: ['count==0'],
    http_req_duration: ['p(99)<20', 'p(99.9)<100'],
  },
  summaryTrendStats: ['med', 'p(90)', 'p(99)', 'p(99.9)', 'max'],
};

// The same uuid for the same user of the same run.
function uuid(user) {
  const hex = crypto.md5(`${run}-${user}`, 'hex');
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-8${hex.slice(17, 20)}-${hex.slice(20, 32)}`;
}

// Orders of four events each, one user's order after the other: created, updated, updated, success.
function webhook(number) {
  const round = Math.floor(number / users);
  const step = round % 4;
  const order = Math.floor(round / 4);
  const created = new Date(exec.scenario.startTime).toISOString();
  return JSON.stringify({
    provider_event_id: `k6-${order}-${step}`,
    order_id: `k6-${run}-${number % users}-${order}`,
    user_id: uuid(number % users),
    status: ['created', 'updated', 'updated', 'success'][step],
    created_at: created,
    updated_at: new Date(exec.scenario.startTime + step).toISOString(),
    meta: { amount: '12.34', currency: 'EUR' },
  });
}

export default function () {
  const number = exec.scenario.iterationInTest;
  const body = webhook(number);
  const headers = { 'content-type': 'application/json' };
  if (secret) {
    const id = `msg_${run}_${number}`;
    const timestamp = String(Math.floor(Date.now() / 1000));
    const code = crypto.hmac('sha256', secret, `${id}.${timestamp}.${body}`, 'base64');
    headers['webhook-id'] = id;
    headers['webhook-timestamp'] = timestamp;
    headers['webhook-signature'] = `v1,${code}`;
  }
  const answer = http.post(`${url}/webhooks/payments/orders`, body, { headers });
  check(answer, { 'status is 2xx': (got) => got.status >= 200 && got.status < 300 });
}
