-- GET of many paths in turn, each request built once before the run.
--
-- TIDEMARK_BENCH_FILE   a file with one path a line
-- TIDEMARK_BENCH_TOKEN  the access token to send, if any

local threads = 0

function setup(thread)
   thread:set("number", threads)
   threads = threads + 1
end

local requests, count, at = {}, 0, 0

function init(args)
   local headers = {}
   local token = os.getenv("TIDEMARK_BENCH_TOKEN")
   if token then headers["Authorization"] = "Bearer " .. token end
   for path in io.lines(os.getenv("TIDEMARK_BENCH_FILE")) do
      count = count + 1
      requests[count] = wrk.format("GET", path, headers)
   end
   -- Threads begin at different places.
   at = (number * 997) % count
end

function request()
   at = at % count + 1
   return requests[at]
end
