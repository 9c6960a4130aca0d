-- wrk: POST /v1/completions with bodies from a file, one a line, in turn. Counts answers that are not what the backend says.
local bodies, turn = {}, 0
local headers = {["content-type"] = "application/json", ["authorization"] = "Bearer " .. os.getenv("BENCH_KEY")}
function init(args)
  headers["Host"] = wrk.headers["Host"]
  for line in io.lines(os.getenv("BENCH_BODIES")) do bodies[#bodies + 1] = wrk.format("POST", "/v1/completions", headers, line) end
end
function request()
  turn = turn + 1
  return bodies[turn % #bodies + 1]
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %d %d %d %d %d %.1f %.1f\n", summary.requests, summary.duration, e.connect, e.read, e.write,
    e.status, e.timeout, latency:percentile(50), latency:percentile(99)))
end
