// Calls that must not compile.
import createClient from "openapi-fetch"
import type { components, paths } from "./rnn.js"

type Schemas = components["schemas"]
const rnn = createClient<paths, "application/json">()

export async function wrong(forward: Schemas["ForwardReply"], model: Schemas["ModelView"]): Promise<void> {
  // @ts-expect-error: inputs are lists of numbers
  await rnn.POST("/rnn/forward", { body: { inputs: [["1"]] } })
  // @ts-expect-error: inputs are required
  await rnn.POST("/rnn/forward", { body: { model: "lstm" } })
  // @ts-expect-error: no such field
  const misspelt: Schemas["ForwardRequest"] = { inputs: [[1]], hidden: 3 }
  // @ts-expect-error: there is nothing of this name to return
  await rnn.POST("/rnn/forward", { body: { inputs: [[1]], returns: ["hidden"] } })
  // @ts-expect-error: a reply holds numbers
  const text: string = forward.outputs?.[0]
  // @ts-expect-error: it may be left out
  forward.outputs.length
  // @ts-expect-error: it may be null
  model.hidden_size.toFixed(text)
}
