// Load on a running rnn-service at a fixed arrival rate. See docs/load-testing.md.
//
//   k6 run -e URL=http://127.0.0.1:8000 -e MODEL=sunspots -e SCENARIO=step -e RATE=500 -e DURATION=30 benchmarks/load.js

import exec from 'k6/execution'
import http from 'k6/http'
import ws from 'k6/ws'
import { Counter, Trend } from 'k6/metrics'

const env = (name, otherwise) => (__ENV[name] === undefined || __ENV[name] === '' ? otherwise : __ENV[name])
const number = (name, otherwise) => Number(env(name, otherwise))

const URL = env('URL', 'http://127.0.0.1:8000')
const MODEL = env('MODEL', '')
const SCENARIO = env('SCENARIO', 'step') // step, forward, session, stream
const RATE = number('RATE', 100) // arrivals a second: requests, or streams
const DURATION = number('DURATION', 10) // seconds that are counted
const WARM_UP = number('WARM_UP', 3) // seconds before them that are not
const VUS = number('VUS', 200) // most arrivals under way at once; others are dropped
const BATCH = number('BATCH', 1) // rows of a forward
const STEPS = number('STEPS', 32) // time steps of a forward, or of a stream
const SESSIONS = number('SESSIONS', 100) // sessions that are stepped in turn
const IN_TIME_MS = number('IN_TIME_MS', 1000) // an answer that comes later is of no use
const P99_MS = number('P99_MS', 0) // fail if the 99th percentile is above; 0: no limit
const CONTENT_TYPE = env('CONTENT_TYPE', 'application/json')
const FILE = __ENV.BODY ? open(__ENV.BODY, 'b') : null // sent as it is

const answered = new Trend('answered_ms') // 2xx
const refused = new Trend('refused_ms') // 429 and 503
const failed = new Counter('failed') // all else
const inTime = new Counter('in_time')

export const options = {
  discardResponseBodies: true,
  systemTags: [],
  summaryTrendStats: ['count', 'med', 'p(90)', 'p(99)', 'p(99.9)', 'max'],
  setupTimeout: '120s',
  scenarios: {
    load: {
      executor: 'constant-arrival-rate',
      rate: RATE,
      timeUnit: '1s',
      duration: `${WARM_UP + DURATION}s`,
      gracefulStop: '10s',
      preAllocatedVUs: VUS,
    },
  },
  thresholds: { failed: ['count<1'], ...(P99_MS ? { answered_ms: [`p(99)<${P99_MS}`] } : {}) },
}

const headers = { 'Content-Type': CONTENT_TYPE }
if (__ENV.API_KEY) headers.Authorization = `Bearer ${__ENV.API_KEY}`
const value = () => Math.round((2 * Math.random() - 1) * 1e4) / 1e4
// One step's input: a token id, or a vector.
const step = ({ ids, size }) => (ids ? Math.floor(Math.random() * ids) : Array.from({ length: size }, value))

export function setup() {
  if (FILE) return {}
  const found = http.get(`${URL}/models/${MODEL}`, { headers, responseType: 'text' })
  if (found.status !== 200) throw new Error(`GET /models/${MODEL}: ${found.status} ${found.body || found.error}`)
  const sessions = []
  while (SCENARIO === 'session' && sessions.length < SESSIONS) {
    const opened = ['POST', `${URL}/cell/sessions`, JSON.stringify({ model: MODEL }), { headers, responseType: 'text' }]
    for (const reply of http.batch(Array(Math.min(SESSIONS - sessions.length, 20)).fill(opened))) {
      if (reply.status !== 201) throw new Error(`POST /cell/sessions: ${reply.status} ${reply.body || reply.error}`)
      sessions.push(reply.json('session'))
    }
  }
  return { ids: found.json('num_embeddings'), size: found.json('inputs.0.shape.2'), sessions }
}

const counts = () => Date.now() - exec.scenario.startTime >= 1000 * WARM_UP

function count(status, milliseconds) {
  if (status === 429 || status === 503) return refused.add(milliseconds)
  if (status < 200 || status > 299) return failed.add(1)
  answered.add(milliseconds)
  if (milliseconds <= IN_TIME_MS) inTime.add(1)
}

let body = FILE // made once for each virtual user
function request(data) {
  if (SCENARIO === 'session') {
    const session = data.sessions[exec.scenario.iterationInTest % data.sessions.length]
    return JSON.stringify({ session, inputs: step(data) })
  }
  if (body === null) {
    const rows = (length) => Array.from({ length }, () => step(data))
    const inputs = SCENARIO === 'step' ? step(data) : Array.from({ length: BATCH }, () => rows(STEPS))
    body = JSON.stringify({ model: MODEL, inputs })
  }
  return body
}

// One WebSocket of STEPS steps, each sent when the one before it has been answered.
function stream(data) {
  let sent, left = STEPS
  const reply = ws.connect(`${URL.replace(/^http/, 'ws')}/cell/stream`, { headers }, (socket) => {
    const next = () => {
      sent = Date.now()
      socket.send(JSON.stringify(step(data)))
    }
    socket.on('open', () => {
      socket.send(JSON.stringify({ model: MODEL }))
      next()
    })
    socket.on('message', (text) => {
      if (counts()) count(text.startsWith('{"error"') ? 500 : 200, Date.now() - sent)
      left -= 1
      if (left) next()
      else socket.close()
    })
    socket.setTimeout(() => socket.close(), 10000)
  })
  if (left && counts()) count(reply.status === 101 ? 500 : reply.status, 0)
}

export default function (data) {
  if (SCENARIO === 'stream') return stream(data)
  const measured = counts()
  const path = SCENARIO === 'forward' ? '/rnn/forward' : '/cell/step'
  const reply = http.post(URL + path, request(data), { headers, timeout: '10s' })
  if (measured) count(reply.status, reply.timings.blocked + reply.timings.connecting + reply.timings.duration)
}
