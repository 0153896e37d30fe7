-- For wrk: posts the file of the first argument, whose format is the second; the third is the length of the JSON before
-- binary tensors (Open Inference Protocol), 0 of other formats. With a fourth, a file with a session a line, "SESSION" in
-- the body is each of them in turn.

local turn = 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  wrk.method, wrk.body, wrk.headers["Content-Type"] = "POST", file:read("*a"), args[2]
  file:close()
  if args[3] ~= "0" then wrk.headers["Inference-Header-Content-Length"] = args[3] end
  if not args[4] then return end
  local requests = {}
  for session in io.lines(args[4]) do
    requests[#requests + 1] = wrk.format(nil, nil, nil, (wrk.body:gsub("SESSION", session)))
  end
  request = function()
    turn = turn % #requests + 1
    return requests[turn]
  end
end

function done(summary, latency)
  local e = summary.errors
  local errors = e.connect + e.read + e.write + e.status + e.timeout
  local p50, p99 = latency:percentile(50), latency:percentile(99)
  local line = 'RESULT {"requests":%d,"microseconds":%d,"p50":%.1f,"p99":%.1f,"max":%.1f,"errors":%d}\n'
  io.write("\n", line:format(summary.requests, summary.duration, p50, p99, latency.max, errors))
end
