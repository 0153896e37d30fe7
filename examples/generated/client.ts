// A forward, steps with and without a session, and a problem, by types that openapi-typescript generated.
import createClient from "openapi-fetch"
import type { components, paths } from "./rnn.js"

declare const process: { argv: string[] }
const [, , baseUrl, key] = process.argv
const rnn = createClient<paths, "application/json" | "application/problem+json">({
  baseUrl,
  headers: { authorization: `Bearer ${key}` },
})

function sound<T>({ data, error }: { data?: T; error?: components["schemas"]["Problem"] }): T {
  if (data === undefined) throw new Error(error?.detail)
  return data
}

const forward = sound(
  await rnn.POST("/rnn/forward", {
    body: { model: "lstm", inputs: [[[1, 2, 3, 4, 5], [0, 0, 1, 0, 0]], [[1, 0, 0, 0, 0]]], returns: ["outputs", "h_n"] },
    params: { header: { "X-Request-Timeout-Ms": 60_000 } },
  }),
)
const outputs: (number | null)[][] | (number | null)[][][] = forward.outputs ?? []

const step = sound(await rnn.POST("/cell/step", { body: { model: "tanh", inputs: [1, 2, 3, 4] } }))
const h = "h" in step ? step.h : undefined

const opened = sound(await rnn.POST("/cell/sessions", { body: { model: "tanh", ttl_seconds: 60 } }))
const stepped = sound(
  await rnn.POST("/cell/step", { body: { session: opened.session, inputs: [[1, 2, 3, 4], [0, 1, 0, 1]], step: 1 } }),
)
const count: number = "step" in stepped ? stepped.step : 0
const at = { path: { session: opened.session } }
const ended = sound(await rnn.DELETE("/cell/sessions/{session}", { params: { ...at, query: { state: true } } }))
const { error, response } = await rnn.GET("/cell/sessions/{session}", { params: at })

const model = sound(await rnn.GET("/models/{name}", { params: { path: { name: "lstm" } } }))
const size: number | null = model.input_size

console.log(JSON.stringify({ outputs, h, count, ended, gone: [response.status, error?.reason, error?.step], size }))
