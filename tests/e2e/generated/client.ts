// What a user of the generated types writes; `tsc --strict` also holds that wrong calls do not compile.
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

export async function wrong(): Promise<void> {
  // @ts-expect-error: inputs are lists of numbers
  await rnn.POST("/rnn/forward", { body: { inputs: [["1"]] } })
  // @ts-expect-error: inputs are required
  await rnn.POST("/rnn/forward", { body: { model: "lstm" } })
  // @ts-expect-error: no such field
  const misspelt: components["schemas"]["ForwardRequest"] = { inputs: [[1]], modell: "lstm" }
  // @ts-expect-error: there is nothing of this name to return
  await rnn.POST("/rnn/forward", { body: { inputs: [[1]], returns: ["hidden"] } })
  // @ts-expect-error: a reply holds numbers
  const text: string = forward.outputs?.[0]
  // @ts-expect-error: it may be left out
  forward.outputs.length
  // @ts-expect-error: it may be null
  model.hidden_size.toFixed(text)
}

console.log(JSON.stringify({ outputs, h, count, ended, gone: [response.status, error?.reason, error?.step], size }))
